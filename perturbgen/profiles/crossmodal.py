"""Spaces in which profiles of two assays can be compared, each in closed form from the assays' singular vectors.

``rgcca(decompose(x), decompose(y), components=10, tau=0.1)`` of rows x (rows, p) and y (rows, q), the same
perturbations in the same order, gives a :class:`Space`; its two projections take new rows there. Decomposing costs
nearly all, so that a grid of settings is cheap.

The methods that are compared, each with the settings among which inner folds choose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.profiles.linear import Projection, check

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Spectrum:
    """Standardised rows, U diag(s) V' with U (rows, r), s (r,) and V (features, r), r the rank."""

    mean: _Array
    weight: _Array  # 1 / SD; 0 where a feature is constant
    u: _Array
    s: _Array
    v: _Array

    def leading(self, components: int) -> Spectrum:
        """The largest ``components`` of it."""
        return Spectrum(
            self.mean,
            self.weight,
            self.u[:, :components],
            self.s[:components],
            self.v[:, :components],
        )

    def projection(self, axes: _Array, strength: _Array) -> Projection:
        """What standardises as the training rows, then projects on ``axes`` (features, components)."""
        return Projection(self.mean, self.weight[:, None] * axes, strength)


@dataclass(frozen=True)
class Space:
    """Where both assays' rows are compared, by cosine."""

    first: Projection
    second: Projection


def decompose(x: _Array) -> Spectrum:
    """The thin singular value decomposition of standardised (rows, features); directions without variance are left out.

    A feature whose SD is a 10^-10 of its own size is constant but for rounding, and is left out too.
    """
    x = check(x, 1)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    varies = spread > 1e-10 * np.maximum(np.abs(mean), 1e-300)
    if not varies.any():
        raise SchemaError(
            "no feature varies over the training rows", expected="profiles that differ"
        )
    weight = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    u, s, vt = np.linalg.svd((x - mean) * weight, full_matrices=False)
    rank = int((s > s[0] * 1e-10).sum())
    return Spectrum(mean, weight, u[:, :rank], s[:rank], vt[:rank].T)


def _rgcca(x: Spectrum, y: Spectrum, *, components: int, tau: float) -> Space:
    """Regularised canonical correlation of two blocks (Tenenhaus 2011): max cov(Xa, Yb) with a'M_x a = b'M_y b = 1.

    M = (1 - tau) C + tau I with C the block's covariance. tau = 0 is CCA, tau = 1 is PLS (both of standardised
    features); axes are orthogonal in M. With X = U S V' the weights are a = V D^-1/2 p, D = (1 - tau) S^2/n + tau,
    where p and q are singular vectors of D_x^-1/2 (S_x U_x'U_y S_y / n) D_y^-1/2. The variates have variance one in
    training; ``strength`` is their training correlation.
    """
    if not 0 <= tau <= 1:
        raise ConfigError(f"tau is {tau}", expected="a number from 0 (CCA) to 1 (PLS)")
    n = _require_same_rows(x, y)
    shrunk = [np.sqrt((1 - tau) * side.s**2 / n + tau) for side in (x, y)]
    cross = (x.s / shrunk[0])[:, None] * (x.u.T @ y.u) * (y.s / shrunk[1]) / n
    p, _, qt = np.linalg.svd(cross, full_matrices=False)
    axes, scores = [], []
    for side, root, weights in (
        (x, shrunk[0], p[:, :components]),
        (y, shrunk[1], qt[:components].T),
    ):
        inner = weights / root[:, None]
        score = side.u @ (side.s[:, None] * inner)
        size = np.sqrt((score**2).mean(axis=0))
        axes.append(side.v @ (inner / size))
        scores.append(score / size)
    strength = (scores[0] * scores[1]).mean(axis=0)
    return Space(x.projection(axes[0], strength), y.projection(axes[1], strength))


def _for_matching(space: Space) -> Space:
    """Variates times sqrt(r), r their training correlation: the product of two rows is what they should share."""
    weight = np.sqrt(np.clip(space.first.strength, 0, None))
    return Space(
        *(
            Projection(side.mean, side.matrix * weight, side.strength)
            for side in (space.first, space.second)
        )
    )


