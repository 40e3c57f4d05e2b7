"""What every correction is: fitted on controls, applied to anything, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles.groups import Key, Rows, blocks, grouping


class Correction(ABC):
    """A map of profiles that is learned from control rows (``control=None``: from all rows).

    ``fit`` reads the rows it learns from once; ``transform`` reads every row once and needs their labels, never their
    treatment. Both take a matrix in memory or mapped from disk, (rows, features).
    """

    @abstractmethod
    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """Learn from the rows of the mask ``control``."""

    @abstractmethod
    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """A block of rows, float64 (rows, features), corrected."""

    def transform(
        self, X: Rows, meta: pd.DataFrame, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """All rows corrected; written to ``out`` (for instance a memory map), if given."""
        check_rows(X, meta)
        for rows in blocks(X.shape[0]):
            part = self.apply(np.asarray(X[rows], np.float64), meta.iloc[rows])
            if out is None:
                out = np.empty((X.shape[0], part.shape[1]))
            out[rows] = part
        return np.empty(X.shape) if out is None else out

    def fit_transform(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> np.ndarray:
        """``fit`` and ``transform`` of the same rows."""
        return self.fit(X, meta, control=control).transform(X, meta)


class Pipeline(Correction):
    """Corrections one after the other, each fitted on what the former leave; nothing in between is stored."""

    def __init__(self, *steps: Correction) -> None:
        self.steps = steps

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """Fit the steps in order."""
        view: Rows = X
        for step in self.steps:
            step.fit(view, meta, control=control)
            view = _Corrected(view, step, meta)
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """A block through all steps."""
        for step in self.steps:
            values = step.apply(values, meta)
        return values


class _Corrected:
    """The rows of a matrix as a fitted correction leaves them, computed when they are asked for."""

    def __init__(self, X: Rows, step: Correction, meta: pd.DataFrame) -> None:
        self._X, self._step, self._meta = X, step, meta

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, features after the correction)."""
        return (self._X.shape[0], self[:1].shape[1])

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._step.apply(np.asarray(self._X[rows], np.float64), self._meta.iloc[rows])


def check_rows(X: Rows, meta: pd.DataFrame) -> None:
    """The matrix has as many rows as there are labels."""
    if X.shape[0] != len(meta):
        raise SchemaError(
            f"{X.shape[0]} rows of values and {len(meta)} of labels",
            expected="a label for each row",
        )


def known_groups(
    known: dict[Key, int], meta: pd.DataFrame, by: Sequence[str], *, what: str
) -> np.ndarray:
    """For each row the number of its fitted group; a group that was not fitted is an error."""
    keys, codes = grouping(meta, by)
    absent = [key for key in keys if key not in known]
    if absent:
        raise SchemaError(
            f"{what}: {len(absent)} groups of {'/'.join(by)} were not there when it was fitted, the first {absent[0]}",
            expected="the groups of the fit",
            fix="fit on controls of every batch that is to be transformed",
        )
    return np.array([known[key] for key in keys])[codes]
