"""Count likelihoods in log space, exact in float32.

The textbook formula of the negative binomial subtracts log-gammas of the size of r log r: in
float32 its pmf exceeds 1 once r is large, which training then exploits. Here a count k > 0 is
evaluated by its deviance (Loader 2000, as R does):

    log NB(k; m, r) = −D − ½ log(2π k (k+r)/r) + δ(k+r) − δ(k) − δ(r)
    D = k log[k (m+r) / m (k+r)] + r log[(m+r)/(k+r)]  ≥ 0

with δ the small remainder of Stirling's formula, and k = 0 by −r log(1 + m/r).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from perturbgen.core.errors import PerturbgenError

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# From 6 on the series are exact to 1e-11; under it the direct difference loses less than 1e-6 in
# float32.
_STEPS = 6


def _log_gamma_remainder(x: Tensor) -> Tensor:
    """δ(x) = log Γ(x) − [(x − ½) log x − x + ½ log 2π], for x > 0; about 1/12x."""
    inverse = 1 / x
    square = inverse * inverse
    series = inverse * (
        1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    )
    direct = torch.lgamma(x) - (x - 0.5) * x.log() + x - HALF_LOG_2PI
    return torch.where(x < _STEPS, direct, series)


def _digamma_remainder(x: Tensor) -> Tensor:
    """ε(x) = log x − ψ(x), for x > 0; about 1/2x.

    By ψ(x + 6) = ψ(x) + Σ 1/(x + i), i < 6, and the series there: several times faster than
    ``torch.digamma``.
    """
    inverse = 1 / (x + _STEPS)
    square = inverse * inverse
    series = inverse / 2 + square * (
        1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132)))
    )
    reciprocals = 1 / x
    for step in range(1, _STEPS):
        reciprocals = reciprocals + 1 / (x + step)
    return series + reciprocals - torch.log1p(_STEPS / x)


class ShapeError(PerturbgenError, ValueError):
    """Two arrays do not fit together."""


class SparseCounts(Protocol):
    """The non-zeros of a batch; cell ``i`` owns ``offsets[i]`` up to ``offsets[i + 1]``."""

    @property
    def values(self) -> Tensor:
        """(non-zeros,)."""

    @property
    def columns(self) -> Tensor:
        """The gene of each, int64 (non-zeros,)."""

    @property
    def offsets(self) -> Tensor:
        """int64 (cells + 1,)."""

    @property
    def n_genes(self) -> int:
        """How many genes."""


def cell_of_each(offsets: Tensor, n: int) -> Tensor:
    """The cell of each of ``n`` non-zeros, int64 (non-zeros,)."""
    cells = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(cells, offsets.diff(), output_size=n)


def _common_shape(counts: Tensor, log_mean: Tensor, **parameters: Tensor) -> torch.Size:
    """The shape of counts given means: theirs, which may differ in leading (draw) axes only.

    Further parameters may broadcast into that shape but not widen it.
    """
    shape = max(counts.shape, log_mean.shape, key=len)
    shared = min(counts.ndim, log_mean.ndim)
    if counts.shape[counts.ndim - shared :] != log_mean.shape[log_mean.ndim - shared :]:
        raise ShapeError(
            f"counts of shape {tuple(counts.shape)} with means of shape {tuple(log_mean.shape)}",
            expected="the same shape, (cells, genes), or further leading axes in one of them",
            cause="a vector (cells,) met a column (cells, 1): they broadcast to (cells, cells)",
            fix="reshape one of them: x[:, None] makes the column, x.squeeze(-1) the vector",
        )
    for name, value in parameters.items():
        check_fits(name, value, shape)
    return shape


def check_fits(name: str, value: Tensor, shape: torch.Size) -> None:
    """Refuse a parameter that does not broadcast into ``shape``."""
    shared = zip(reversed(value.shape), reversed(shape), strict=False)
    if value.ndim > len(shape) or any(own not in (1, full) for own, full in shared):
        raise ShapeError(
            f"{name} of shape {tuple(value.shape)} does not fit into {tuple(shape)}",
            expected="one value, one per gene (genes,), one per cell (cells, 1), "
            "or one of each (cells, genes)",
            fix=f"reshape it; {name}[:, None] makes a column of a vector of cells",
        )


# Beyond these r equals its limits in float32 for any count (a Poisson above), and powers of e stay
# finite.
_LOG_R_LIMITS = (-30.0, 40.0)
# m under e^-60 enters the ratios of the deviance as e^-60, the rest linearly: there log(1 + c/m) =
# log c - log m.
_LEAST_LOG_MEAN = -60.0


def nb_log_prob(counts: Tensor, log_mean: Tensor, log_r: Tensor | float) -> Tensor:
    """Log NB(k; m, r), whose mean is m and variance m + m²/r, of counts (cells, genes).

        log Γ(k+r) − log Γ(r) − log k! + k log m/(r+m) + r log r/(r+m)

    is what it equals, not how it is computed: that is said at the head of this file. Takes m and r
    in log space, so that m → 0 and r → ∞ (the Poisson limit) stay exact in float32.
    ``log_r`` may be one value, (genes,) or (cells, 1); half precision is raised to float32. The
    gradient (in ``log_mean`` and ``log_r``) is in closed form, and cannot be differentiated again.
    """
    log_mean, log_r = _as_floats(log_mean, log_r)
    shape = _common_shape(counts, log_mean, log_r=log_r)
    if not shape:
        return nb_log_prob(counts[None], log_mean[None], log_r)[0]
    counts = counts.expand(shape)
    # A NaN or a negative count is not zero: it gives NaN, which the loop reports.
    where = counts.nonzero(as_tuple=True)
    positive = counts[where].to(log_mean.dtype)
    return _NegativeBinomial.apply(positive, log_mean.expand(shape), log_r, *where)


def nb_log_prob_sparse(
    values: Tensor, columns: Tensor, offsets: Tensor, log_mean: Tensor, log_r: Tensor | float
) -> Tensor:
    """Log NB of whole cells, (cells,): ``nb_log_prob`` summed over genes, from the non-zeros.

    Non-zero ``i`` is ``values[i]`` in gene ``columns[i]``; cell ``c`` owns ``offsets[c]`` up to
    ``offsets[c + 1]``. ``log_mean`` is (cells, genes), ``log_r`` broadcasts into it. Only non-zeros
    need log-gammas.
    """
    log_mean, log_r = _as_floats(log_mean, log_r)
    if log_mean.ndim != 2 or len(offsets) != len(log_mean) + 1 or values.shape != columns.shape:
        raise ShapeError(
            f"{len(offsets) - 1} cells, {len(values)} values in {len(columns)} columns, "
            f"means {tuple(log_mean.shape)}",
            expected="offsets (cells + 1,), values and columns (non-zeros,), "
            "log_mean (cells, genes)",
        )
    _common_shape(log_mean, log_mean, log_r=log_r)
    rows = cell_of_each(offsets, len(values))
    stored = values != 0  # a file may store zeros
    where = rows[stored], columns[stored]
    counts = values[stored].to(log_mean.dtype)
    return _NegativeBinomial.apply(counts, log_mean, log_r, *where).sum(-1)


def sample_nb(log_mean: Tensor, log_r: Tensor, generator: torch.Generator | None) -> Tensor:
    """Counts of the shape of ``log_mean``: k ~ Poisson(g), g ~ Gamma(shape r, mean m)."""
    r = log_r.clamp(*_LOG_R_LIMITS).exp().expand(log_mean.shape)
    # torch.distributions.Gamma calls the same function, but takes no generator.
    rate = torch._standard_gamma(r, generator=generator) / r * log_mean.exp()
    return torch.poisson(rate, generator=generator)


def zinb_log_prob(
    counts: Tensor, log_mean: Tensor, log_r: Tensor | float, dropout_logits: Tensor
) -> Tensor:
    """Log of π [k = 0] + (1 − π) NB(k; m, r), π = sigmoid(dropout_logits), all (cells, genes)."""
    log_nb = nb_log_prob(counts, log_mean, log_r)
    dropout_logits = dropout_logits.to(log_nb.dtype)
    _common_shape(counts, log_mean, dropout_logits=dropout_logits)
    at_zero = torch.logaddexp(dropout_logits, log_nb)
    return torch.where(counts == 0, at_zero, log_nb) - functional.softplus(dropout_logits)


def gaussian_log_prob(values: Tensor, mean: Tensor, log_sd: Tensor | float) -> Tensor:
    """Log N(x; μ, σ²) = −½ ((x − μ)/σ)² − log σ − ½ log 2π, all (cells, genes)."""
    mean, log_sd = _as_floats(mean, log_sd)
    _common_shape(values, mean, log_sd=log_sd)
    return -0.5 * ((values - mean) * torch.exp(-log_sd)).square() - log_sd - HALF_LOG_2PI


class _NegativeBinomial(torch.autograd.Function):
    """The log pmf, its slopes in closed form: automatic ones cost a digamma a zero, and cancel."""

    @staticmethod
    def forward(
        ctx: Any, counts: Tensor, log_mean: Tensor, log_r: Tensor, *where: Tensor
    ) -> Tensor:
        """Of the zeros everywhere, then of the ``counts`` (non-zeros,) at ``where``."""
        bounded = log_r.clamp(*_LOG_R_LIMITS)
        r, mean = bounded.exp(), log_mean.exp()
        odds = mean / r
        by_log_mean = mean.div_(1 + odds).neg_()
        log_prob = odds.log1p_().mul_(-r)
        at_counts = log_mean[where], bounded.expand_as(log_mean)[where]
        log_prob[where], by_log_mean[where], by_log_r = _positive_counts(counts, *at_counts)
        ctx.save_for_backward(log_prob, by_log_mean, by_log_r, *where)
        ctx.r_shape = log_r.shape
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Towards ``log_mean`` and ``log_r``."""
        log_prob, by_log_mean, by_log_r, *where = ctx.saved_tensors
        to_mean = to_r = None
        if ctx.needs_input_grad[1]:
            to_mean = grad * by_log_mean
        if ctx.needs_input_grad[2]:
            slope = log_prob - by_log_mean  # of the zeros: -r log(1 + m/r) + rm/(r + m)
            slope[tuple(where)] = by_log_r
            to_r = slope.mul_(grad).sum_to_size(ctx.r_shape)
        return None, to_mean, to_r, *(None for _ in where)


