"""Spaces in which profiles of two assays are compared, and how well each finds its partner there.

Every space has a closed form in the assays' singular vectors, and decomposing costs nearly all, so
that a grid of settings is cheap. The protocol (:meth:`PairedProfiles.match`) fits on training
perturbations, chooses settings by inner folds of these, and asks about withheld ones. All doses of
a compound lie in one fold, outer and inner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.stats import choose, deal
from perturbgen.profiles.linear import Projection, finite_rows, unit
from perturbgen.profiles.table import Profiles
from perturbgen.retrieval import MatchedFold, match_fold

_Array = np.ndarray[Any, Any]
_VARIATES: Final = (5, 10, 20, 40)
_TAUS: Final = (0.01, 0.1, 0.3, 0.6)
_TEARINGS: Final = 10
TORN: Final = "pairs torn apart"


@dataclass(frozen=True)
class _Spectrum:
    """Standardised rows, U diag(s) V' with U (rows, r), s (r,) and V (features, r), r the rank."""

    mean: _Array
    weight: _Array  # 1 / SD; 0 where a feature is constant
    u: _Array
    s: _Array
    v: _Array

    def leading(self, components: int) -> _Spectrum:
        """The largest ``components`` of it."""
        u, s, v = self.u[:, :components], self.s[:components], self.v[:, :components]
        return _Spectrum(self.mean, self.weight, u, s, v)

    def projection(self, axes: _Array, strength: _Array) -> Projection:
        """Standardising as the training rows, then projecting on axes (features, components)."""
        return Projection(self.mean, self.weight[:, None] * axes, strength)


@dataclass(frozen=True)
class _Space:
    """Where both assays' rows are compared, by cosine."""

    first: Projection
    second: Projection


# The space in which the first assay asks, and the one in which the second does.
_Directions = tuple[_Space, _Space]


def decompose(x: _Array) -> _Spectrum:
    """The thin singular value decomposition of standardised (rows, features).

    Directions without variance are left out.
    """
    x = finite_rows(x)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    # a feature whose SD is a 10^-10 of its own size is constant but for rounding
    varies = spread > 1e-10 * np.maximum(np.abs(mean), 1e-300)
    if not varies.any():
        raise SchemaError(
            "no feature varies over the training rows", expected="profiles that differ"
        )
    weight = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    u, s, vt = np.linalg.svd((x - mean) * weight, full_matrices=False)
    rank = int((s > s[0] * 1e-10).sum())
    return _Spectrum(mean, weight, u[:, :rank], s[:rank], vt[:rank].T)


def _rgcca(x: _Spectrum, y: _Spectrum, *, components: int, tau: float) -> _Space:
    """Regularised canonical correlation of two blocks (Tenenhaus 2011).

        max cov(Xa, Yb)  with  a'M_x a = b'M_y b = 1,  M = (1 - tau) C + tau I

    C is the block's covariance. tau = 0 is CCA, tau = 1 is PLS (both of standardised features);
    axes are orthogonal in M. With X = U S V' the weights are

        a = V_x D_x^-1/2 p,  b = V_y D_y^-1/2 q,  D = (1 - tau) S^2/n + tau

    with p and q singular vectors of D_x^-1/2 (S_x U_x'U_y S_y / n) D_y^-1/2. The variates have
    variance one in training; ``strength`` is their training correlation.
    """
    if not 0 <= tau <= 1:
        raise ConfigError(f"tau is {tau}", expected="a number from 0 (CCA) to 1 (PLS)")
    n = _require_same_rows(x, y)
    shrunk = [np.sqrt((1 - tau) * side.s**2 / n + tau) for side in (x, y)]
    cross = (x.s / shrunk[0])[:, None] * (x.u.T @ y.u) * (y.s / shrunk[1]) / n
    p, _, qt = np.linalg.svd(cross, full_matrices=False)
    axes, scores = [], []
    sides = ((x, shrunk[0], p[:, :components]), (y, shrunk[1], qt[:components].T))
    for side, root, weights in sides:
        inner = weights / root[:, None]
        score = side.u @ (side.s[:, None] * inner)
        size = np.sqrt((score**2).mean(axis=0))
        axes.append(side.v @ (inner / size))
        scores.append(score / size)
    strength = (scores[0] * scores[1]).mean(axis=0)
    return _Space(x.projection(axes[0], strength), y.projection(axes[1], strength))


