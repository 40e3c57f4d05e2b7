"""Judging baselines out of fold: folds that look like the task, the best settings, blended members.

The task withholds most compounds in a few *target* cell types while they are known in the others. A
fold does the same to the few compounds that are known there: they are withheld in all target cell
types at once, and in no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.baselines.base import Baseline, ConditionList, Predictor, TrainTable
from perturbgen.core.config import Settings
from perturbgen.core.console import track
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.stats import choose, deal, non_negative_weights

_log = logging.getLogger(__name__)

_Maker = Callable[[], Predictor]
_Folds = Mapping[str, pd.MultiIndex]
# In the competition the targets know 17 of 146 compounds and the others nearly all.
_SPARSE_SHARE: Final = 0.5


def mimic_folds(
    index: pd.MultiIndex,
    *,
    folds: int,
    rng: np.random.Generator,
    targets: Sequence[str] | None = None,
    pretend: bool = False,
) -> dict[str, pd.MultiIndex]:
    """Folds of training rows that look like the task, by name: the labels that each withholds.

    ``targets`` are by default the sparse cell types, measured with less than half of the compounds.
    The compounds that are known both in a target and elsewhere are divided at random into ``folds``
    parts (at most one for each compound), each withheld in all targets. Where no cell type is
    sparse, part i is withheld in one cell type, the i-th in turn. With ``pretend`` every other cell
    type is, in one more fold each, treated as if it were a target: all is withheld there but the
    compounds that the targets know.
    """
    found = ConditionList.read(index, "the table")
    known_types = np.unique(found.cell_types)
    chosen = _sparse_cell_types(found) if targets is None else [str(name) for name in targets]
    absent = [name for name in chosen if name not in known_types]
    if absent:
        raise SchemaError(
            f"no cell type {shorten(absent)} to withhold", fix=suggest(absent[0], known_types)
        )
    in_target = np.isin(found.cell_types, chosen) if chosen else np.ones(len(found), dtype=bool)
    if chosen:
        shared = np.intersect1d(found.compounds[in_target], found.compounds[~in_target])
    else:
        names, sizes = np.unique(found.compounds, return_counts=True)
        shared = names[sizes > 1]
    # At most one fold a compound: an empty one judges nothing.
    count = min(folds, len(shared))
    if count < 2:
        raise SchemaError(
            ("1 compound is known " if len(shared) == 1 else f"{len(shared)} compounds are known ")
            + (f"both in {shorten(chosen)} and elsewhere" if chosen else "in two cell types"),
            expected="at least two, to withhold one and learn from the other",
        )
    part = deal(len(shared), count, rng)
    made = {}
    for i in range(count):
        where = in_target if chosen else found.cell_types == known_types[i % len(known_types)]
        made[f"fold {i}"] = where & np.isin(found.compounds, shared[part == i])
    if pretend and not chosen:
        raise ConfigError(
            "no cell type is sparse, so none can be imitated", fix="name targets, or pretend=False"
        )
    if pretend:
        known = found.compounds[in_target]
        for name in known_types:
            if name not in chosen:
                made[f"pretend {name}"] = (found.cell_types == name) & ~np.isin(
                    found.compounds, known
                )
    return {name: found.index[rows] for name, rows in made.items() if rows.any()}


def _sparse_cell_types(found: ConditionList) -> list[str]:
    """The cell types that were measured with less than half of the compounds, in sorted order."""
    names, sizes = np.unique(found.cell_types, return_counts=True)
    return [str(n) for n in names[sizes < _SPARSE_SHARE * len(np.unique(found.compounds))]]


def out_of_fold(
    make: _Maker, train: pd.DataFrame, folds: _Folds, *, rng: np.random.Generator
) -> pd.DataFrame:
    """Predictions of every withheld row by a predictor that was fitted without its fold."""
    labels = ConditionList.read(train.index, "the table").index
    parts = []
    for withheld, child in zip(folds.values(), rng.spawn(len(folds)), strict=True):
        kept = train[~labels.isin(withheld)]
        parts.append(make().fit(kept, rng=child).predict(withheld))
    return pd.concat(parts)


def nested_choice(
    candidates: Mapping[str, _Maker],
    train: pd.DataFrame,
    folds: _Folds,
    *,
    rng: np.random.Generator,
    score: Literal["rmse", "spearman"] = "rmse",
) -> tuple[str, float, pd.DataFrame]:
    """The candidate with the best mean score over the withheld rows, that score, its predictions.

    All candidates meet the same folds and the same random numbers. ``train`` is all they see: rows
    that are to be predicted in the end must not be in it. ``score`` is minus the root mean squared
    error of a row, or Spearman's correlation of its genes.
    """
    if not candidates:
        raise ConfigError("no candidate to choose from", expected="at least one")
    # Drawn once, so that candidates differ by their settings alone, not by their luck.
    seed = int(rng.integers(2**63))
    truth = train.set_axis(ConditionList.read(train.index, "the table").index)
    predictions: dict[str, pd.DataFrame] = {}

    def worth(name: str) -> float:
        found = out_of_fold(candidates[name], train, folds, rng=np.random.default_rng(seed))
        predictions[name] = found
        return float(np.mean(_SCORES[score](truth.loc[list(found.index)], found)))

    choice = choose(track(list(candidates), "choosing settings"), worth)
    told = "chose %s of %d candidates (score %.4f)"
    _log.info(told, choice.best, len(candidates), choice.score)
    return choice.best, choice.score, predictions[choice.best]


def row_spearman(truth: pd.DataFrame, prediction: pd.DataFrame) -> np.ndarray:
    """Spearman's correlation of each row (rows,); 0 where a row is constant."""
    from scipy.stats import rankdata

    # All rows at once, instead of a call of scipy's spearmanr for each.
    left, right = (rankdata(frame.to_numpy(), axis=1) for frame in (truth, prediction))
    left, right = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (left, right))
    size = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return np.divide((left * right).sum(axis=1), size, out=np.zeros(len(left)), where=size > 0)


