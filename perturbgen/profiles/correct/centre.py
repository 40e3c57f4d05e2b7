"""Centring: what a batch adds to every profile, read off its controls and taken away.

Standardising by controls: a control's spread becomes the unit of every feature.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles.correct.base import Correction, check_rows, known_groups
from perturbgen.profiles.groups import (
    Key,
    Rows,
    blocks,
    group_means,
    group_moments,
    grouping,
    indicator,
    reference_rows,
)

log = logging.getLogger(__name__)


class NestedCentre(Correction):
    """Subtract the mean control of each row's own group, one group a tuple of ``by`` (experiment, plate, site).

    A group with fewer than ``min_reference`` controls, or one never seen, takes the mean of its parent (the tuple
    without its last label), at last that of all controls; with ``fallback="global"`` the latter at once. As long as
    every tuple has its controls, the order of ``by`` changes nothing. ``strength`` k shrinks a group's mean to its
    parent's, n/(n + k), since the mean of six wells is itself noise that the whole plate would share.
    """

    def __init__(
        self,
        by: Sequence[str],
        *,
        min_reference: int = 1,
        fallback: Literal["parent", "global"] = "parent",
        strength: float = 0.0,
    ) -> None:
        self.by, self.min_reference, self.fallback, self.strength = (
            tuple(by),
            min_reference,
            fallback,
            strength,
        )
        self.centres: dict[Key, np.ndarray] = {}

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """Means of the control rows of every tuple and of its parents."""
        check_rows(X, meta)
        keys, codes = grouping(meta, self.by)
        count, mean = group_means(X, reference_rows(len(meta), control), codes, len(keys))
        self.centres = {}
        for level in range(len(self.by) + 1):
            parents = pd.factorize(pd.Series([key[:level] for key in keys], dtype=object))
            for number, key in enumerate(parents[1]):
                rows = parents[0] == number
                self._add(key, int(count[rows].sum()), count[rows] @ mean[rows])
        short = [key for key, n in zip(keys, count, strict=True) if n < self.min_reference]
        if short:
            log.warning(
                "%d of %d groups of %s have fewer than %d controls and take their parent's mean, the first %s",
                len(short),
                len(keys),
                "/".join(self.by),
                self.min_reference,
                short[0],
            )
        return self

    def _add(self, key: Key, count: int, total: np.ndarray) -> None:
        """Keep a tuple's mean, if it rests on enough controls; the root's always."""
        if not key:
            self.centres[key] = total / count
        elif count >= max(self.min_reference, 1):
            parent = self.centre(key[:-1])
            self.centres[key] = (total + self.strength * parent) / (count + self.strength)

    def centre(self, key: Key) -> np.ndarray:
        """The mean that a tuple is given (features,)."""
        if key in self.centres or not key:
            return self.centres[key]
        return self.centre(key[:-1] if self.fallback == "parent" else ())

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row minus its tuple's centre."""
        keys, codes = grouping(meta, self.by)
        return values - np.stack([self.centre(key) for key in keys])[codes]


class SequentialCentroids(Correction):
    """For comparison only: subtract the mean of *all* rows by one label, then by the next, and so on.

    It depends on the order of the labels, pools plate 1 of one experiment with plate 1 of another, and removes
    whatever its labels stand for: centring by the disease removes the disease.
    """

    def __init__(self, by: Sequence[str]) -> None:
        self.by = tuple(by)
        self.centres: list[tuple[str, dict[Key, int], np.ndarray]] = []

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """Means by each label of what the labels before it left."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        self.centres = []
        for name in self.by:
            keys, codes = grouping(meta, [name])
            left = self.transform(X, meta)
            count, mean = group_means(left, rows, codes, len(keys))
            if not count.all():
                raise SchemaError(f"{name} {keys[int(count.argmin())][0]} has no row to centre on")
            self.centres.append((name, {key: i for i, key in enumerate(keys)}, mean))
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row minus the centroids of its labels, in order."""
        for name, known, mean in self.centres:
            values = values - mean[known_groups(known, meta, [name], what="sequential centroids")]
        return values


