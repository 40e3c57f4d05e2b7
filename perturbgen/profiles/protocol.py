"""The protocol: fitted on training perturbations, settings chosen by inner folds of these, asked about withheld ones.

All doses of a compound lie in one fold, outer and inner.

What two assays say of mechanisms alone and together: concatenated, in a shared space, averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.folds import deal
from perturbgen.core.stats import interval, means, resample
from perturbgen.images.nsc import mechanism_folds
from perturbgen.images.paired import mean_f1
from perturbgen.profiles.crossmodal import Directions, Setting, Space, Spectrum, decompose, torn
from perturbgen.profiles.linear import unit
from perturbgen.profiles.pairs import Paired
from perturbgen.retrieval.crossmodal import Fold, match_fold

_Array = np.ndarray[Any, Any]
TORN: Final = "pairs torn apart"
_TEARINGS: Final = 10


@dataclass(frozen=True)
class _Split:
    """Both assays' spectra of the training rows, and the rows that are withheld."""

    train: _Array  # rows of the pairs
    held: _Array
    first: Spectrum
    second: Spectrum


@dataclass(frozen=True)
class Matched:
    """A method's folds in each direction, and the setting chosen in each fold."""

    forward: list[Fold]
    backward: list[Fold]
    chosen: list[str]


def _compound_folds(compounds: _Array, folds: int, *, rng: np.random.Generator) -> _Array:
    """(rows,) the fold of each row: compounds are shuffled and dealt round."""
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
    pairs: Paired, rows: _Array, folds: int, *, rng: np.random.Generator
) -> Iterator[_Split]:
    """Each fold of the ``rows`` withheld once."""
    fold = _compound_folds(pairs.meta["compound"].to_numpy()[rows], folds, rng=rng)
    for held in range(folds):
        train = rows[fold != held]
        sides = (decompose(table.to_numpy()[train]) for table in (pairs.first, pairs.second))
        yield _Split(train, rows[fold == held], *sides)


def match(
    pairs: Paired,
    methods: Mapping[str, Sequence[Setting]],
    *,
    folds: int,
    inner: int,
    rng: np.random.Generator,
    torn_from: str = "",
) -> dict[str, Matched]:
    """Every method on the same folds, each with the setting that its inner folds rank best.

    The method ``torn_from`` is repeated with training pairs torn apart, scores averaged over ten tearings: one random
    map may point the right way by luck, ten do not.
    """
    found: dict[str, Matched] = {
        name: Matched([], [], []) for name in [*methods, *([TORN] if torn_from else [])]
    }
    outer = _splits(pairs, np.arange(len(pairs)), folds, rng=rng)
    for split in track(outer, "folds", folds):
        within = list(_splits(pairs, split.train, inner, rng=rng))
        for name, grid in methods.items():
            best = _choose(pairs, within, grid)
            forward, backward = _ask(pairs, split, best.fit(split.first, split.second))
            found[name].forward.append(forward)
            found[name].backward.append(backward)
            found[name].chosen.append(str(best))
            if name == torn_from:
                forward, backward = _ask_torn(pairs, split, best, rng)
                found[TORN].forward.append(forward)
                found[TORN].backward.append(backward)
    return found


def _choose(pairs: Paired, within: Sequence[_Split], grid: Sequence[Setting]) -> Setting:
    """The setting with the best mean average precision over inner folds and both directions; ties go to the first."""
    if len(grid) == 1:
        return grid[0]
    worth = [
        np.mean(
            [
                _quick_precision(pairs, split, setting.fit(split.first, split.second))
                for split in within
            ]
        )
        for setting in grid
    ]
    return grid[int(np.argmax(worth))]


