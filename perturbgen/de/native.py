"""One fit of the native backend: counts and a design in, moderated statistics out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perturbgen.core.system import spread
from perturbgen.de.contrasts import Contrasts
from perturbgen.de.design import Design
from perturbgen.de.moderate import moderate
from perturbgen.de.normalise import tmm_factors
from perturbgen.de.tails import log_p_t
from perturbgen.de.voom import LogCounts, MeanVariance

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class FitMethod:
    """How a fit is made; see :func:`perturbgen.de.limma_table`."""

    contrasts: str = "exact"
    robust: bool = False
    trend: bool = False
    normalise: str = "tmm"
    span: float | str = 0.5
    device: str = "cpu"


@dataclass(frozen=True)
class FitResult:
    """Statistics of one fit: (contrasts, genes), and (genes,) for what all contrasts share."""

    effects: _Array
    se: _Array
    t: _Array
    log_p: _Array
    df_total: _Array
    ave_expr: _Array
    sigma: _Array
    mean_variance: MeanVariance


def fit_native(
    counts: _Array,
    design: Design,
    weights: _Array,
    method: FitMethod,
    tick: Callable[[float], None] | None = None,
) -> FitResult:
    """limma-voom of counts (samples, genes) with contrast ``weights`` (contrasts, columns)."""
    sizes = counts.sum(axis=1)
    if method.normalise == "tmm":
        sizes = sizes * tmm_factors(counts).to_numpy()
    logs = LogCounts.of(counts, sizes, design, span=method.span)
    contrasts = Contrasts.of(design, weights, method.contrasts)
    sigma, effects, unscaled = _fit_genes(logs, contrasts, device=method.device, tick=tick)
    ave_expr = logs.e.mean(axis=0)
    moderated = moderate(
        sigma**2, design.df_residual, mean=ave_expr, robust=method.robust, trend=method.trend
    )
    df = moderated.df_total
    se, t, log_p = _test(effects, unscaled, np.sqrt(moderated.s2_post), df)
    return FitResult(effects, se, t, log_p, df, ave_expr, sigma, logs.mean_variance)


def _fit_genes(
    logs: LogCounts,
    contrasts: Contrasts,
    *,
    device: str = "cpu",
    tick: Callable[[float], None] | None = None,
) -> tuple[_Array, _Array, _Array]:
    """Residual SD (genes,), effects and unscaled standard errors (contrasts, genes)."""
    if device != "cpu":
        from perturbgen.de.torch_fit import fit_genes_on

        return fit_genes_on(device, logs, contrasts, tick)
    genes = logs.e.shape[1]
    sigma = np.empty(genes)
    effects, unscaled = (np.empty((contrasts.size, genes)) for _ in range(2))

    def fit(columns: slice, y: _Array, weights: _Array) -> None:
        fitted = logs.solver.weighted(y, weights, contrasts.functions)
        sigma[columns] = fitted.sigma
        found = contrasts.combine(fitted.effects, fitted.unscaled)
        effects[:, columns], unscaled[:, columns] = found

    logs.each_block(fit, done=tick)
    return sigma, effects, unscaled


def _test(
    effects: _Array, unscaled: _Array, sd: _Array, df: _Array
) -> tuple[_Array, _Array, _Array]:
    """Standard errors, t and natural log p (contrasts, genes); ``sd`` and ``df`` are (genes,)."""
    se, t, log_p = (np.empty_like(effects) for _ in range(3))
    # with one df for all genes a row at a time stays in the cache; with several they are gone
    # through once a block
    shared, step = (float(df[0]), 1) if (df == df[0]).all() else (df, 64)

    def fill(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        np.multiply(unscaled[part], sd, out=se[part])
        with np.errstate(invalid="ignore", divide="ignore"):
            np.divide(effects[part], se[part], out=t[part])
        log_p[part] = log_p_t(t[part], shared, total=effects.size)

    spread(fill, len(effects), step=step)
    return se, t, log_p
