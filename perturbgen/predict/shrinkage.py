"""Shrinking predictions by factors that withheld, measured conditions call for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.predict.estimators import aligned, mrrmse

_ROUNDS: Final = 20
_TINY: Final = 1e-9
# Tried, relative to the rows' usual mean square.
_NOISES: Final = np.array([0, *2.0 ** np.arange(-6, 4)])


def expression_levels(expression: pd.DataFrame, *, levels: int) -> pd.DataFrame:
    """A level, 0 (lowest) and up, for each gene in each cell type: equally many genes in each.

    ``expression`` and the levels are cell types x genes.
    """
    if not 1 <= levels <= expression.shape[1]:
        raise ConfigError(
            f"{levels} levels of {expression.shape[1]} genes", expected="between one and the genes"
        )
    if expression.isna().to_numpy().any():
        raise SchemaError(
            "expression is missing for some genes", expected="a number for each gene and cell type"
        )
    # By order of appearance where equal, so that levels are equally large.
    rank = expression.rank(axis=1, method="first") - 1
    return (rank * levels // expression.shape[1]).astype(int)


@dataclass(frozen=True)
class Shrinkage:
    """Predictions times factors (cell types x levels), rows freed of what ``noise`` explains.

    A row of mean square v is multiplied by v / (v + noise). Two thirds of the rows are noise:
    one factor for all leaves them too large, and strong compounds too small.
    """

    factors: pd.DataFrame
    noise: float

    def apply(self, predictions: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
        """Predictions (conditions x genes), shrunk by cell type, expression and strength."""
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
        gated = predictions.mul(_gate(predictions, self.noise), axis=0)
        return gated * np.stack([scale[kind] for kind in kinds])

    @classmethod
    def fit(cls, predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame) -> Self:
        """The shrinkage by which predictions of measured conditions come closest to them.

        ``predictions`` and ``truth`` are conditions (cell_type, compound) x genes, joined by label;
        how close is the mean of the rows' RMSE.
        """
        predictions = aligned(predictions, truth)
        if not all(np.isfinite(frame.to_numpy(float)).all() for frame in (predictions, truth)):
            raise SchemaError(
                "predictions or truth hold missing values",
                expected="numbers: leave those conditions out",
            )
        # The geometric mean: few strong conditions shall not set the scale of noise.
        usual = float(np.exp(np.log(np.maximum((predictions**2).mean(axis=1), _TINY)).mean()))
        fits = [cls._with_noise(predictions, truth, levels, noise) for noise in usual * _NOISES]
        return min(fits, key=lambda fit: mrrmse(fit.apply(predictions, levels), truth))

    @classmethod
    def _with_noise(
        cls, predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame, noise: float
    ) -> Self:
        """The best factors with some noise; frames have the same labels in the same order."""
        x, y = (
            predictions.mul(_gate(predictions, noise), axis=0).to_numpy(float),
            truth.to_numpy(float),
        )
        kinds = truth.index.get_level_values(0)
        rows = {
            str(kind): _fit_one(x[kinds == kind], y[kinds == kind], _level_of(levels, kind, truth))
            for kind in kinds.unique()
        }
        columns = range(int(levels.to_numpy().max()) + 1)
        return cls(pd.DataFrame.from_dict(rows, orient="index", columns=columns), noise)

    @classmethod
    def by_others(
        cls, predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame
    ) -> pd.DataFrame:
        """Each condition shrunk as those of other compounds call for, as if it were not measured.

        In a cell type of which no other is left, predictions keep their size.
        """
        compounds, kinds = truth.index.get_level_values(1), truth.index.get_level_values(0).unique()
        parts = []
        for compound in compounds.unique():
            here = truth.index[compounds == compound]
            rest = truth.drop(here)
            if not len(rest):
                return predictions
            found = cls.fit(predictions.loc[rest.index], rest, levels)
            # A type that has no other compound keeps its size.
            factors = found.factors.reindex(kinds, fill_value=1.0)
            parts.append(cls(factors, found.noise).apply(predictions.loc[here], levels))
        return pd.concat(parts).loc[truth.index]


def _gate(predictions: pd.DataFrame, noise: float) -> pd.Series:
    """The share of each row's mean square that noise does not explain."""
    power = (predictions**2).mean(axis=1)
    return power / (power + noise).clip(lower=_TINY)


def _level_of(levels: pd.DataFrame, kind: str, like: pd.DataFrame) -> np.ndarray:
    """Levels (genes,) of a cell type in the order of a frame's genes."""
    if kind not in levels.index or not like.columns.isin(levels.columns).all():
        raise SchemaError(
            f"no expression levels for {kind!r} and all genes",
            expected=f"one of {shorten(levels.index)}",
        )
    return levels.loc[kind].reindex(like.columns).to_numpy(int)


def _fit_one(x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Factors (levels,) for x, y (conditions, genes) and level (genes,) of a cell type.

    Minimised is the mean over conditions of the root mean square error, by weighted least squares
    with the weights 1 / RMSE of the round before. A level without a signal has factor one.
    """
    count = level.max() + 1
    xy, xx = (
        np.stack([np.bincount(level, row, count) for row in values]) for values in (x * y, x * x)
    )
    factors = np.ones(count)
    for _ in range(_ROUNDS):
        error = np.sqrt(((y - factors[level] * x) ** 2).mean(axis=1))
        weights = 1 / np.maximum(error, _TINY)
        top, bottom = weights @ xy, weights @ xx
        best = np.divide(top, bottom, out=np.ones(count), where=bottom > _TINY)
        # Factors above one, beside the gate, overfit the few compounds that they are fitted on.
        factors = np.clip(best, 0.0, 1.0)
    return factors
