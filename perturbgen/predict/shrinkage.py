"""Shrinking predictions by factors that withheld, measured conditions call for."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from perturbgen.errors import ConfigError, SchemaError, shorten
from perturbgen.predict.estimators import require_same

ROUNDS: Final = 20
TINY: Final = 1e-9


def expression_levels(expression: pd.DataFrame, *, levels: int) -> pd.DataFrame:
    """A level, 0 (lowest) and up, for each gene in each cell type (cell types x genes): equally many genes in each."""
    if not 1 <= levels <= expression.shape[1]:
        raise ConfigError(f"{levels} levels of {expression.shape[1]} genes", expected="between one and the genes")
    if expression.isna().to_numpy().any():
        raise SchemaError("expression is missing for some genes", expected="a number for each gene and cell type")
    rank = expression.rank(axis=1, method="first") - 1
    return (rank * levels // expression.shape[1]).astype(int)


def fit_factors(predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """The factors (cell types x levels), zero or more, by which predictions of measured conditions come closest.

    ``predictions`` and ``truth`` are conditions (cell_type, compound) x genes. Minimised is the mean over conditions of
    the root mean square error, by weighted least squares with the weights 1 / RMSE of the round before.
    """
    require_same(truth.index, predictions.index, "conditions")
    require_same(truth.columns, predictions.columns, "genes")
    y = truth.to_numpy(float)
    x = predictions.loc[truth.index, truth.columns].to_numpy(float)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SchemaError("predictions or truth hold missing values", expected="numbers: leave those conditions out")
    kinds = truth.index.get_level_values(0)
    rows = {
        str(kind): fit_one(x[kinds == kind], y[kinds == kind], level_of(levels, kind, truth)) for kind in kinds.unique()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=range(int(levels.to_numpy().max()) + 1))


def level_of(levels: pd.DataFrame, kind: str, like: pd.DataFrame) -> np.ndarray:
    """Levels (genes,) of a cell type in the order of a frame's genes."""
    if kind not in levels.index or not like.columns.isin(levels.columns).all():
        raise SchemaError(
            f"no expression levels for {kind!r} and all genes", expected=f"one of {shorten(levels.index)}"
        )
    return levels.loc[kind].reindex(like.columns).to_numpy(int)


def fit_one(x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Factors (levels,) for x, y (conditions, genes) and level (genes,) of a cell type; one where no signal is."""
    count = level.max() + 1
    xy, xx = (np.stack([np.bincount(level, row, count) for row in values]) for values in (x * y, x * x))
    factors = np.ones(count)
    for _ in range(ROUNDS):
        error = np.sqrt(((y - factors[level] * x) ** 2).mean(axis=1))
        weights = 1 / np.maximum(error, TINY)
        top, bottom = weights @ xy, weights @ xx
        factors = np.maximum(np.divide(top, bottom, out=np.ones(count), where=bottom > TINY), 0.0)
    return factors


def shrink(predictions: pd.DataFrame, factors: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """Predictions (conditions x genes) times the factor of their cell type and the gene's expression level in it."""
    kinds = predictions.index.get_level_values(0)
    absent = kinds.unique().difference(factors.index)
    if len(absent):
        raise SchemaError(f"no factor was fitted for cell type {shorten(absent)}", expected=shorten(factors.index))
    scale = {kind: factors.loc[kind].to_numpy()[level_of(levels, kind, predictions)] for kind in kinds.unique()}
    return predictions * np.stack([scale[kind] for kind in kinds])
