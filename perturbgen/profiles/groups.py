"""Groups of rows by their labels (plates of experiments, sites of plates), and their moments.

Every function reads the matrix once, block by block, so that it may lie on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import require_columns

_BLOCK = 4096  # rows read at a time: 32 MB of 1,024 features in float64

Key = tuple[Any, ...]


class Rows(Protocol):
    """A matrix that gives rows by slice or number: in memory, on disk, or computed when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, features)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows."""


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover ``rows`` rows in order."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(start + _BLOCK, rows))


def grouping(
    meta: pd.DataFrame, by: Sequence[str], where: str = "the metadata"
) -> tuple[list[Key], np.ndarray]:
    """The distinct label tuples in sorted order, and the number (rows,) of each row's tuple.

    Without labels all rows are one group.
    """
    if not by:
        return [()], np.zeros(len(meta), dtype=np.int64)
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
    return list(meta[list(by)].iloc[first].itertuples(index=False, name=None)), codes


def reference_rows(rows: int, control: np.ndarray | pd.Series | None) -> np.ndarray:
    """Row numbers of the controls; all rows without a mask."""
    if control is None:
        return np.arange(rows)
    mask = np.asarray(control)
    # row numbers in place of a mask would silently fit on a handful of rows
    if mask.dtype != bool or mask.shape != (rows,):
        raise SchemaError(
            f"control is {mask.dtype} of shape {mask.shape}",
            expected=f"a mask of {rows} True or False, one a row",
        )
    if not mask.any():
        raise SchemaError(
            "no control among the rows", expected="controls to fit on", fix="check --control"
        )
    return np.flatnonzero(mask)


def group_means(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in each group (groups,) and their means (groups, features), zero where there are none."""
    count, total = np.bincount(codes[rows], minlength=groups), np.zeros((groups, X.shape[1]))
    for block in blocks(len(rows)):
        total += indicator(codes[rows[block]], groups) @ np.asarray(X[rows[block]], np.float64)
    return count, total / np.maximum(count, 1)[:, None]


def group_moments(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (groups,), means and variances (ddof 0), both (groups, features), of ``rows``."""
    # sums are taken about the first row: a large offset would cost the variance its digits
    origin = np.asarray(X[rows[:1]], np.float64)
    count = np.bincount(codes[rows], minlength=groups)
    first, second = np.zeros((groups, X.shape[1])), np.zeros((groups, X.shape[1]))
    for block in blocks(len(rows)):
        values = np.asarray(X[rows[block]], np.float64) - origin
        members = indicator(codes[rows[block]], groups)
        first += members @ values
        second += members @ values**2
    size = np.maximum(count, 1)[:, None]
    mean = first / size
    return count, mean + origin, np.maximum(second / size - mean**2, 0)


def covariance_of(X: Rows, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (features,) and covariance (features, features; ddof 0) of ``rows``."""
    origin = np.asarray(X[rows[:1]], np.float64)
    first, second = np.zeros(X.shape[1]), np.zeros((X.shape[1], X.shape[1]))
    for block in blocks(len(rows)):
        values = np.asarray(X[rows[block]], np.float64) - origin
        first += values.sum(axis=0)
        second += values.T @ values
    second -= np.outer(first, first) / len(rows)
    return first / len(rows) + origin[0], second / len(rows)


def indicator(codes: np.ndarray, groups: int) -> Any:
    """A sparse (groups, rows) matrix of ones: its product with rows sums them by group."""
    from scipy.sparse import csr_array

    size = len(codes)
    return csr_array((np.ones(size), (codes, np.arange(size))), shape=(groups, size))
