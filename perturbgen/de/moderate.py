"""Empirical Bayes moderation of residual variances, with an intensity trend or robustly if asked.

The prior of the variances is estimated from all genes at once (Smyth 2004), or so that a few
outlying genes cannot distort it (Phipson, Lee, Majewski, Alexander & Smyth 2016). It is limma's
``squeezeVar`` as ``eBayes`` calls it, with ``trend`` and ``robust`` as there, by ``fitFDist`` and
``fitFDistRobustly``; ``tests/de/test_parity_r.py::test_moderated_statistics`` holds it to R.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaln, chdtri, digamma, fdtri, gammaln, polygamma
from scipy.stats import rankdata

from perturbgen.core.errors import DesignError
from perturbgen.de.tails import log_p_f
from perturbgen.de.trend import Trend

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_TAILS = (0.05, 0.1)  # the shares of log variances that are winsorised below and above
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(128)


@dataclass(frozen=True)
class _Prior:
    """The scaled inverse chi-square prior of the variances: ``scale`` and ``df``, both (genes,)."""

    scale: _Array
    df: _Array


@dataclass(frozen=True)
class Moderation:
    """Posterior variances and total degrees of freedom, both (genes,), and the prior."""

    s2_post: _Array
    df_total: _Array
    prior: _Prior


def moderate(
    variance: _Array, df: float, *, mean: _Array, robust: bool = False, trend: bool = False
) -> Moderation:
    """Squeeze residual variances (genes,) of ``df`` each towards a prior that all share.

    The posterior mean is (df s^2 + df_0 s_0^2) / (df + df_0). ``mean`` (genes,) are the average log
    expressions that ``trend`` follows; ``robust`` gives outlying genes less prior.
    """
    if df <= 0:
        what = "no residual degrees of freedom: there are as many coefficients as samples"
        raise DesignError(what)
    prior = (_robust_prior if robust else _fit_prior)(variance, df, mean if trend else None)
    infinite = np.isinf(prior.df)
    weight = np.where(infinite, 0.0, prior.df)
    blended = (df * variance + weight * prior.scale) / (df + weight)
    # the total df never exceed those of all genes together, which is all that was measured
    df_total = np.minimum(df + prior.df, df * len(variance))
    return Moderation(np.where(infinite, prior.scale, blended), df_total, prior)


def _fit_prior(variance: _Array, df: float, covariate: _Array | None = None) -> _Prior:
    """Fit scale * F(df, df_0) to the variances by the mean and variance of their logarithms.

    e_g = log s_g^2 - psi(df/2) + log(df/2) has mean log s_0^2 - psi(df_0/2) + log(df_0/2) and
    variance psi'(df/2) + psi'(df_0/2). With a ``covariate`` the mean follows a spline of it.
    """
    n = len(variance)
    if n == 1:
        return _Prior(variance.copy(), np.zeros(1))
    offset = _away_from_zero(variance)
    e = np.log(offset) - digamma(df / 2) + np.log(df / 2)
    mean, excess = _fit_mean(e, covariate)
    excess -= float(polygamma(1, df / 2))
    if excess > 0:
        prior_df = 2 * _inverse_trigamma(excess)
        scale = np.exp(mean + digamma(prior_df / 2) - np.log(prior_df / 2))
    else:  # the variances differ by no more than chance: all share one
        prior_df = np.inf
        scale = np.exp(mean) if covariate is not None else np.full(n, offset.mean())
    return _Prior(scale, np.full(n, prior_df))


def _away_from_zero(variance: _Array) -> _Array:
    """Variances of at least 1e-5 of their median, with a warning where some were zero."""
    middle = float(np.median(variance))
    if middle == 0:
        log.warning(
            "more than half of the residual variances are exactly zero: moderation is unreliable"
        )
        middle = 1.0
    elif zeros := int((variance == 0).sum()):
        words = "zero sample variances in %d genes are offset from zero; are samples duplicated?"
        log.warning(words, zeros)
    return np.maximum(variance, 1e-5 * middle)


def _fit_mean(e: _Array, covariate: _Array | None) -> tuple[_Array, float]:
    """Fitted means (genes,) and residual variance of e, about one mean or a spline."""
    n, terms = len(e), 1
    if covariate is not None:
        # limma's rule: few genes cannot carry a bent curve, nor can few distinct means
        terms = min(1 + (n >= 3) + (n >= 6) + (n >= 30), len(np.unique(covariate)))
    if covariate is None or terms < 2:
        return np.full(n, e.mean()), float(e.var(ddof=1))
    basis = np.linalg.qr(_natural_spline(covariate, terms))[0]
    fitted = basis @ (basis.T @ e)
    return fitted, float(((e - fitted) ** 2).sum() / (n - basis.shape[1]))


def _natural_spline(x: _Array, terms: int) -> _Array:
    """Natural cubic splines (points, terms), intercept included, inner knots at quantiles of x.

    Fewer terms where quantiles coincide, as they do when many genes have no counts.
    """
    low, high = float(x.min()), float(x.max())
    inner = np.quantile(x, np.linspace(0, 1, terms)[1:-1])
    knots = (np.unique(np.r_[low, inner, high]) - low) / (high - low)
    x = (x - low) / (high - low)

    def beyond(knot: float) -> _Array:
        return (np.maximum(x - knot, 0) ** 3 - np.maximum(x - 1, 0) ** 3) / (1 - knot)

    curved = [beyond(knot) - beyond(knots[-2]) for knot in knots[:-2]]
    return np.column_stack([np.ones_like(x), x, *curved])


def _inverse_trigamma(value: float) -> float:
    """The y with psi'(y) = value > 0, by Newton's method on 1/psi' (Smyth 2004, appendix)."""
    # psi'(y) is about 1/y^2 near zero and 1/y far out: there Newton's steps gain nothing
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


