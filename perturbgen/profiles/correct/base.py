"""What every correction is: fitted on controls, applied to anything, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles.table import Matrix, blocks

_Control = np.ndarray | pd.Series | None  # a mask of the controls; None: all rows


class Correction(ABC):
    """A map of profiles that is learned from control rows (``control=None``: from all rows).

    ``fit`` reads the rows it learns from once; ``transform`` reads every row once and needs their
    labels, never their treatment. Both take a matrix (rows, features) in memory or on disk.
    """

    def fit(self, X: Matrix, meta: pd.DataFrame, *, control: _Control = None) -> Self:
        """Learn from the rows of the mask ``control``."""
        _require_labels(X, meta)
        self._learn(X, meta, _reference_rows(len(meta), control))
        return self

    @abstractmethod
    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        """Learn from these rows (numbers)."""

    @abstractmethod
    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """A block of rows, float64 (rows, features), corrected."""

    def transform(
        self, X: Matrix, meta: pd.DataFrame, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """All rows corrected; written to ``out`` (for instance a memory map), if given."""
        _require_labels(X, meta)
        for rows in blocks(X.shape[0]):
            # float64 whatever is stored: sums over thousands of controls would lose digits
            part = self.apply(np.asarray(X[rows], np.float64), meta.iloc[rows])
            if out is None:
                out = np.empty((X.shape[0], part.shape[1]))
            out[rows] = part
        return np.empty(X.shape) if out is None else out

    def fit_transform(
        self, X: Matrix, meta: pd.DataFrame, *, control: _Control = None
    ) -> np.ndarray:
        """``fit`` and ``transform`` of the same rows."""
        return self.fit(X, meta, control=control).transform(X, meta)


class Pipeline(Correction):
    """Corrections one after the other, each fitted on what the former leave.

    Nothing in between is stored: a step sees the rows that it learns from as the steps before it
    compute them.
    """

    def __init__(self, *steps: Correction) -> None:
        self.steps = steps

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        view = X
        for step in self.steps:
            step._learn(view, meta, rows)
            view = _Corrected(view, step, meta)

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """A block through all steps."""
        for step in self.steps:
            values = step.apply(values, meta)
        return values


class _Corrected:
    """The rows of a matrix as a fitted correction leaves them, computed when they are asked for."""

    def __init__(self, X: Matrix, step: Correction, meta: pd.DataFrame) -> None:
        self._X, self._step, self._meta = X, step, meta

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._X.shape[0], self[:1].shape[1])

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._step.apply(np.asarray(self._X[rows], np.float64), self._meta.iloc[rows])


def _require_labels(X: Matrix, meta: pd.DataFrame) -> None:
    if X.shape[0] != len(meta):
        raise SchemaError(
            f"{X.shape[0]} rows of values and {len(meta)} of labels",
            expected="a label for each row",
        )


def _reference_rows(rows: int, control: _Control) -> np.ndarray:
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