def _embedded(pairs: Paired, rows: _Array, space: Space) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of both assays in the space, by perturbation."""
    names = pairs.meta.index[rows]
    first = space.first.transform(pairs.first.to_numpy()[rows])
    second = space.second.transform(pairs.second.to_numpy()[rows])
    return pd.DataFrame(first, names), pd.DataFrame(second, names)


def _ask(pairs: Paired, split: _Split, spaces: Directions) -> tuple[Fold, Fold]:
    """The withheld rows of each assay look for their partners in the other."""
    first, second = _embedded(pairs, split.held, spaces[0])
    back_first, back_second = _embedded(pairs, split.held, spaces[1])
    return match_fold(first, second), match_fold(back_second, back_first)


def _ask_torn(
    pairs: Paired, split: _Split, setting: Setting, rng: np.random.Generator
) -> tuple[Fold, Fold]:
    """The same after fits to torn pairs, the mean of all tearings."""
    asked = [
        _ask(pairs, split, torn(setting, rng).fit(split.first, split.second))
        for _ in range(_TEARINGS)
    ]
    both = zip(*asked, strict=True)
    forward, backward = (
        replace(way[0], scores=np.mean([fold.scores for fold in way], axis=0)) for way in both
    )
    return forward, backward


def _quick_precision(pairs: Paired, split: _Split, spaces: Directions) -> float:
    """The mean of 1 / rank over withheld rows and directions; a partner that ties is ranked last of its equals."""
    values = []
    for space, turned in zip(spaces, (False, True), strict=True):
        first, second = (side.to_numpy() for side in _embedded(pairs, split.held, space))
        cosines = unit(first) @ unit(second).T
        cosines = cosines.T if turned else cosines
        values.append((1 / (cosines >= np.diagonal(cosines)[:, None]).sum(axis=1)).mean())
    return float(np.mean(values))


def variate_correlations(
    pairs: Paired, setting: Setting, *, folds: int, rng: np.random.Generator
) -> pd.DataFrame:
    """(folds, variates) correlation of each pair of variates over withheld perturbations."""
    rows = []
    for split in _splits(pairs, np.arange(len(pairs)), folds, rng=rng):
        first, second = _embedded(pairs, split.held, setting.fit(split.first, split.second)[0])
        x, y = (side.to_numpy() - side.to_numpy().mean(axis=0) for side in (first, second))
        size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        rows.append((x * y).sum(axis=0) / np.where(size > 0, size, np.inf))
    return pd.DataFrame(rows)


_COMPONENTS: Final = 50
_Features = Callable[[_Array], list[_Array]]


def mechanism_table(
    pairs: Paired,
    shared: list[Setting],
    *,
    folds: int,
    inner: int,
    draws: int,
    rng: np.random.Generator,
    names: tuple[str, str] = ("images", "L1000"),
) -> pd.DataFrame:
    """Accuracy (95 % interval over compounds) and mean F1 of a shrunk linear discriminant on withheld compounds.

    Mechanisms of fewer than two compounds are left out. The folds hold each mechanism's compounds apart.
    """
    kept = _with_mechanism(pairs)
    moa = kept.meta["moa"].to_numpy()
    fold = mechanism_folds(kept.meta.reset_index(drop=True), folds, rng=rng)
    said: dict[str, _Array] = {}
    for held in range(folds):
        rows, train = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        for name, values in _predictions(kept, train, rows, shared, inner, rng, names).items():
            said.setdefault(name, np.empty(len(kept), object))[rows] = values
    counts = resample(len(kept), draws, rng, kept.meta["compound"].tolist())
    right = np.array([values == moa for values in said.values()], float)
    low, high = interval(means(right, counts))
    table = pd.DataFrame(
        {"features": list(said), "n": len(kept), "mechanisms": len(np.unique(moa))}
    )
    table["accuracy"], table["low"], table["high"] = right.mean(axis=1), low, high
    table["mean F1"] = [mean_f1(pd.Series(moa), pd.Series(values)) for values in said.values()]
    return table.assign(largest=pd.Series(moa).value_counts(normalize=True).iloc[0])


def _with_mechanism(pairs: Paired) -> Paired:
    """The perturbations whose mechanism has two compounds or more."""
    count = pairs.meta.groupby("moa")["compound"].nunique()
    kept = pairs.meta["moa"].isin(count.index[count > 1])
    if pairs.meta["moa"][kept].nunique() < 2:
        raise SchemaError(
            "fewer than two mechanisms have two compounds",
            expected="mechanisms to learn and to test",
            fix="say which column holds them, or leave mechanisms out",
        )
    return Paired(pairs.first[kept], pairs.second[kept], pairs.meta[kept])


def _predictions(
    pairs: Paired,
    train: _Array,
    held: _Array,
    shared: list[Setting],
    inner: int,
    rng: np.random.Generator,
    names: tuple[str, str],
) -> dict[str, _Array]:
    """What is said of the held rows from each set of features."""
    split = _Split(
        train, held, *(decompose(side.to_numpy()[train]) for side in (pairs.first, pairs.second))
    )
    setting = _choose(pairs, list(_splits(pairs, train, inner, rng=rng)), shared)
    space = setting.fit(split.first, split.second)[0]
    one, other = _components(pairs.first, split.first), _components(pairs.second, split.second)
    both = np.hstack(
        [
            space.first.transform(pairs.first.to_numpy()),
            space.second.transform(pairs.second.to_numpy()),
        ]
    )
    features = {
        names[0]: one,
        names[1]: other,
        "concatenated": np.hstack([one, other]),
        "RGCCA": both,
    }
    classes, labels = np.unique(
        pairs.meta["moa"].to_numpy()[train].astype(str), return_inverse=True
    )
    likely = {
        name: _discriminant(values[train], labels, values[held])
        for name, values in features.items()
    }
    likely["averaged"] = (likely[names[0]] + likely[names[1]]) / 2
    return {name: classes[values.argmax(axis=1)] for name, values in likely.items()}


def _components(table: pd.DataFrame, spectrum: Spectrum) -> _Array:
    """(rows, components) of all rows, the axes fitted on training rows; total training variance one for each assay."""
    leading = spectrum.leading(_COMPONENTS)
    scores = leading.projection(leading.v, leading.s).transform(table.to_numpy())
    return np.asarray(scores / np.sqrt((leading.s**2).sum() / len(leading.u)))


def _discriminant(train: _Array, labels: _Array, held: _Array) -> _Array:
    """(held rows, classes) probabilities of a linear discriminant with Ledoit and Wolf's covariance."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    return np.asarray(model.predict_proba(held))
