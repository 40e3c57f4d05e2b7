"""Standardising by controls: a control's spread becomes the unit of every feature."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import pandas as pd

from perturbgen.profiles.imaging.correct.base import Correction, check_rows, known_groups
from perturbgen.profiles.imaging.groups import Key, Rows, group_moments, grouping, reference_rows

log = logging.getLogger(__name__)

Method = Literal["sd", "mad", "percentile"]
CONSTANT = 1e-9  # a spread below this share of a feature's typical size is rounding, not variation


class ControlScaler(Correction):
    """(x - location) / scale with both read off the controls of each group of ``by`` (none: all controls).

    ``sd``: mean and standard deviation; ``mad``: median and 1.4826 MAD; ``percentile``: the 1st percentile becomes 0
    and the 99th 1. ``shrink`` k > 0 pulls a group of n controls towards all controls: n/(n+k) of its own location and
    variance. Groups with fewer than ``min_reference`` controls take those of all controls. A feature that is constant
    over the controls has no unit and becomes 0.
    """

    def __init__(
        self, by: Sequence[str] = (), *, method: Method = "sd", shrink: float = 0.0, min_reference: int = 2
    ) -> None:
        self.by, self.method, self.shrink, self.min_reference = tuple(by), method, shrink, min_reference
        self.known: dict[Key, int] = {}
        self.location = self.scale = np.empty((0, 0))

    def fit(self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None) -> Self:
        """Location and scale of every group."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        keys, codes = grouping(meta, self.by)
        spread = moment_spread if self.method == "sd" else quantile_spread(self.method)
        _, whole, whole_scale = spread(X, rows, np.zeros(len(meta), np.int64), 1)
        count, location, scale = (
            spread(X, rows, codes, len(keys)) if self.by else (np.array([len(rows)]), whole, whole_scale)
        )
        own = np.where(count >= self.min_reference, count / (count + self.shrink), 0.0)[:, None]
        own = own if self.by else np.ones((1, 1))
        self.known = {key: i for i, key in enumerate(keys)}
        self.location = own * location + (1 - own) * whole
        self.scale = np.sqrt(own * scale**2 + (1 - own) * whole_scale**2)
        self._report(count, keys)
        return self

    def _report(self, count: np.ndarray, keys: list[Key]) -> None:
        """Warn of groups with too few controls, and set apart what has no spread."""
        if self.by and (count < self.min_reference).any():
            short = [key for key, n in zip(keys, count, strict=True) if n < self.min_reference]
            log.warning("%d of %d groups have fewer than %d controls and are scaled by all controls, the first %s",
                        len(short), len(keys), self.min_reference, short[0])  # fmt: skip
        constant = self.scale <= CONSTANT * np.maximum(np.abs(self.location), CONSTANT)
        if constant.any():
            log.warning("%d features are constant over the controls of some group and become 0 there",
                        constant.any(axis=0).sum())  # fmt: skip
        self.scale = np.where(constant, np.inf, self.scale)

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row in units of its group's controls."""
        if not self.by:
            return (values - self.location) / self.scale
        groups = known_groups(self.known, meta, self.by, what="control scaling")
        return (values - self.location[groups]) / self.scale[groups]


class Compress(Correction):
    """asinh of every value: linear within a few units, logarithmic beyond, so that no feature outshouts the rest.

    For standardised profiles; it learns nothing.
    """

    def fit(self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None) -> Self:
        """Nothing to learn."""
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """asinh of the block."""
        return np.arcsinh(values)


def moment_spread(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means and standard deviations by group."""
    count, mean, variance = group_moments(X, rows, codes, groups)
    return count, mean, np.sqrt(variance)


def quantile_spread(method: Method):  # type: ignore[no-untyped-def]  # a function as moment_spread
    """Counts, robust locations and scales by group; the controls of one group are held at a time."""

    def spread(X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        location, scale = np.zeros((groups, X.shape[1])), np.zeros((groups, X.shape[1]))
        for group in np.unique(codes[rows]):
            values = np.asarray(X[rows[codes[rows] == group]], np.float64)
            if method == "mad":
                location[group] = np.median(values, axis=0)
                scale[group] = 1.4826 * np.median(np.abs(values - location[group]), axis=0)
            else:
                location[group], high = np.percentile(values, [1, 99], axis=0)
                scale[group] = high - location[group]
        return np.bincount(codes[rows], minlength=groups), location, scale

    return spread