def _for_matching(space: _Space) -> _Space:
    """Variates times sqrt(r), r their training correlation.

    The product of two rows is then what they are expected to share.
    """
    # a variate that is negatively correlated in training says nothing
    weight = np.sqrt(np.clip(space.first.strength, 0, None))
    first, second = (
        Projection(side.mean, side.matrix * weight, side.strength)
        for side in (space.first, space.second)
    )
    return _Space(first, second)


def _procrustes(x: _Spectrum, y: _Spectrum, *, components: int) -> _Space:
    """The rotation of x's leading principal components onto y's with the least squared distance."""
    _require_same_rows(x, y)
    size = min(components, len(x.s), len(y.s))
    x, y = x.leading(size), y.leading(size)
    left, kept, right = np.linalg.svd((x.s[:, None] * (x.u.T @ y.u)) * y.s)
    return _Space(x.projection(x.v @ left @ right, kept), y.projection(y.v, kept))


def _regression(x: _Spectrum, y: _Spectrum, *, ridge: float) -> _Space:
    """Ridge regression of y's standardised features on x's: x's rows become predictions of y's.

    The penalty is ``ridge`` times the mean squared singular value of x.
    """
    if ridge < 0:
        raise ConfigError(f"ridge is {ridge}", expected="zero or more")
    _require_same_rows(x, y)
    shrink = x.s / (x.s**2 + ridge * (x.s**2).mean())
    coefficients = x.v @ (shrink[:, None] * (x.u.T @ y.u) * y.s @ y.v.T)
    itself, none = np.eye(len(y.weight)), np.ones(len(y.weight))
    return _Space(x.projection(coefficients, none), y.projection(itself, none))


def _require_same_rows(x: _Spectrum, y: _Spectrum) -> int:
    if len(x.u) != len(y.u):
        raise SchemaError(
            f"{len(x.u)} and {len(y.u)} rows", expected="the same perturbations in both assays"
        )
    return len(x.u)


@dataclass(frozen=True)
class Setting:
    """One way to fit: ``fit`` takes the two assays' spectra of the same training rows."""

    name: str
    fit: Callable[[_Spectrum, _Spectrum], _Directions]

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def correlated(tau: float, components: int, before: int | None = None) -> Setting:
        """RGCCA, of the leading ``before`` principal components of each assay if this is given."""

        def fit(x: _Spectrum, y: _Spectrum) -> _Directions:
            if before is not None:
                x, y = x.leading(before), y.leading(before)
            space = _for_matching(_rgcca(x, y, components=components, tau=tau))
            return space, space

        first = "" if before is None else f"{before} principal components, "
        return Setting(f"{first}tau {tau:g}, {components} variates", fit)

    @staticmethod
    def rotated(components: int) -> Setting:
        """Procrustes of the leading principal components."""

        def fit(x: _Spectrum, y: _Spectrum) -> _Directions:
            space = _procrustes(x, y, components=components)
            return space, space

        return Setting(f"{components} principal components", fit)

    @staticmethod
    def predicted(ridge: float) -> Setting:
        """Ridge regression of the assay that is searched on the one that asks."""

        def fit(x: _Spectrum, y: _Spectrum) -> _Directions:
            back = _regression(y, x, ridge=ridge)
            return _regression(x, y, ridge=ridge), _Space(back.second, back.first)

        return Setting(f"ridge {ridge:g}", fit)

    @staticmethod
    def given(first: _Array, second: _Array) -> Setting:
        """Maps (features, dimensions) given, not fitted: a fixture's truth, the ceiling."""

        def fit(x: _Spectrum, y: _Spectrum) -> _Directions:
            one, other = (
                Projection(side.mean, axes, np.ones(axes.shape[1]))
                for side, axes in ((x, first), (y, second))
            )
            return (_Space(one, other),) * 2

        return Setting("the planted maps", fit)