class AdditiveEffects(Correction):
    """Subtract effects that add up, e.g. ``[["experiment", "plate"], ["site"]]``: a plate's and, over all plates, a
    site's.

    Least squares of the control rows on an intercept and one indicator a group, the shortest solution; what is taken
    away has mean zero over the controls. In a balanced design this is centring by one term after the other, in any
    order.
    """

    def __init__(self, terms: Sequence[Sequence[str]]) -> None:
        self.terms = tuple(tuple(term) for term in terms)
        self.known: list[dict[Key, int]] = []
        self.effects = np.empty((0, 0))

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """Solve the normal equations, gathered in one pass over the controls."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        self.known = [
            {key: i for i, key in enumerate(grouping(meta.iloc[rows], term)[0])}
            for term in self.terms
        ]
        size = 1 + sum(map(len, self.known))
        gram, right = np.zeros((size, size)), np.zeros((size, X.shape[1]))
        for block in blocks(len(rows)):
            design = self._design(meta.iloc[rows[block]])
            gram += (design @ design.T).toarray()
            right += design @ np.asarray(X[rows[block]], np.float64)
        solution = np.linalg.pinv(gram, hermitian=True) @ right
        solution[0] = -(gram[0, 1:] @ solution[1:]) / len(rows)
        self.effects = solution
        return self

    def _design(self, meta: pd.DataFrame):  # type: ignore[no-untyped-def]  # a sparse (coefficients, rows) matrix
        """An intercept and the indicators of every term, (coefficients, rows)."""
        from scipy.sparse import vstack

        parts = [indicator(np.zeros(len(meta), np.int64), 1)]
        for term, known in zip(self.terms, self.known, strict=True):
            parts.append(
                indicator(known_groups(known, meta, term, what="additive effects"), len(known))
            )
        return vstack(parts, format="csr")

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row minus the fitted effects of its groups."""
        return values - self._design(meta).T @ self.effects


_Method = Literal["sd", "mad", "percentile"]
_CONSTANT = 1e-9  # a spread below this share of a feature's typical size is rounding, not variation


class ControlScaler(Correction):
    """(x - location) / scale with both read off the controls of each group of ``by`` (none: all controls).

    ``sd``: mean and standard deviation; ``mad``: median and 1.4826 MAD; ``percentile``: the 1st percentile becomes 0
    and the 99th 1. ``shrink`` k > 0 pulls a group of n controls towards all controls: n/(n+k) of its own location and
    variance. Groups with fewer than ``min_reference`` controls take those of all controls. A feature that is constant
    over the controls has no unit and becomes 0.
    """

    def __init__(
        self,
        by: Sequence[str] = (),
        *,
        method: _Method = "sd",
        shrink: float = 0.0,
        min_reference: int = 2,
    ) -> None:
        self.by, self.method, self.shrink, self.min_reference = (
            tuple(by),
            method,
            shrink,
            min_reference,
        )
        self.known: dict[Key, int] = {}
        self.location = self.scale = np.empty((0, 0))

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """Location and scale of every group."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        keys, codes = grouping(meta, self.by)
        spread = _moment_spread if self.method == "sd" else _quantile_spread(self.method)
        _, whole, whole_scale = spread(X, rows, np.zeros(len(meta), np.int64), 1)
        count, location, scale = (
            spread(X, rows, codes, len(keys))
            if self.by
            else (np.array([len(rows)]), whole, whole_scale)
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
            log.warning(
                "%d of %d groups have fewer than %d controls and are scaled by all controls, the first %s",
                len(short),
                len(keys),
                self.min_reference,
                short[0],
            )
        constant = self.scale <= _CONSTANT * np.maximum(np.abs(self.location), _CONSTANT)
        if constant.any():
            log.warning(
                "%d features are constant over the controls of some group and become 0 there",
                constant.any(axis=0).sum(),
            )
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

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """Nothing to learn."""
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """asinh of the block."""
        return np.arcsinh(values)


def _moment_spread(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means and standard deviations by group."""
    count, mean, variance = group_moments(X, rows, codes, groups)
    return count, mean, np.sqrt(variance)


def _quantile_spread(method: _Method):  # type: ignore[no-untyped-def]  # a function as moment_spread
    """Counts, robust locations and scales by group; the controls of one group are held at a time."""

    def spread(
        X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
