"""The prior of residual variances, estimated from all genes at once (Smyth 2004)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

log = logging.getLogger(__name__)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """The scaled inverse chi-square prior of the variances: ``scale`` and ``df``, both (genes,)."""

    scale: Array
    df: Array


def fit_prior(variance: Array, df: float, covariate: Array | None = None) -> Prior:
    """Fit scale * F(df, df_0) to the variances by the mean and variance of their logarithms.

    e_g = log s_g^2 - psi(df/2) + log(df/2) has mean log s_0^2 - psi(df_0/2) + log(df_0/2) and variance
    psi'(df/2) + psi'(df_0/2). With a ``covariate`` the mean follows a natural cubic spline of it.
    """
    n = len(variance)
    if n == 1:
        return Prior(variance.copy(), np.zeros(1))
    offset = away_from_zero(variance)
    e = np.log(offset) - digamma(df / 2) + np.log(df / 2)
    mean, excess = fit_mean(e, covariate)
    excess -= float(polygamma(1, df / 2))
    if excess > 0:
        prior_df = 2 * inverse_trigamma(excess)
        scale = np.exp(mean + digamma(prior_df / 2) - np.log(prior_df / 2))
    else:
        prior_df = np.inf
        scale = np.exp(mean) if covariate is not None else np.full(n, offset.mean())
    return Prior(scale, np.full(n, prior_df))


def away_from_zero(variance: Array) -> Array:
    """Variances of at least 1e-5 of their median, with a warning where some were zero."""
    middle = float(np.median(variance))
    if middle == 0:
        log.warning("more than half of the residual variances are exactly zero: moderation is unreliable")
        middle = 1.0
    elif (variance == 0).any():
        log.warning(
            "zero sample variances in %d genes are offset from zero; are samples duplicated?", (variance == 0).sum()
        )
    return np.maximum(variance, 1e-5 * middle)


def fit_mean(e: Array, covariate: Array | None) -> tuple[Array, float]:
    """Fitted means (genes,) and residual variance of e: about one mean, or about a spline of the covariate."""
    n = len(e)
    terms = 1 if covariate is None else min(1 + (n >= 3) + (n >= 6) + (n >= 30), len(np.unique(covariate)))
    if covariate is None or terms < 2:
        return np.full(n, e.mean()), float(e.var(ddof=1))
    basis = np.linalg.qr(natural_spline(covariate, terms))[0]
    fitted = basis @ (basis.T @ e)
    return fitted, float(((e - fitted) ** 2).sum() / (n - basis.shape[1]))


def natural_spline(x: Array, terms: int) -> Array:
    """A basis (points, terms) of natural cubic splines, intercept included, with inner knots at quantiles of x.

    Fewer terms where quantiles coincide, as they do when many genes have no counts.
    """
    low, high = float(x.min()), float(x.max())
    inner = np.quantile(x, np.linspace(0, 1, terms)[1:-1])
    knots = (np.unique(np.r_[low, inner, high]) - low) / (high - low)
    x = (x - low) / (high - low)

    def beyond(knot: float) -> Array:
        return (np.maximum(x - knot, 0) ** 3 - np.maximum(x - 1, 0) ** 3) / (1 - knot)

    curved = [beyond(knot) - beyond(knots[-2]) for knot in knots[:-2]]
    return np.column_stack([np.ones_like(x), x, *curved])


def inverse_trigamma(value: float) -> float:
    """The y with psi'(y) = value > 0, by Newton's method on 1/psi' (Smyth 2004, appendix)."""
    if value > 1e7:
        return 1 / np.sqrt(value)
    if value < 1e-6:
        return 1 / value
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, y))
        y += step
        if abs(step) < 1e-14 * y:
            break
    return y
