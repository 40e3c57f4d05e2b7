"""B statistics: the log odds that a gene responds (Lonnstedt & Speed 2002, Smyth 2004)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perturbgen.de.tails import inverse_log_p_t, log_p_t

if TYPE_CHECKING:
    from perturbgen.de.moderate import Moderation

_Array = NDArray[np.float64]
_DEVIATIONS = (0.1, 4.0)  # limits of the SD of true log fold changes, limma's stdev.coef.lim
_FLAT = 1e6  # prior df from which limma takes a prior to be certain


def log_odds(t: _Array, unscaled: _Array, moderation: Moderation, proportion: float) -> _Array:
    """B (contrasts, genes), if a ``proportion`` of the genes respond."""
    df, prior = moderation.df_total, moderation.prior
    limits = np.square(_DEVIATIONS) / np.median(prior.scale)
    pairs = zip(t, unscaled, strict=True)
    variance = np.array([_effect_variance(row, u, df, proportion, limits) for row, u in pairs])
    ratio = 1 + variance[:, None] / unscaled**2
    squares = t**2
    certain = prior.df > _FLAT
    with np.errstate(invalid="ignore"):  # infinite df, of genes that are certain
        kernel = (1 + df) / 2 * np.log((squares + df) / (squares / ratio + df))
    kernel = np.where(certain, squares * (1 - 1 / ratio) / 2, kernel)
    odds: _Array = np.log(proportion / (1 - proportion)) - np.log(ratio) / 2 + kernel
    return odds


def _effect_variance(
    t: _Array, unscaled: _Array, df: _Array, proportion: float, limits: _Array
) -> float:
    """The variance of the effects of genes that respond, over the residual variance.

    Of the genes of the largest |t|, half as many as are supposed to respond: each has the variance
    that would make its t what is expected of its rank.
    """
    genes = len(t)
    number = int(np.ceil(proportion / 2 * genes))
    p = max(number / genes, proportion)
    size, most = np.abs(t), float(df.max())
    fewer = df < most
    if fewer.any():  # t as it were with the most df, at the same p
        size[fewer] = inverse_log_p_t(log_p_t(size[fewer], df[fewer]), most)
    top = np.argsort(-size, kind="stable")[:number]
    size = size[top]
    expected = np.exp(log_p_t(size, most))
    target = ((np.arange(1, number + 1) - 0.5) / genes - (1 - p) * expected) / p
    found = np.zeros(number)
    above = target > expected
    quantile = inverse_log_p_t(np.log(target[above]), most)
    found[above] = unscaled[top][above] ** 2 * ((size[above] / quantile) ** 2 - 1)
    return float(np.clip(found, *limits).mean())
