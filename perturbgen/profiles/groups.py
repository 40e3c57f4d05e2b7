"""Groups of rows by their labels (plates of experiments, sites of plates), and their moments.

Every function reads the matrix once, block by block, so that it may lie on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import require_columns

_BLOCK = 4096  # rows read at a time: 32 MB of 1,024 features in float64

Key = tuple[Any, ...]  # the labels of a group


class Matrix(Protocol):
    """What gives rows by slice or number: an array, a memory map, or rows computed when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, features)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows."""


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover ``rows`` rows in order."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(start + _BLOCK, rows))


@dataclass(frozen=True, eq=False)
class Groups:
    """The distinct label tuples ``keys`` in sorted order, and ``codes`` (rows,), each row's number.

    Statistics of groups take ``rows``, the numbers of the rows that count (all by default).
    """

    keys: list[Key]
    codes: np.ndarray

    @classmethod
    def of(cls, meta: pd.DataFrame, by: Sequence[str], where: str = "the metadata") -> Groups:
        """Rows with equal labels ``by``; without labels all rows are one group."""
        if not by:
            return cls([()], np.zeros(len(meta), dtype=np.int64))
        require_columns(meta.columns, by, where)
        for name in by:
            # pandas would drop such rows from its groups without a word
            if absent := int(meta[name].isna().sum()):
                raise SchemaError(
                    f"{where}: {name!r} is missing in {absent} rows",
                    expected="a label in every row",
                    fix=f"choose other labels than {shorten(by)}, or fill it",
                )
        codes = meta.groupby(list(by), sort=True, observed=True).ngroup().to_numpy()
        first = np.unique(codes, return_index=True)[1]
        return cls(list(meta[list(by)].iloc[first].itertuples(index=False, name=None)), codes)

    def __len__(self) -> int:
        return len(self.keys)

    def indicator(self, rows: np.ndarray | slice = slice(None)) -> Any:
        """A sparse (groups, rows) matrix of ones: its product with the rows sums them by group."""
        from scipy.sparse import csr_array

        codes = self.codes[rows]
        entries = (np.ones(len(codes)), (codes, np.arange(len(codes))))
        return csr_array(entries, shape=(len(self), len(codes)))

    def means(self, X: Matrix, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows in each group (groups,), and means (groups, features), 0 where there are none."""
        rows = np.arange(len(self.codes)) if rows is None else rows
        count = np.bincount(self.codes[rows], minlength=len(self))
        total = np.zeros((len(self), X.shape[1]))
        for block in blocks(len(rows)):
            total += self.indicator(rows[block]) @ np.asarray(X[rows[block]], np.float64)
        return count, total / np.maximum(count, 1)[:, None]

    def moments(self, X: Matrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts (groups,), means and standard deviations (ddof 0), both (groups, features)."""
        # sums are taken about the first row: a large offset would cost the variance its digits
        origin = np.asarray(X[rows[:1]], np.float64)
        count = np.bincount(self.codes[rows], minlength=len(self))
        first, second = np.zeros((2, len(self), X.shape[1]))
        for block in blocks(len(rows)):
            values = np.asarray(X[rows[block]], np.float64) - origin
            members = self.indicator(rows[block])
            first += members @ values
            second += members @ values**2
        size = np.maximum(count, 1)[:, None]
        mean = first / size
        return count, mean + origin, np.sqrt(np.maximum(second / size - mean**2, 0))