def _positive_counts(k: Tensor, log_mean: Tensor, log_r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log NB of counts k > 0 and its slopes along log m and log r, all (non-zeros,).

    With a < b the two of k and m, both logarithms of the deviance are ± log(1 + a positive number),
    so that neither cancels wherever m lies: log[k (m+r) / m (k+r)] by r (b−a) / a (b+r), and
    log[(k+r)/(m+r)] by (b−a) / (a+r).
    """
    floored = log_mean.clamp(min=_LEAST_LOG_MEAN)
    mean, r = floored.exp(), log_r.exp()
    a, b, sign = torch.minimum(k, mean), torch.maximum(k, mean), torch.sign(k - mean)
    gap = b - a
    towards_r = sign * r * torch.log1p(gap / (a + r))
    towards_mean = sign * k * torch.log1p(r * gap / (a * (b + r)))
    deviance = towards_mean - towards_r - k * (log_mean - floored)
    spread = HALF_LOG_2PI + 0.5 * (k.log() + torch.log1p(k / r))
    remainders = _log_gamma_remainder(k + r) - _log_gamma_remainder(k) - _log_gamma_remainder(r)
    by_log_mean = (k - mean) * (r / (mean + r))
    by_log_r = towards_r - by_log_mean + r * (_digamma_remainder(r) - _digamma_remainder(k + r))
    return remainders - deviance - spread, by_log_mean, by_log_r


def _as_floats(location: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Both with the type and device of the first, half precision raised to float32."""
    location = location.float() if location.dtype in (torch.float16, torch.bfloat16) else location
    return location, torch.as_tensor(scale, dtype=location.dtype, device=location.device)