def _procrustes(x: Spectrum, y: Spectrum, *, components: int) -> Space:
    """The rotation of x's leading principal components onto y's that leaves the least squared distance."""
    _require_same_rows(x, y)
    size = min(components, len(x.s), len(y.s))
    x, y = x.leading(size), y.leading(size)
    left, kept, right = np.linalg.svd((x.s[:, None] * (x.u.T @ y.u)) * y.s)
    return Space(x.projection(x.v @ left @ right, kept), y.projection(y.v, kept))


def _regression(x: Spectrum, y: Spectrum, *, ridge: float) -> Space:
    """Ridge regression of y's standardised features on x's: x's rows become predictions of y's (rows, q).

    The penalty is ``ridge`` times the mean squared singular value of x.
    """
    if ridge < 0:
        raise ConfigError(f"ridge is {ridge}", expected="zero or more")
    _require_same_rows(x, y)
    shrink = x.s / (x.s**2 + ridge * (x.s**2).mean())
    coefficients = x.v @ (shrink[:, None] * (x.u.T @ y.u) * y.s @ y.v.T)
    itself, none = np.eye(len(y.weight)), np.ones(len(y.weight))
    return Space(x.projection(coefficients, none), y.projection(itself, none))


def _require_same_rows(x: Spectrum, y: Spectrum) -> int:
    """How many rows both have."""
    if len(x.u) != len(y.u):
        raise SchemaError(
            f"{len(x.u)} and {len(y.u)} rows", expected="the same perturbations in both assays"
        )
    return len(x.u)


Directions = tuple[
    Space, Space
]  # the space in which the first assay asks, and the one in which the second does


@dataclass(frozen=True)
class Setting:
    """One way to fit: ``fit`` takes the two assays' spectra of the same training rows."""

    name: str
    fit: Callable[[Spectrum, Spectrum], Directions]

    def __str__(self) -> str:
        return self.name


def correlated(tau: float, components: int, before: int | None = None) -> Setting:
    """RGCCA, of the leading ``before`` principal components of each assay where this is given."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        if before is not None:
            x, y = x.leading(before), y.leading(before)
        space = _for_matching(_rgcca(x, y, components=components, tau=tau))
        return space, space

    first = "" if before is None else f"{before} principal components, "
    return Setting(f"{first}tau {tau:g}, {components} variates", fit)


def _rotated(components: int) -> Setting:
    """Procrustes."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        space = _procrustes(x, y, components=components)
        return space, space

    return Setting(f"{components} principal components", fit)


def _predicted(ridge: float) -> Setting:
    """Ridge regression of the assay that is searched on the one that asks."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        back = _regression(y, x, ridge=ridge)
        return _regression(x, y, ridge=ridge), Space(back.second, back.first)

    return Setting(f"ridge {ridge:g}", fit)


def torn(setting: Setting, rng: np.random.Generator) -> Setting:
    """The same fit to training pairs that were torn apart: what is left is what the protocol gives away."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        return setting.fit(x, replace(y, u=y.u[rng.permutation(len(y.u))]))

    return Setting(f"{setting}, pairs torn apart", fit)


_VARIATES: Final = (5, 10, 20, 40)
_TAUS: Final = (0.01, 0.1, 0.3, 0.6)


def known(first: _Array, second: _Array) -> Setting:
    """Maps (features, dimensions) that are given, not fitted: the truth of a fixture, the most there is to reach."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        space = Space(
            *(
                Projection(side.mean, axes, np.ones(axes.shape[1]))
                for side, axes in ((x, first), (y, second))
            )
        )
        return space, space

    return Setting("the planted maps", fit)


def methods(*, first_features: int, second_features: int) -> dict[str, list[Setting]]:
    """Names and settings; no more variates than the smaller assay has features."""
    few, many = sorted((first_features, second_features))
    counts = sorted({min(count, few) for count in _VARIATES})
    before = sorted({min(count, many) for count in (10, 20, 40, 80)})
    leading = [None, *before[1:2]]
    return {
        "Procrustes": [_rotated(count) for count in before],
        "regression": [_predicted(ridge) for ridge in (0.1, 1.0, 10.0, 100.0)],
        "PLS": [correlated(1.0, count) for count in counts],
        "CCA": [
            correlated(0.0, count, size) for size in before for count in counts if count <= size
        ],
        "RGCCA": [
            correlated(tau, count, size) for size in leading for tau in _TAUS for count in counts
        ],
    }
