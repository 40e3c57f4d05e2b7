"""Tail probabilities in log space: exact where p itself would underflow to zero.

The two-sided p of Student's t is the regularised incomplete beta function I_x(df/2, 1/2) at
x = df/(df + t^2).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import (
    betainc,
    betaincc,
    betaln,
    erf,
    gammaincc,
    gammaln,
    log_ndtr,
    ndtri_exp,
    stdtrit,
)

_Array = NDArray[np.float64]

_SAFE = 1e-280  # below this, the incomplete beta function itself loses digits
_TABLE_END = 40.0
_TABLE_STEP = 1 / 256  # cubic Hermite interpolation over |t|: within 2e-9 of log p
_TABLE_PAYS = 40_000  # values of one df from which making its table is cheaper than the values
_PIECE = 1 << 15  # values at a time: they stay in the cache


def log_p_t(t: ArrayLike, df: ArrayLike, *, total: int | None = None) -> _Array:
    """Natural log of the two-sided p of t (..., genes), df a number or (genes,) or infinite.

    Many values of one df are read off a table of it; ``total`` says of how many values these are a
    part, where a number df serves more calls to come.
    """
    size: _Array = np.abs(np.asarray(t, dtype=float))
    degrees: _Array = np.asarray(df, dtype=float)
    if degrees.ndim == 0:
        return _same_df(size, float(degrees), (total or size.size) >= _TABLE_PAYS)
    result = np.empty(np.broadcast_shapes(size.shape, degrees.shape))
    values, inverse, counts = np.unique(degrees, return_inverse=True, return_counts=True)
    common = counts * (size.size / max(size.shape[-1], 1)) >= _TABLE_PAYS
    for i in np.flatnonzero(common):
        genes = inverse == i
        result[..., genes] = _same_df(size[..., genes], float(values[i]), True)
    rest = ~common[inverse]
    result[..., rest] = _exact_log_p_t(size[..., rest], degrees[rest])
    return result


def _same_df(t: _Array, df: float, tabulate: bool) -> _Array:
    """Log p of |t| with one df."""
    if not tabulate or np.isnan(df):
        return _exact_log_p_t(t, df)
    flat = t.ravel()
    within = np.fmin(flat, _TABLE_END)
    coefficients = _hermite_table(df)
    result = np.empty_like(flat)
    for start in range(0, len(flat), _PIECE):
        at = within[start : start + _PIECE] / _TABLE_STEP
        cell = at.astype(np.int32)
        at -= cell
        piece = coefficients[3].take(cell, mode="clip")
        for c in coefficients[2::-1]:
            piece *= at
            piece += c.take(cell, mode="clip")
        result[start : start + _PIECE] = piece
    outside = np.flatnonzero(~(flat < _TABLE_END))  # NaN too
    result[outside] = _exact_log_p_t(flat[outside], df)
    return result.reshape(t.shape)


@lru_cache(maxsize=16)
def _hermite_table(df: float) -> _Array:
    """Coefficients (4, cells), constant first, of cubics through log p and its slopes."""
    grid = np.arange(0, _TABLE_END + 2 * _TABLE_STEP, _TABLE_STEP)
    values = _exact_log_p_t(grid, df)
    if np.isinf(df):
        log_density = -0.5 * grid**2 - 0.5 * np.log(2 * np.pi)
    else:
        scale = 0.5 * np.log(df)
        log_density = -(df + 1) / 2 * np.log1p(grid**2 / df) - scale - betaln(df / 2, 0.5)
    slopes = -2 * np.exp(log_density - values) * _TABLE_STEP  # d log p / dt = -2 density / p
    left, right, rise = slopes[:-1], slopes[1:], np.diff(values)
    return np.stack([values[:-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise])


def _exact_log_p_t(t: _Array, df: ArrayLike) -> _Array:
    """Log p of |t| and df of any matching shapes, computed directly."""
    t, degrees = np.broadcast_arrays(t, np.asarray(df, dtype=float))
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = t / degrees * t  # in this order t^2 does not overflow first
        y = np.where(np.isinf(ratio), 1.0, ratio / (1 + ratio))
        result = _log_beta_tail(degrees / 2, np.full(degrees.shape, 0.5), y, -np.log1p(ratio))
    normal = np.isinf(degrees)
    if not normal.any():
        return result
    # near zero p is 1 - erf, whose digits log_ndtr does not have; further out it is the other way
    near = np.log1p(-erf(np.minimum(t, 1) / np.sqrt(2)))
    return np.where(normal, np.where(t < 1, near, np.log(2) + log_ndtr(-t)), result)


def log_p_beyond(effects: _Array, se: _Array, df: _Array, lfc: float) -> tuple[_Array, _Array]:
    """t and log p of McCarthy and Smyth's (2009) test that |effect| is beyond ``lfc``."""
    size = np.abs(effects)
    beyond, within = (size - lfc) / se, (size + lfc) / se
    log_p = np.logaddexp(_log_upper_tail(beyond, df), _log_upper_tail(within, df))
    t = np.where(size > lfc, np.sign(effects) * np.maximum(beyond, 0), 0.0)
    return t, np.minimum(log_p, 0)