def _robust_prior(variance: _Array, df: float, covariate: _Array | None = None) -> _Prior:
    """The prior of the bulk of the genes, with less of it for genes unlikely to belong to it."""
    n = len(variance)
    plain = _fit_prior(variance, df, covariate)
    if n < 2 or max(_TAILS) < 1 / n:  # nothing would be winsorised
        return plain
    z = np.log(np.maximum(variance, np.median(variance) * 1e-12))
    if covariate is not None:  # a curve that outliers do not bend, as a spline would be
        trend = Trend.lowess(covariate, z, span=0.4)(covariate)
    else:
        cut = int(n * _TAILS[1])
        trend = np.full(n, np.sort(z)[cut : n - cut].mean())
    residual = z - trend
    winsorised = np.clip(residual, *np.quantile(residual, [_TAILS[0], 1 - _TAILS[1]]))
    spread = float(winsorised.var(ddof=1))

    # df_0 is searched for as u = df_0 / (1 + df_0), so that infinity is within reach at u = 1
    def df_at(u: float) -> float:
        return np.inf if u >= 1 else u / (1 - u)

    def gap(u: float) -> float:
        return float(np.log(spread / _winsorised_moments(df, df_at(u))[1]))

    # the winsorised log variances spread less the larger df_0 is: the root is where they match
    plain_df = float(plain.df[0])
    if gap(1.0) <= 0:
        prior_df = np.inf
    elif np.isinf(plain_df):
        return plain
    else:
        low = plain_df / (1 + plain_df)
        solved = gap(low) >= 0
        prior_df = plain_df if solved else df_at(brentq(gap, low, 1.0, xtol=1e-15, rtol=1e-14))
    scale = np.exp(trend + winsorised.mean() - _winsorised_moments(df, prior_df)[0])
    f = np.exp(z - np.log(scale))
    return _Prior(scale, _shrunken_df(f, df, prior_df))


def _winsorised_moments(df1: float, df2: float) -> tuple[float, float]:
    """Mean and variance of log F(df1, df2), winsorised at its tail quantiles."""
    tails = np.array(_TAILS)
    quantiles = (_TAILS[0], 1 - _TAILS[1])
    if np.isinf(df2):
        ends = np.array([float(chdtri(df1, 1 - p) / df1) for p in quantiles])
    else:
        ends = np.array([float(fdtri(df1, df2, p)) for p in quantiles])
    # Gauss quadrature over f / (1 + f), which lies between 0 and 1
    start, stop = ends / (1 + ends)
    nodes = start + (stop - start) * (_NODES + 1) / 2
    f = nodes / (1 - nodes)
    density = np.exp(_log_density_f(f, df1, df2))
    mass = (stop - start) * _NODE_WEIGHTS / 2 * density / (1 - nodes) ** 2
    inside, edges = np.log(f), np.log(ends)
    mean = float(mass @ inside + tails @ edges)
    return mean, float(mass @ (inside - mean) ** 2 + tails @ (edges - mean) ** 2)


def _log_density_f(f: _Array, df1: float, df2: float) -> _Array:
    """Log density of the F distribution; df2 may be infinite."""
    a, b = df1 / 2, df2 / 2
    if np.isinf(df2):
        return a * np.log(a) - gammaln(a) + (a - 1) * np.log(f) - a * f
    ratio = df1 * f / df2
    return a * np.log(df1 / df2) + (a - 1) * np.log(f) - (a + b) * np.log1p(ratio) - betaln(a, b)


def _shrunken_df(f: _Array, df: float, prior_df: float) -> _Array:
    """Prior df (genes,): the bulk's ``prior_df`` for likely members, less of it for outliers.

    ``f`` (genes,) are variances over the prior's scale. A gene is likely where its tail probability
    is no smaller than the share of genes that are at least as extreme.
    """
    n = len(f)
    log_tail = log_p_f(f, df, prior_df)
    log_share = np.log((n - rankdata(f) + 0.5) / n)
    log_likely = np.minimum(log_tail - log_share, 0)
    order = np.argsort(log_tail, kind="stable")
    if np.isinf(prior_df):
        likely = np.exp(log_likely)
        shrunk = np.where(likely < 1, likely * n * df, np.inf)
    elif not (log_likely < 0).any():
        return np.full(n, prior_df)
    else:
        # the df with which the largest variance would be a median one, from two proportional steps
        extreme = np.log(0.5) / log_tail.min() * prior_df
        extreme *= np.log(0.5) / float(log_p_f(f.max(keepdims=True), df, extreme)[0])
        shrunk = np.exp(log_likely) * prior_df - np.expm1(log_likely) * extreme
        running = np.cumsum(shrunk[order]) / np.arange(1, n + 1)
        lowest = int(running.argmin())
        shrunk[order[: lowest + 1]] = running[lowest]
    # a gene that is more extreme never has more prior
    result = np.empty_like(shrunk)
    result[order] = np.maximum.accumulate(shrunk[order])
    return result