def _minus_row_rmse(truth: pd.DataFrame, prediction: pd.DataFrame) -> np.ndarray:
    return -np.sqrt(((truth.to_numpy() - prediction.to_numpy()) ** 2).mean(axis=1))


_SCORES: Final = {"rmse": _minus_row_rmse, "spearman": row_spearman}


def blend_weights(truth: pd.DataFrame, predictions: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Non-negative least squares weights of predictions of the same rows and genes, by label."""
    rows = list(next(iter(predictions.values())).index)
    labels = ConditionList.read(truth.index, "the table").index
    target = truth.set_axis(labels).loc[rows].to_numpy().ravel()
    columns = np.column_stack(
        [table.loc[rows, truth.columns].to_numpy().ravel() for table in predictions.values()]
    )
    weights = non_negative_weights(columns.T @ columns, columns.T @ target)
    return dict(zip(predictions, weights.tolist(), strict=True))


class _BlendSettings(Settings):
    """What is blended, and how the weights are found."""

    members: tuple[str, ...] = Field(
        ("shrunken_additive", "transfer", "kernel_ridge", "xgboost"), min_length=1
    )
    settings: dict[str, dict[str, Any]] = Field({}, description="settings of the members, by name")
    folds: int = Field(
        5, ge=2, description="folds of known compounds that the weights are found on"
    )


class _Blend(Baseline[_BlendSettings]):
    """Σ wₘ · prediction of member m, the weights not negative, fitted to out-of-fold predictions.

    The folds withhold compounds in the target cell types as the task does. The weights need not add
    up to one: members that are too bold are held back. Conditions of unknown labels get what the
    members fall back to.
    """

    settings_class: ClassVar[type[Settings]] = _BlendSettings

    def __init__(
        self, settings: _BlendSettings | None = None, *, candidates: Mapping[str, _Maker]
    ) -> None:
        super().__init__(settings)
        self._makers = dict(candidates)
        self.weights: dict[str, float] = {}

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        train = table.frame
        folds = mimic_folds(table.index, folds=self.settings.folds, rng=rng)
        seed = int(rng.integers(2**63))
        # The same folds and random numbers for every member: the weights compare like with like.
        found = {
            name: out_of_fold(make, train, folds, rng=np.random.default_rng(seed))
            for name, make in self._makers.items()
        }
        self.weights = blend_weights(train, found)
        told = (f"{name} {weight:.2f}" for name, weight in self.weights.items())
        _log.info("blend: %s", ", ".join(told))
        children = rng.spawn(len(self._makers))
        self._members: dict[str, Predictor] = {
            name: make().fit(train, rng=child)
            for (name, make), child in zip(self._makers.items(), children, strict=True)
            # A member without weight need not be fitted to all rows.
            if self.weights[name] > 0
        }

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        result = np.zeros((len(wanted), len(self.table.genes)))
        for name, member in self._members.items():
            result += self.weights[name] * member.predict(wanted.index).to_numpy()
        return result


class _NestedSettings(Settings):
    """Which settings of which baseline are tried."""

    base: str = Field("kernel_ridge", description="the baseline whose settings are chosen")
    grid: dict[str, list[Any]] = Field(
        {"ridge": [0.1, 0.3, 1.0]}, description="values to try; all are crossed"
    )
    folds: int = Field(5, ge=2, description="folds of known compounds")
    score: Literal["rmse", "spearman"] = Field(
        "rmse", description="what is best: of a row, on average"
    )


class _Nested(Baseline[_NestedSettings]):
    """One baseline with the settings that predict best out of fold, then fitted to all rows."""

    settings_class: ClassVar[type[Settings]] = _NestedSettings

    def __init__(
        self, settings: _NestedSettings | None = None, *, candidates: Mapping[str, _Maker]
    ) -> None:
        super().__init__(settings)
        self._candidates = dict(candidates)
        self.chosen = ""

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        train = table.frame
        folds = mimic_folds(table.index, folds=self.settings.folds, rng=rng)
        self.chosen, _, _ = nested_choice(
            self._candidates, train, folds, rng=rng, score=self.settings.score
        )
        self._model = self._candidates[self.chosen]().fit(train, rng=rng)

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        return self._model.predict(wanted.index).to_numpy()
