"""Centring and scaling by controls: what a batch adds to profiles, and the unit of a feature."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles.correct.base import Correction
from perturbgen.profiles.groups import Groups, Key, Matrix

log = logging.getLogger(__name__)

_CONSTANT = 1e-9  # a spread below this share of a feature's typical size is rounding, not variation
_Spread = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, location and scale of each group


class NestedCentre(Correction):
    """Subtract the mean control of each row's own group.

    A group is a tuple of ``by`` (experiment, plate, site). One with fewer than ``min_reference``
    controls, or one never seen, takes the mean of its parent (the tuple without its last label), at
    last that of all controls; with ``fallback="global"`` the latter at once. As long as every tuple
    has its controls, the order of ``by`` changes nothing. ``strength`` k shrinks a group's mean to
    its parent's, n/(n + k), since the mean of six wells is itself noise that the whole plate would
    share.
    """

    def __init__(
        self,
        by: Sequence[str],
        *,
        min_reference: int = 1,
        fallback: Literal["parent", "global"] = "parent",
        strength: float = 0.0,
    ) -> None:
        self.by, self.min_reference = tuple(by), min_reference
        self.fallback, self.strength = fallback, strength
        self.centres: dict[Key, np.ndarray] = {}

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        groups = Groups.of(meta, self.by)
        count, mean = groups.means(X, rows)
        self.centres = {}
        # from the root down, since a centre is shrunk to its parent's
        for level in range(len(self.by) + 1):
            parents = pd.factorize(pd.Series([key[:level] for key in groups.keys], dtype=object))
            for number, key in enumerate(parents[1]):
                own = parents[0] == number
                n, total = int(count[own].sum()), count[own] @ mean[own]
                if not key:
                    self.centres[key] = total / n
                elif n >= max(self.min_reference, 1):
                    parent = self._centre(key[:-1])
                    self.centres[key] = (total + self.strength * parent) / (n + self.strength)
        what = f"groups of {'/'.join(self.by)} have fewer than %d controls and take their "
        _warn_of_few(count, groups.keys, self.min_reference, what + "parent's mean")

    def _centre(self, key: Key) -> np.ndarray:
        """The mean that a tuple is given (features,)."""
        if key in self.centres or not key:
            return self.centres[key]
        return self._centre(key[:-1] if self.fallback == "parent" else ())

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row minus its tuple's centre."""
        groups = Groups.of(meta, self.by)
        return values - np.stack([self._centre(key) for key in groups.keys])[groups.codes]


def _warn_of_few(count: np.ndarray, keys: list[Key], least: int, what: str) -> None:
    short = [key for key, n in zip(keys, count, strict=True) if n < least]
    if short:
        log.warning(f"%d of %d {what}, the first %s", len(short), len(keys), least, short[0])


def _known_groups(
    known: dict[Key, int], meta: pd.DataFrame, by: Sequence[str], *, what: str
) -> np.ndarray:
    """For each row the number of its fitted group; a group that was not fitted is an error."""
    groups = Groups.of(meta, by)
    absent = [key for key in groups.keys if key not in known]
    if absent:
        raise SchemaError(
            f"{what}: {len(absent)} groups of {'/'.join(by)} were not there when it was fitted, "
            f"the first {absent[0]}",
            expected="the groups of the fit",
            fix="fit on controls of every batch that is to be transformed",
        )
    return np.array([known[key] for key in groups.keys])[groups.codes]


class ControlScaler(Correction):
    """(x - location) / scale, both of the controls of each group of ``by`` (none: of all).

    * ``sd``: mean and standard deviation;
    * ``mad``: median and 1.4826 MAD;
    * ``percentile``: the 1st percentile becomes 0 and the 99th 1.

    ``shrink`` k > 0 pulls a group of n controls towards all controls: n/(n+k) of its own location
    and variance. Groups with fewer than ``min_reference`` controls take those of all controls. A
    feature that is constant over the controls has no unit and becomes 0.
    """

    def __init__(
        self,
        by: Sequence[str] = (),
        *,
        method: Literal["sd", "mad", "percentile"] = "sd",
        shrink: float = 0.0,
        min_reference: int = 2,
    ) -> None:
        self.by, self.method = tuple(by), method
        self.shrink, self.min_reference = shrink, min_reference
        self.known: dict[Key, int] = {}
        self.location = self.scale = np.empty((0, 0))

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        groups = Groups.of(meta, self.by)
        count, self.location, self.scale = self._spread(X, Groups.of(meta, ()), rows)
        if self.by:
            whole, whole_scale = self.location, self.scale
            count, location, scale = self._spread(X, groups, rows)
            # six wells a plate scale worse than all controls do: they are drawn towards these
            share = np.where(count >= self.min_reference, count / (count + self.shrink), 0.0)
            own = share[:, None]
            self.location = own * location + (1 - own) * whole
            self.scale = np.sqrt(own * scale**2 + (1 - own) * whole_scale**2)
            what = "groups have fewer than %d controls and are scaled by all controls"
            _warn_of_few(count, groups.keys, self.min_reference, what)
        self.known = {key: i for i, key in enumerate(groups.keys)}
        constant = self.scale <= _CONSTANT * np.maximum(np.abs(self.location), _CONSTANT)
        if constant.any():
            log.warning(
                "%d features are constant over the controls of some group and become 0 there",
                constant.any(axis=0).sum(),
            )
        self.scale = np.where(constant, np.inf, self.scale)

    def _spread(self, X: Matrix, groups: Groups, rows: np.ndarray) -> _Spread:
        """Rows, location and scale by group; quantiles need the controls of one group in memory."""
        if self.method == "sd":
            return groups.moments(X, rows)
        codes = groups.codes[rows]
        location, scale = np.zeros((2, len(groups), X.shape[1]))
        for group in np.unique(codes):
            values = np.asarray(X[rows[codes == group]], np.float64)
            if self.method == "mad":
                location[group] = np.median(values, axis=0)
                scale[group] = 1.4826 * np.median(np.abs(values - location[group]), axis=0)
            else:
                location[group], high = np.percentile(values, [1, 99], axis=0)
                scale[group] = high - location[group]
        return np.bincount(codes, minlength=len(groups)), location, scale

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row in units of its group's controls."""
        if not self.by:
            return (values - self.location) / self.scale
        groups = _known_groups(self.known, meta, self.by, what="control scaling")
        return (values - self.location[groups]) / self.scale[groups]


class Compress(Correction):
    """asinh of every value: linear within a few units, logarithmic beyond.

    It keeps single features of standardised profiles from outweighing the rest, and learns nothing.
    """

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        pass

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """asinh of the block."""
        return np.arcsinh(values)
