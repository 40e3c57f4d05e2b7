"""Residuals that are as large as the errors on conditions nobody measured: out of fold, counting noise taken out."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.sampling.forest import Forest, fit_forest
from perturbgen.sampling.settings import SamplerSettings
from perturbgen.sampling.wells import CONDITION

Floats = NDArray[np.float64]
# Spread that wells have beyond counting (log scale), for weighting them only: what is drawn is measured.
USUAL_SPREAD: Final = 0.2


def condition_folds(groups: pd.DataFrame, folds: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """A fold for each row. Conditions stay whole; those in many wells (controls), always measured, are dealt by well.

    A condition is in many wells where it has more than twice as many as the median one.
    """
    condition, _ = pd.factorize(pd.MultiIndex.from_frame(groups[CONDITION]), sort=True)
    size = np.bincount(condition)[condition]
    many = size > 2 * np.median(size)
    unit = np.where(many, condition.max() + 1 + np.arange(len(groups)), condition)
    units, unit = np.unique(unit, return_inverse=True)
    return rng.permutation(np.arange(len(units)) % folds)[unit]


def out_of_fold(
    x: NDArray[np.float32],
    y: Floats,
    weights: Floats,
    fold: NDArray[np.int64],
    *,
    settings: SamplerSettings,
    rng: np.random.Generator,
) -> tuple[Forest, Floats]:
    """A forest of all rows, and predictions (rows,) of forests that saw nothing of a row's fold."""
    options = {"trees": settings.trees, "leaf": settings.leaf, "features": settings.features, "rng": rng}
    predicted = np.empty(len(y))
    for i in range(settings.folds):
        out = fold == i
        if out.any():
            part = fit_forest(x[~out], y[~out], weights=weights[~out], **options)  # type: ignore[arg-type]
            predicted[out] = part.predict(x[out])
    return fit_forest(x, y, weights=weights, **options), predicted  # type: ignore[arg-type]


def precision(noise: Floats) -> Floats:
    """Weights (rows,) of observations whose counting noise has this variance."""
    return 1 / (USUAL_SPREAD**2 + noise)


def deconvolve(residual: Floats, noise: Floats) -> Floats:
    """Residuals (rows,) shrunk to the spread they would have without noise of these variances (rows,).

    e x sqrt(s2 / (s2 + noise)), where s2 is the spread beyond noise: the weighted mean of e^2 - noise, never negative.
    """
    weights = precision(noise) ** 2
    spread = max(float((weights * (residual**2 - noise)).sum() / weights.sum()), 0.0)
    return residual * np.sqrt(spread / (spread + noise)) if spread else np.zeros_like(residual)