@dataclass(frozen=True)
class PairedProfiles:
    """Profiles of the same perturbations, in the same order, by two assays.

    The first's labels are the pairs': an index of names, and ``compound``.
    """

    first: Profiles
    second: Profiles

    def __len__(self) -> int:
        return len(self.first)

    @property
    def meta(self) -> pd.DataFrame:
        """The labels of the perturbations."""
        return self.first.meta

    def methods(self) -> dict[str, list[Setting]]:
        """The methods that are compared, each with the settings among which inner folds choose.

        No method has more variates than the smaller assay has features.
        """
        few, many = sorted((len(self.first.features), len(self.second.features)))
        counts = sorted({min(count, few) for count in _VARIATES})
        before = sorted({min(count, many) for count in (10, 20, 40, 80)})
        leading = [None, *before[1:2]]
        return {
            "Procrustes": [Setting.rotated(count) for count in before],
            "regression": [Setting.predicted(ridge) for ridge in (0.1, 1.0, 10.0, 100.0)],
            "PLS": [Setting.correlated(1.0, count) for count in counts],
            "CCA": [
                Setting.correlated(0.0, count, size)
                for size in before
                for count in counts
                if count <= size
            ],
            "RGCCA": [
                Setting.correlated(tau, count, size)
                for size in leading
                for tau in _TAUS
                for count in counts
            ],
        }

    def match(
        self,
        methods: Mapping[str, Sequence[Setting]],
        *,
        folds: int,
        inner: int,
        rng: np.random.Generator,
        torn_from: str = "",
    ) -> dict[str, Matched]:
        """Every method on the same folds, each with the setting that its inner folds rank best.

        The method ``torn_from`` is repeated with training pairs torn apart: what is left is what
        the protocol gives away. Scores are averaged over ten tearings, since one random map may
        point the right way by luck.
        """
        found: dict[str, Matched] = {
            name: Matched([], [], []) for name in [*methods, *([TORN] if torn_from else [])]
        }
        outer = _splits(self, np.arange(len(self)), folds, rng=rng)
        for split in track(outer, "folds", folds):
            # settings are chosen without the withheld fold, or the best of a grid would be luck
            within = list(_splits(self, split.train, inner, rng=rng))
            for name, grid in methods.items():
                best = _choose(self, within, grid)
                asked = {name: _ask(self, split, best.fit(split.first, split.second))}
                found[name].chosen.append(str(best))
                if name == torn_from:
                    asked[TORN] = _ask_torn(self, split, best, rng)
                for key, (forward, backward) in asked.items():
                    found[key].forward.append(forward)
                    found[key].backward.append(backward)
        return found

    def fit_chosen(
        self, train: _Array, grid: Sequence[Setting], *, inner: int, rng: np.random.Generator
    ) -> tuple[Projection, Projection]:
        """The space of both assays by the setting that folds of the ``train`` rows rank best."""
        best = _choose(self, list(_splits(self, train, inner, rng=rng)), grid)
        sides = (decompose(side.values[train]) for side in (self.first, self.second))
        space = best.fit(*sides)[0]
        return space.first, space.second

    def variate_correlations(
        self, setting: Setting, *, folds: int, rng: np.random.Generator
    ) -> pd.DataFrame:
        """(folds, variates) correlation of each pair of variates over withheld perturbations."""
        rows = []
        for split in _splits(self, np.arange(len(self)), folds, rng=rng):
            sides = _embedded(self, split.held, setting.fit(split.first, split.second)[0])
            x, y = (side - side.mean(axis=0) for side in sides)
            size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
            rows.append((x * y).sum(axis=0) / np.where(size > 0, size, np.inf))
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Split:
    """Both assays' spectra of the training rows, and the rows that are withheld."""

    train: _Array  # rows of the pairs
    held: _Array
    first: _Spectrum
    second: _Spectrum


