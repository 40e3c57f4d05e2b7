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
from perturbgen.profiles.linear import Projection, Space, Spectrum, unit
from perturbgen.profiles.table import Profiles
from perturbgen.retrieval import MatchedFold

_Array = np.ndarray[Any, Any]
_VARIATES: Final = (5, 10, 20, 40)
_TAUS: Final = (0.01, 0.1, 0.3, 0.6)
_TEARINGS: Final = 10
TORN: Final = "pairs torn apart"


# The space in which the first assay asks, and the one in which the second does.
_Directions = tuple[Space, Space]


def _for_matching(space: Space) -> Space:
    """Variates times sqrt(r), r their training correlation.

    The product of two rows is then what they are expected to share.
    """
    # a variate that is negatively correlated in training says nothing
    weight = np.sqrt(np.clip(space.first.strength, 0, None))
    return Space(*(replace(side, matrix=side.matrix * weight) for side in space))


@dataclass(frozen=True)
class Setting:
    """One way to fit: ``fit`` takes the two assays' spectra of the same training rows."""

    name: str
    fit: Callable[[Spectrum, Spectrum], _Directions]

    @staticmethod
    def correlated(tau: float, components: int, before: int | None = None) -> Setting:
        """RGCCA, of the leading ``before`` principal components of each assay if this is given."""

        def fit(x: Spectrum, y: Spectrum) -> _Directions:
            if before is not None:
                x, y = x.leading(before), y.leading(before)
            return (_for_matching(x.rgcca(y, components=components, tau=tau)),) * 2

        first = "" if before is None else f"{before} principal components, "
        return Setting(f"{first}tau {tau:g}, {components} variates", fit)

    @staticmethod
    def rotated(components: int) -> Setting:
        """Procrustes of the leading principal components."""

        return Setting(
            f"{components} principal components",
            lambda x, y: (x.procrustes(y, components=components),) * 2,
        )

    @staticmethod
    def predicted(ridge: float) -> Setting:
        """Ridge regression of the assay that is searched on the one that asks."""

        def fit(x: Spectrum, y: Spectrum) -> _Directions:
            back = y.regression(x, ridge=ridge)
            return x.regression(y, ridge=ridge), Space(back.second, back.first)

        return Setting(f"ridge {ridge:g}", fit)

    @staticmethod
    def given(first: _Array, second: _Array) -> Setting:
        """Maps (features, dimensions) given, not fitted: a fixture's truth, the ceiling."""

        def fit(x: Spectrum, y: Spectrum) -> _Directions:
            maps = ((x.mean, first), (y.mean, second))
            sides = (Projection(mean, axes, np.ones(axes.shape[1])) for mean, axes in maps)
            return (Space(*sides),) * 2

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
        names = [*methods, *([TORN] if torn_from else [])]
        found = {name: Matched([], [], []) for name in names}
        outer = _splits(self, np.arange(len(self)), folds, rng=rng)
        for split in track(outer, "folds", folds):
            # settings are chosen without the withheld fold, or the best of a grid would be luck
            within = list(_splits(self, split.train, inner, rng=rng))
            for name, grid in methods.items():
                best = _choose(self, within, grid)
                asked = {name: _ask(self, split, split.fit(best))}
                found[name].chosen.append(best.name)
                if name == torn_from:
                    asked[TORN] = _ask_torn(self, split, best, rng)
                for key, (forward, backward) in asked.items():
                    found[key].forward.append(forward)
                    found[key].backward.append(backward)
        return found

    def fit_chosen(
        self, train: _Array, grid: Sequence[Setting], *, inner: int, rng: np.random.Generator
    ) -> Space:
        """The space of both assays by the setting that folds of the ``train`` rows rank best."""
        best = _choose(self, list(_splits(self, train, inner, rng=rng)), grid)
        sides = (Spectrum.of(side.values[train]) for side in (self.first, self.second))
        return best.fit(*sides)[0]

    def variate_correlations(
        self, setting: Setting, *, folds: int, rng: np.random.Generator
    ) -> pd.DataFrame:
        """(folds, variates) correlation of each pair of variates over withheld perturbations."""
        rows = []
        for split in _splits(self, np.arange(len(self)), folds, rng=rng):
            sides = _embedded(self, split.held, split.fit(setting)[0])
            x, y = (side - side.mean(axis=0) for side in sides)
            size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
            rows.append((x * y).sum(axis=0) / np.where(size > 0, size, np.inf))
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Split:
    """Both assays' spectra of the training rows, and the rows that are withheld."""

    train: _Array  # rows of the pairs
    held: _Array
    first: Spectrum
    second: Spectrum

    def fit(self, setting: Setting) -> _Directions:
        return setting.fit(self.first, self.second)


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
        sides = (Spectrum.of(side.values[train]) for side in (pairs.first, pairs.second))
        yield _Split(train, rows[fold == held], *sides)


def _choose(pairs: PairedProfiles, within: Sequence[_Split], grid: Sequence[Setting]) -> Setting:
    """The setting with the best mean average precision over inner folds; ties go to the first."""
    # nothing to choose: the inner folds would be decomposed for nothing
    if len(grid) == 1:
        return grid[0]

    def precision(setting: Setting) -> float:
        fits = (_precision(pairs, split, split.fit(setting)) for split in within)
        return float(np.mean(list(fits)))

    return choose(grid, precision).best


def _precision(pairs: PairedProfiles, split: _Split, spaces: _Directions) -> float:
    """The mean of 1 / rank over withheld rows and directions, partners that tie ranked last.

    One partner is right, so this is mean average precision, at the price of one product of
    matrices.
    """
    forward, backward = (
        unit(first) @ unit(second).T
        for first, second in (_embedded(pairs, split.held, space) for space in spaces)
    )
    ranks = [(c >= np.diagonal(c)[:, None]).sum(axis=1) for c in (forward, backward.T)]
    return float(np.mean([(1 / rank).mean() for rank in ranks]))


def _embedded(pairs: PairedProfiles, rows: _Array, space: Space) -> tuple[_Array, _Array]:
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
    return MatchedFold.of(first, second), MatchedFold.of(back_second, back_first)


def _ask_torn(
    pairs: PairedProfiles, split: _Split, setting: Setting, rng: np.random.Generator
) -> tuple[MatchedFold, MatchedFold]:
    """The same after fits to pairs that were torn apart, the mean of all tearings."""
    # One tearing can be significant by luck (p .008 once), the mean of ten is not.
    asked = []
    for _ in range(_TEARINGS):
        u = split.second.u
        torn = replace(split, second=replace(split.second, u=u[rng.permutation(len(u))]))
        asked.append(_ask(pairs, torn, torn.fit(setting)))
    forward, backward = (
        replace(way[0], scores=np.mean([fold.scores for fold in way], axis=0))
        for way in zip(*asked, strict=True)
    )
    return forward, backward