def _log_upper_tail(t: _Array, df: _Array) -> _Array:
    """log P(T > t) of Student's t."""
    half = log_p_t(t, df) - np.log(2)
    return np.where(t >= 0, half, np.log1p(-np.exp(half)))


def inverse_log_p_t(log_p: _Array, df: float) -> _Array:
    """The |t| of a natural log of a two-sided p; df a number, or infinite."""
    one_sided = np.asarray(log_p, dtype=float) - np.log(2)
    if np.isinf(df):
        return np.abs(ndtri_exp(one_sided))
    p = np.exp(one_sided)
    with np.errstate(divide="ignore"):
        t: _Array = np.abs(stdtrit(df, p))
    # p loses its digits, or underflows, far out: there log p falls in proportion to log t, so that
    # Newton's steps on those two gain digits fast
    far = (one_sided < -30) & np.isfinite(log_p)
    if far.any():
        wanted = np.asarray(log_p, dtype=float)[far]
        log_t = (np.log(2) + (df / 2 - 1) * np.log(df) - betaln(df / 2, 0.5) - wanted) / df
        for _ in range(50):
            at = np.exp(log_t)
            value = _exact_log_p_t(at, df)
            log_density = -(df + 1) / 2 * np.log1p(at / df * at) - 0.5 * np.log(df)
            slope = -2 * np.exp(log_density - betaln(df / 2, 0.5) + log_t - value)
            step = (value - wanted) / slope
            log_t = log_t - step
            if np.abs(step).max() < 1e-15:
                break
        t[far] = np.exp(log_t)
    return t


def log_p_f(f: _Array, df1: float, df2: ArrayLike) -> _Array:
    """Log of the upper tail of the F distribution; df2 may be infinite."""
    f, prior = np.broadcast_arrays(f, np.asarray(df2, dtype=float))
    infinite = np.isinf(prior)
    if infinite.all():
        return _log_gamma_tail(df1 / 2, df1 * f / 2)
    with np.errstate(invalid="ignore"):
        ratio = df1 * f / prior
        half = np.full(f.shape, df1 / 2)
        result = _log_beta_tail(prior / 2, half, ratio / (1 + ratio), -np.log1p(ratio))
    if not infinite.any():
        return result
    return np.where(infinite, _log_gamma_tail(df1 / 2, df1 * f / 2), result)


def _log_beta_tail(a: _Array, b: _Array, y: _Array, log_x: _Array) -> _Array:
    """log I_x(a, b) with y = 1 - x and log x given apart, so that neither end loses digits."""
    x = np.exp(log_x)
    p = np.where(y < 0.5, betaincc(b, a, y), betainc(a, b, x))
    with np.errstate(divide="ignore"):
        result = np.where(p < 0.5, np.log(p), np.log1p(-np.minimum(betainc(b, a, y), 0.6)))
    tiny = p < _SAFE
    if tiny.any():
        result[tiny] = _log_beta_fraction(a[tiny], b[tiny], y[tiny], log_x[tiny])
    return result


def _log_beta_fraction(a: _Array, b: _Array, y: _Array, log_x: _Array) -> _Array:
    """log I_x(a, b) far in the tail, by the continued fraction DLMF 8.17.22 (modified Lentz)."""
    x = np.exp(log_x)
    c, d = np.ones_like(x), 1 / (1 - (a + b) * x / (a + 1))
    fraction = d.copy()
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= c * d
        if (np.abs(c * d - 1) < 1e-14).all():
            break
    with np.errstate(divide="ignore", invalid="ignore"):
        result = a * log_x + b * np.log(y) - np.log(a) - betaln(a, b) + np.log(fraction)
    return np.where(np.isneginf(log_x), -np.inf, result)


def _log_gamma_tail(a: float, x: _Array) -> _Array:
    """log Q(a, x), the upper regularised incomplete gamma function."""
    p = gammaincc(a, x)
    with np.errstate(divide="ignore"):
        result = np.atleast_1d(np.log(p))
    tiny = np.atleast_1d(p < _SAFE)
    far = np.atleast_1d(x)[tiny]
    # Q(a, x) = x^(a-1) e^-x / Gamma(a) (1 + (a-1)/x + (a-1)(a-2)/x^2 + ...), x being hundreds of
    # times a
    series, term = np.ones_like(far), np.ones_like(far)
    for k in range(1, 40):
        term = term * (a - k) / far
        series += np.where(np.abs(term) >= 1, 0, term)  # asymptotic: terms that grow do not count
    result[tiny] = (a - 1) * np.log(far) - far - gammaln(a) + np.log(series)
    return result.reshape(np.shape(x))
