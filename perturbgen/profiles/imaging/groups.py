"""Groups of rows by their labels (plates of experiments, sites of plates), and their moments in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from perturbgen.data.tables import require_columns
from perturbgen.errors import SchemaError, shorten
from perturbgen.profiles.imaging.profiles import blocks

Key = tuple[Any, ...]


class Rows(Protocol):
    """What the corrections ask of a matrix: rows by slice or number, in memory, on disk or computed when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, features)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows."""


def grouping(meta: pd.DataFrame, by: Sequence[str], where: str = "the metadata") -> tuple[list[Key], np.ndarray]:
    """The distinct label tuples in sorted order and the number of its tuple for each row; one group for no labels."""
    if not by:
        return [()], np.zeros(len(meta), dtype=np.int64)
    require_columns(meta.columns, by, where)
    for name in by:
        absent = int(meta[name].isna().sum())
        if absent:
            raise SchemaError(f"{where}: {name!r} is missing in {absent} rows", expected="a label in every row",
                              fix=f"choose other labels than {shorten(by)}, or fill it")  # fmt: skip
    codes = meta.groupby(list(by), sort=True, observed=True).ngroup().to_numpy()
    first = np.unique(codes, return_index=True)[1]
    return list(meta[list(by)].iloc[first].itertuples(index=False, name=None)), codes


def reference_rows(rows: int, control: np.ndarray | pd.Series | None) -> np.ndarray:
    """Row numbers of the controls; all rows without a mask."""
    if control is None:
        return np.arange(rows)
    mask = np.asarray(control)
    if mask.dtype != bool or mask.shape != (rows,):
        raise SchemaError(
            f"control is {mask.dtype} of shape {mask.shape}", expected=f"a mask of {rows} True or False, one a row"
        )
    if not mask.any():
        raise SchemaError("no control among the rows", expected="controls to fit on", fix="check --control")
    return np.flatnonzero(mask)


def group_means(X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in each group (groups,) and their means (groups, features), zero where there are none; one pass."""
    count, total = np.bincount(codes[rows], minlength=groups), np.zeros((groups, X.shape[1]))
    for block in blocks(len(rows)):
        total += indicator(codes[rows[block]], groups) @ np.asarray(X[rows[block]], np.float64)
    return count, total / np.maximum(count, 1)[:, None]


def group_moments(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (groups,), means and variances (ddof 0) (groups, features) of ``rows`` by group; one pass.

    Sums are taken about the first row, so that a large offset costs no digits.
    """
    origin = np.asarray(X[rows[:1]], np.float64)
    count = np.bincount(codes[rows], minlength=groups)
    first, second = np.zeros((groups, X.shape[1])), np.zeros((groups, X.shape[1]))
    for block in blocks(len(rows)):
        values, members = np.asarray(X[rows[block]], np.float64) - origin, indicator(codes[rows[block]], groups)
        first += members @ values
        second += members @ values**2
    size = np.maximum(count, 1)[:, None]
    mean = first / size
    return count, mean + origin, np.maximum(second / size - mean**2, 0)


def group_covariances(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int, *, ddof: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means (groups, features) and covariances (groups, features, features) by group; one pass."""
    origin = np.asarray(X[rows[:1]], np.float64)
    size = X.shape[1]
    count, first, second = (
        np.bincount(codes[rows], minlength=groups),
        np.zeros((groups, size)),
        np.zeros((groups, size, size)),
    )
    for block in blocks(len(rows)):
        here, values = codes[rows[block]], np.asarray(X[rows[block]], np.float64) - origin
        for group in np.unique(here):
            part = values[here == group]
            first[group] += part.sum(axis=0)
            second[group] += part.T @ part
    for group in np.flatnonzero(count):
        second[group] -= np.outer(first[group], first[group]) / count[group]
        second[group] /= max(count[group] - ddof, 1)
    return count, first / np.maximum(count, 1)[:, None] + origin, second


def indicator(codes: np.ndarray, groups: int) -> Any:
    """A sparse (groups, rows) matrix of ones: its product with rows sums them by group."""
    from scipy.sparse import csr_array

    size = len(codes)
    return csr_array((np.ones(size), (codes, np.arange(size))), shape=(groups, size))
