"""Combinations: a weighted sum of baselines, and the best of several settings of one, both judged out of fold."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.baselines.base import (
    Array,
    Baseline,
    Conditions,
    Predictor,
    TrainTable,
    in_key_order,
)
from perturbgen.baselines.selection import (
    Maker,
    mimic_folds,
    minus_row_rmse,
    nested_choice,
    out_of_fold,
    row_spearman,
)
from perturbgen.core.config import Settings
from perturbgen.core.stats import non_negative_weights

log = logging.getLogger(__name__)

_SCORES = {"rmse": minus_row_rmse, "spearman": row_spearman}


class _BlendSettings(Settings):
    """Who is blended, and how the weights are found."""

    members: tuple[str, ...] = Field(
        ("shrunken_additive", "transfer", "kernel_ridge", "xgboost"), min_length=1
    )
    settings: dict[str, dict[str, Any]] = Field({}, description="settings of the members, by name")
    folds: int = Field(
        5, ge=2, description="folds of known compounds that the weights are found on"
    )


class Blend(Baseline[_BlendSettings]):
    """Σ wₘ · prediction of member m, the weights not negative and fitted to out-of-fold predictions.

    The folds withhold compounds in the target cell types as the task does. The weights need not add up to one: members
    that are too bold are held back. Conditions nobody knows get what the members fall back to.
    """

    settings_class: ClassVar[type[Settings]] = _BlendSettings

    def __init__(
        self, settings: _BlendSettings | None = None, *, members: Mapping[str, Maker]
    ) -> None:
        super().__init__(settings)
        self._makers = dict(members)
        self.weights: dict[str, float] = {}

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        train = pd.DataFrame(table.values, table.index, table.genes, copy=False)
        folds = mimic_folds(table.index, folds=self.settings.folds, rng=rng)
        seed = int(rng.integers(2**63))
        found = {
            name: out_of_fold(make, train, folds, rng=np.random.default_rng(seed))
            for name, make in self._makers.items()
        }
        self.weights = blend_weights(train, found)
        log.info(
            "blend: %s", ", ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items())
        )
        self._members: dict[str, Predictor] = {
            name: self._makers[name]().fit(train, rng=child)
            for name, child in zip(self._makers, rng.spawn(len(self._makers)), strict=True)
            if self.weights[name] > 0
        }

    def _predict(self, wanted: Conditions) -> Array:
        result = np.zeros((len(wanted), len(self.table.genes)))
        for name, member in self._members.items():
            result += self.weights[name] * member.predict(wanted.index).to_numpy()
        return result


def blend_weights(truth: pd.DataFrame, predictions: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Non-negative least squares weights of predictions of the same rows and genes, joined by label."""
    names = list(predictions)
    rows = list(predictions[names[0]].index)
    target = truth.set_axis(in_key_order(truth.index)).loc[rows].to_numpy().ravel()
    columns = np.column_stack(
        [predictions[name].loc[rows, truth.columns].to_numpy().ravel() for name in names]
    )
    weights = non_negative_weights(columns.T @ columns, columns.T @ target)
    return dict(zip(names, weights.tolist(), strict=True))


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


class Nested(Baseline[_NestedSettings]):
    """One baseline with the settings that predict best out of fold, then fitted to all training rows."""

    settings_class: ClassVar[type[Settings]] = _NestedSettings

    def __init__(
        self, settings: _NestedSettings | None = None, *, candidates: Mapping[str, Maker]
    ) -> None:
        super().__init__(settings)
        self._candidates = dict(candidates)
        self.chosen = ""

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        train = pd.DataFrame(table.values, table.index, table.genes, copy=False)
        folds = mimic_folds(table.index, folds=self.settings.folds, rng=rng)
        choice = nested_choice(
            self._candidates, train, folds, rng=rng, score=_SCORES[self.settings.score]
        )
        self.chosen = choice.best
        self._model = self._candidates[choice.best]().fit(train, rng=rng)

    def _predict(self, wanted: Conditions) -> Array:
        return self._model.predict(wanted.index).to_numpy()


def crossed(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of a grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
