"""The protocol: fitted on training perturbations, settings chosen by inner folds of these, asked about withheld ones.

All doses of a compound lie in one fold, outer and inner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.console import track
from perturbgen.errors import ConfigError, SchemaError
from perturbgen.evaluate.retrieval.crossfolds import Fold, match_fold
from perturbgen.profiles.crossmodal.methods import Directions, Setting, torn
from perturbgen.profiles.crossmodal.pairs import Paired
from perturbgen.profiles.crossmodal.spaces import Space, Spectrum, decompose
from perturbgen.profiles.linear import unit

Array = np.ndarray[Any, Any]
TORN: Final = "pairs torn apart"
TEARINGS: Final = 10


@dataclass(frozen=True)
class Split:
    """Both assays' spectra of the training rows, and the rows that are withheld."""

    train: Array  # rows of the pairs
    held: Array
    first: Spectrum
    second: Spectrum


@dataclass(frozen=True)
class Matched:
    """A method's folds in each direction, and the setting chosen in each fold."""

    forward: list[Fold]
    backward: list[Fold]
    chosen: list[str]


def compound_folds(compounds: Array, folds: int, *, rng: np.random.Generator) -> Array:
    """(rows,) the fold of each row: compounds are shuffled and dealt round."""
    codes, names = pd.factorize(np.asarray(compounds, object))
    if folds < 2:
        raise ConfigError(f"{folds} folds", expected="2 or more")
    if len(names) < 2 * folds:
        raise SchemaError(f"{len(names)} compounds for {folds} folds", expected="at least two compounds a fold",
                          fix="fewer --folds")  # fmt: skip
    return (rng.permutation(len(names)) % folds)[codes]


def splits(pairs: Paired, rows: Array, folds: int, *, rng: np.random.Generator) -> Iterator[Split]:
    """Each fold of the ``rows`` withheld once."""
    fold = compound_folds(pairs.meta["compound"].to_numpy()[rows], folds, rng=rng)
    for held in range(folds):
        train = rows[fold != held]
        sides = (decompose(table.to_numpy()[train]) for table in (pairs.first, pairs.second))
        yield Split(train, rows[fold == held], *sides)


def match(
    pairs: Paired, methods: Mapping[str, Sequence[Setting]], *, folds: int, inner: int, rng: np.random.Generator,
    torn_from: str = "",
) -> dict[str, Matched]:  # fmt: skip
    """Every method on the same folds, each with the setting that its inner folds rank best.

    The method ``torn_from`` is repeated with training pairs torn apart, scores averaged over ten tearings: one random
    map may point the right way by luck, ten do not.
    """
    found: dict[str, Matched] = {name: Matched([], [], []) for name in [*methods, *([TORN] if torn_from else [])]}
    outer = splits(pairs, np.arange(len(pairs)), folds, rng=rng)
    for split in track(outer, "folds", folds):
        within = list(splits(pairs, split.train, inner, rng=rng))
        for name, grid in methods.items():
            best = choose(pairs, within, grid)
            forward, backward = ask(pairs, split, best.fit(split.first, split.second))
            found[name].forward.append(forward)
            found[name].backward.append(backward)
            found[name].chosen.append(str(best))
            if name == torn_from:
                forward, backward = ask_torn(pairs, split, best, rng)
                found[TORN].forward.append(forward)
                found[TORN].backward.append(backward)
    return found


def choose(pairs: Paired, within: Sequence[Split], grid: Sequence[Setting]) -> Setting:
    """The setting with the best mean average precision over inner folds and both directions; ties go to the first."""
    if len(grid) == 1:
        return grid[0]
    worth = [
        np.mean([quick_precision(pairs, split, setting.fit(split.first, split.second)) for split in within])
        for setting in grid
    ]
    return grid[int(np.argmax(worth))]


def embedded(pairs: Paired, rows: Array, space: Space) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of both assays in the space, by perturbation."""
    names = pairs.meta.index[rows]
    first = space.first.transform(pairs.first.to_numpy()[rows])
    second = space.second.transform(pairs.second.to_numpy()[rows])
    return pd.DataFrame(first, names), pd.DataFrame(second, names)


def ask(pairs: Paired, split: Split, spaces: Directions) -> tuple[Fold, Fold]:
    """The withheld rows of each assay look for their partners in the other."""
    first, second = embedded(pairs, split.held, spaces[0])
    back_first, back_second = embedded(pairs, split.held, spaces[1])
    return match_fold(first, second), match_fold(back_second, back_first)


def ask_torn(pairs: Paired, split: Split, setting: Setting, rng: np.random.Generator) -> tuple[Fold, Fold]:
    """The same after fits to torn pairs, the mean of all tearings."""
    asked = [ask(pairs, split, torn(setting, rng).fit(split.first, split.second)) for _ in range(TEARINGS)]
    both = zip(*asked, strict=True)
    forward, backward = (replace(way[0], scores=np.mean([fold.scores for fold in way], axis=0)) for way in both)
    return forward, backward


def quick_precision(pairs: Paired, split: Split, spaces: Directions) -> float:
    """The mean of 1 / rank over withheld rows and directions; a partner that ties is ranked last of its equals."""
    values = []
    for space, turned in zip(spaces, (False, True), strict=True):
        first, second = (side.to_numpy() for side in embedded(pairs, split.held, space))
        cosines = unit(first) @ unit(second).T
        cosines = cosines.T if turned else cosines
        values.append((1 / (cosines >= np.diagonal(cosines)[:, None]).sum(axis=1)).mean())
    return float(np.mean(values))


def variate_correlations(pairs: Paired, setting: Setting, *, folds: int, rng: np.random.Generator) -> pd.DataFrame:
    """(folds, variates) correlation of each pair of variates over withheld perturbations."""
    rows = []
    for split in splits(pairs, np.arange(len(pairs)), folds, rng=rng):
        first, second = embedded(pairs, split.held, setting.fit(split.first, split.second)[0])
        x, y = (side.to_numpy() - side.to_numpy().mean(axis=0) for side in (first, second))
        size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        rows.append((x * y).sum(axis=0) / np.where(size > 0, size, np.inf))
    return pd.DataFrame(rows)