@dataclass(frozen=True)
class Matched:
    """A method's folds in each direction, and the setting chosen in each fold."""

    forward: list[MatchedFold]
    backward: list[MatchedFold]
    chosen: list[str]


def _compound_folds(compounds: _Array, folds: int, *, rng: np.random.Generator) -> _Array:
    """(rows,) the fold of each row."""
    # doses of a compound are told apart by neither assay: they may not be on both sides
    codes, names = pd.factorize(np.asarray(compounds, object))
    if folds < 2:
        raise ConfigError(f"{folds} folds", expected="2 or more")
    if len(names) < 2 * folds:
        raise SchemaError(
            f"{len(names)} compounds for {folds} folds",
            expected="at least two compounds a fold",
            fix="fewer --folds",
        )
    return deal(len(names), folds, rng)[codes]


def _splits(
    pairs: PairedProfiles, rows: _Array, folds: int, *, rng: np.random.Generator
) -> Iterator[_Split]:
    """Each fold of the ``rows`` withheld once."""
    fold = _compound_folds(pairs.meta["compound"].to_numpy()[rows], folds, rng=rng)
    for held in range(folds):
        train = rows[fold != held]
        sides = (decompose(side.values[train]) for side in (pairs.first, pairs.second))
        yield _Split(train, rows[fold == held], *sides)


def _choose(pairs: PairedProfiles, within: Sequence[_Split], grid: Sequence[Setting]) -> Setting:
    """The setting with the best mean average precision over inner folds; ties go to the first."""
    # nothing to choose: the inner folds would be decomposed for nothing
    if len(grid) == 1:
        return grid[0]

    def precision(setting: Setting) -> float:
        fits = ((split, setting.fit(split.first, split.second)) for split in within)
        return float(np.mean([_precision(pairs, split, fit) for split, fit in fits]))

    return choose(grid, precision).best


def _precision(pairs: PairedProfiles, split: _Split, spaces: _Directions) -> float:
    """The mean of 1 / rank over withheld rows and directions, partners that tie ranked last.

    One partner is right, so this is mean average precision, at the price of one product of
    matrices.
    """
    values = []
    for space, turned in zip(spaces, (False, True), strict=True):
        first, second = _embedded(pairs, split.held, space)
        cosines = unit(first) @ unit(second).T
        cosines = cosines.T if turned else cosines
        values.append((1 / (cosines >= np.diagonal(cosines)[:, None]).sum(axis=1)).mean())
    return float(np.mean(values))


def _embedded(pairs: PairedProfiles, rows: _Array, space: _Space) -> tuple[_Array, _Array]:
    """Rows of both assays in the space."""
    return (
        space.first.transform(pairs.first.values[rows]),
        space.second.transform(pairs.second.values[rows]),
    )


def _ask(
    pairs: PairedProfiles, split: _Split, spaces: _Directions
) -> tuple[MatchedFold, MatchedFold]:
    """The withheld rows of each assay look for their partners in the other."""
    names = pairs.meta.index[split.held]
    (first, second), (back_first, back_second) = (
        [pd.DataFrame(side, names) for side in _embedded(pairs, split.held, space)]
        for space in spaces
    )
    return match_fold(first, second), match_fold(back_second, back_first)


def _ask_torn(
    pairs: PairedProfiles, split: _Split, setting: Setting, rng: np.random.Generator
) -> tuple[MatchedFold, MatchedFold]:
    """The same after fits to pairs that were torn apart, the mean of all tearings."""
    asked = []
    for _ in range(_TEARINGS):
        second = split.second
        torn = replace(second, u=second.u[rng.permutation(len(second.u))])
        asked.append(_ask(pairs, split, setting.fit(split.first, torn)))
    forward, backward = (
        replace(way[0], scores=np.mean([fold.scores for fold in way], axis=0))
        for way in zip(*asked, strict=True)
    )
    return forward, backward
