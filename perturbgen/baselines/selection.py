"""Choosing settings without peeking: folds that look like the task, predictions out of fold, the best candidate.

The task withholds most compounds in a few *target* cell types while they are known in the others. A fold does the same
to the few compounds that are known there: they are withheld in all target cell types at once, and in no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.baselines.base import (
    Array,
    Labels,
    Predictor,
    in_key_order,
    levels,
    read_conditions,
)
from perturbgen.core.console import track
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.folds import deal

log = logging.getLogger(__name__)

Maker = Callable[[], Predictor]
_Score = Callable[
    [pd.DataFrame, pd.DataFrame], Array
]  # (truth, prediction) -> one value a row, higher is better
_SPARSE_SHARE: Final = 0.5


@dataclass(frozen=True)
class Fold:
    """Rows that are withheld together, by label."""

    name: str
    withheld: pd.MultiIndex


@dataclass(frozen=True)
class Choice:
    """What was chosen: its name, the mean score of every candidate (higher is better), all out-of-fold predictions."""

    best: str
    scores: pd.Series
    predictions: Mapping[str, pd.DataFrame]


def _target_cell_types(index: pd.MultiIndex) -> list[str]:
    """The cell types that were measured with less than half of the compounds, in sorted order."""
    found = read_conditions(index, "the table")
    wanted = _SPARSE_SHARE * len(levels(found.compounds))
    return [
        str(name) for name in levels(found.cell_types) if (found.cell_types == name).sum() < wanted
    ]


def mimic_folds(
    index: pd.MultiIndex,
    *,
    folds: int,
    rng: np.random.Generator,
    targets: Sequence[str] | None = None,
    pretend: bool = False,
) -> list[Fold]:
    """Folds of training rows that look like the task.

    The compounds that are known both in a target cell type and elsewhere are divided at random into ``folds`` parts (at
    most one for each compound), each withheld in all target cell types. Where no cell type is sparse, part i is
    withheld in one cell type, the i-th in turn. With ``pretend`` every other cell type is, in one more fold each,
    treated as if it were a target: all is withheld there but the compounds that the targets know.
    """
    found = read_conditions(index, "the table")
    known_types = levels(found.cell_types)
    chosen = _target_cell_types(index) if targets is None else [str(name) for name in targets]
    absent = [name for name in chosen if name not in known_types]
    if absent:
        raise SchemaError(
            f"no cell type {shorten(absent)} to withhold", fix=suggest(absent[0], known_types)
        )
    in_target = np.isin(found.cell_types, chosen) if chosen else np.ones(len(found), dtype=bool)
    shared = _shared_compounds(found.compounds, in_target, whole=not chosen)
    count = min(folds, len(shared))
    if count < 2:
        raise SchemaError(
            f"{len(shared)} compounds are known both in {shorten(chosen) or 'two cell types'} and elsewhere",
            expected="at least two, to withhold one and learn from the other",
        )
    part = deal(len(shared), count, rng)
    made = []
    for i in range(count):
        where = in_target if chosen else found.cell_types == known_types[i % len(known_types)]
        rows = where & np.isin(found.compounds, shared[part == i])
        if rows.any():
            made.append(Fold(f"fold {i}", found.index[rows]))
    return made + (_pretend_folds(index, chosen) if pretend else [])


def _shared_compounds(compounds: Labels, in_target: np.ndarray, *, whole: bool) -> Labels:
    """The compounds with rows both inside and outside of the targets; with ``whole`` those with two rows or more."""
    if whole:
        return np.array([c for c in levels(compounds) if (compounds == c).sum() > 1], dtype=object)
    outside = set(compounds[~in_target])
    return np.array([c for c in levels(compounds[in_target]) if c in outside], dtype=object)


def _pretend_folds(index: pd.MultiIndex, targets: Sequence[str]) -> list[Fold]:
    """Every other cell type as if it were a target: only the compounds that the targets know are left in it."""
    found = read_conditions(index, "the table")
    if not targets:
        raise ConfigError(
            "no cell type is sparse, so none can be imitated", fix="name targets, or pretend=False"
        )
    known = set(found.compounds[np.isin(found.cell_types, list(targets))])
    made = []
    for name in levels(found.cell_types):
        rows = (found.cell_types == name) & ~np.isin(found.compounds, list(known))
        if name not in targets and rows.any():
            made.append(Fold(f"pretend {name}", found.index[rows]))
    return made


def out_of_fold(
    make: Maker, train: pd.DataFrame, folds: Sequence[Fold], *, rng: np.random.Generator
) -> pd.DataFrame:
    """Predictions of every withheld row by a predictor that was fitted without its fold; rows in the order of folds."""
    labels = in_key_order(train.index)
    parts = []
    for fold, child in zip(folds, rng.spawn(len(folds)), strict=True):
        kept = train[~labels.isin(fold.withheld)]
        parts.append(make().fit(kept, rng=child).predict(fold.withheld))
    return pd.concat(parts)


def nested_choice(
    candidates: Mapping[str, Maker],
    train: pd.DataFrame,
    folds: Sequence[Fold],
    *,
    rng: np.random.Generator,
    score: _Score | None = None,
) -> Choice:
    """The candidate with the best mean score over the withheld rows; the first of equals.

    All candidates meet the same folds and the same random numbers. ``train`` is all they see: rows that are to be
    predicted in the end must not be in it. The default score is minus the root mean squared error of a row.
    """
    if not candidates:
        raise ConfigError("no candidate to choose from", expected="at least one")
    seed = int(rng.integers(2**63))
    score = score or minus_row_rmse
    truth = train.set_axis(in_key_order(train.index))
    scores, predictions = {}, {}
    for name, make in track(list(candidates.items()), "choosing settings"):
        found = out_of_fold(make, train, folds, rng=np.random.default_rng(seed))
        predictions[name] = found
        scores[name] = float(np.mean(score(truth.loc[list(found.index)], found)))
    table = pd.Series(scores, name="score")
    best = str(table.idxmax())
    log.info("chose %s of %d candidates (score %.4f)", best, len(table), table[best])
    return Choice(best, table, predictions)


def minus_row_rmse(truth: pd.DataFrame, prediction: pd.DataFrame) -> Array:
    """Minus the root mean squared error of each row (rows,)."""
    return -np.sqrt(((truth.to_numpy() - prediction.to_numpy()) ** 2).mean(axis=1))


def row_spearman(truth: pd.DataFrame, prediction: pd.DataFrame) -> Array:
    """Spearman's correlation of each row (rows,); 0 where a row is constant."""
    from scipy.stats import rankdata

    left, right = (rankdata(frame.to_numpy(), axis=1) for frame in (truth, prediction))
    left, right = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (left, right))
    size = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return np.divide((left * right).sum(axis=1), size, out=np.zeros(len(left)), where=size > 0)
