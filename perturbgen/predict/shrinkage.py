"""Shrinking predictions by factors that withheld, measured conditions call for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.predict.calibration import mrrmse
from perturbgen.predict.estimators import require_same

_ROUNDS: Final = 20
TINY: Final = 1e-9
_NOISES: Final = np.array(
    [0, *2.0 ** np.arange(-6, 4)]
)  # tried, relative to the rows' usual mean square


def expression_levels(expression: pd.DataFrame, *, levels: int) -> pd.DataFrame:
    """A level, 0 (lowest) and up, for each gene in each cell type (cell types x genes): equally many genes in each."""
    if not 1 <= levels <= expression.shape[1]:
        raise ConfigError(
            f"{levels} levels of {expression.shape[1]} genes", expected="between one and the genes"
        )
    if expression.isna().to_numpy().any():
        raise SchemaError(
            "expression is missing for some genes", expected="a number for each gene and cell type"
        )
    rank = expression.rank(axis=1, method="first") - 1
    return (rank * levels // expression.shape[1]).astype(int)


@dataclass(frozen=True)
class Shrinkage:
    """Predictions times factors (cell types x levels) of 0 to 1, after rows have lost what ``noise`` explains.

    A row whose mean square is v is multiplied by v / (v + noise): a weak one, which is mostly noise, by far less than a
    strong one.
    """

    factors: pd.DataFrame
    noise: float

    def apply(self, predictions: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
        """Predictions (conditions x genes), shrunk by cell type, level of expression and strength."""
        kinds = predictions.index.get_level_values(0)
        absent = kinds.unique().difference(self.factors.index)
        if len(absent):
            raise SchemaError(
                f"no factor was fitted for cell type {shorten(absent)}",
                expected=shorten(self.factors.index),
            )
        scale = {
            kind: self.factors.loc[kind].to_numpy()[_level_of(levels, kind, predictions)]
            for kind in kinds.unique()
        }
        return predictions.mul(_gate(predictions, self.noise), axis=0) * np.stack(
            [scale[kind] for kind in kinds]
        )


def _gate(predictions: pd.DataFrame, noise: float) -> pd.Series:
    """The share of each row's mean square that noise does not explain."""
    power = (predictions**2).mean(axis=1)
    return power / (power + noise).clip(lower=TINY)


def fit_shrinkage(
    predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame
) -> Shrinkage:
    """The shrinkage by which predictions of measured conditions come closest to them, by the mean of the rows' RMSE.

    ``predictions`` and ``truth`` are conditions (cell_type, compound) x genes, joined by label.
    """
    require_same(truth.index, predictions.index, "conditions")
    require_same(truth.columns, predictions.columns, "genes")
    predictions = predictions.loc[truth.index, truth.columns]
    if not (
        np.isfinite(predictions.to_numpy(float)).all() and np.isfinite(truth.to_numpy(float)).all()
    ):
        raise SchemaError(
            "predictions or truth hold missing values",
            expected="numbers: leave those conditions out",
        )
    usual = float(np.exp(np.log(np.maximum((predictions**2).mean(axis=1), TINY)).mean()))
    fits = [_fit_factors(predictions, truth, levels, noise) for noise in usual * _NOISES]
    return min(fits, key=lambda fit: mrrmse(fit.apply(predictions, levels), truth))


def shrunk_by_others(
    predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame
) -> pd.DataFrame:
    """Each condition shrunk as those of the other compounds call for, as if its own had not been measured.

    In a cell type of which no other is left, predictions keep their size.
    """
    compounds, kinds = truth.index.get_level_values(1), truth.index.get_level_values(0).unique()
    parts = []
    for compound in compounds.unique():
        here = truth.index[compounds == compound]
        rest = truth.drop(here)
        if not len(rest):
            return predictions
        found = fit_shrinkage(predictions.loc[rest.index], rest, levels)
        factors = found.factors.reindex(kinds, fill_value=1.0)
        parts.append(Shrinkage(factors, found.noise).apply(predictions.loc[here], levels))
    return pd.concat(parts).loc[truth.index]


def _fit_factors(
    predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame, noise: float
) -> Shrinkage:
    """The factors, zero to one, that are best with some noise; frames have the same labels in the same order.

    Minimised is the mean over conditions of the root mean square error, by weighted least squares with the weights
    1 / RMSE of the round before.
    """
    x, y = predictions.mul(_gate(predictions, noise), axis=0).to_numpy(float), truth.to_numpy(float)
    kinds = truth.index.get_level_values(0)
    rows = {
        str(kind): _fit_one(x[kinds == kind], y[kinds == kind], _level_of(levels, kind, truth))
        for kind in kinds.unique()
    }
    columns = range(int(levels.to_numpy().max()) + 1)
    return Shrinkage(pd.DataFrame.from_dict(rows, orient="index", columns=columns), noise)


def _level_of(levels: pd.DataFrame, kind: str, like: pd.DataFrame) -> np.ndarray:
    """Levels (genes,) of a cell type in the order of a frame's genes."""
    if kind not in levels.index or not like.columns.isin(levels.columns).all():
        raise SchemaError(
            f"no expression levels for {kind!r} and all genes",
            expected=f"one of {shorten(levels.index)}",
        )
    return levels.loc[kind].reindex(like.columns).to_numpy(int)


def _fit_one(x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Factors (levels,) for x, y (conditions, genes) and level (genes,) of a cell type; one where no signal is."""
    count = level.max() + 1
    xy, xx = (
        np.stack([np.bincount(level, row, count) for row in values]) for values in (x * y, x * x)
    )
    factors = np.ones(count)
    for _ in range(_ROUNDS):
        error = np.sqrt(((y - factors[level] * x) ** 2).mean(axis=1))
        weights = 1 / np.maximum(error, TINY)
        top, bottom = weights @ xy, weights @ xx
        factors = np.clip(np.divide(top, bottom, out=np.ones(count), where=bottom > TINY), 0.0, 1.0)
    return factors
