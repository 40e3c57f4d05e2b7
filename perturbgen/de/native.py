"""One fit of the native backend: counts and a design in, moderated statistics of every contrast out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perturbgen.core.system import spread
from perturbgen.de.contrasts import ContrastKind, Contrasts, make_contrasts
from perturbgen.de.design import Design
from perturbgen.de.fit import Solver
from perturbgen.de.moderate import moderate
from perturbgen.de.normalise import tmm
from perturbgen.de.tails import TABLE_PAYS, log_p_t
from perturbgen.de.voom import (
    BLOCK,
    MeanVariance,
    Trend,
    log_cpm,
    make_solver,
    mean_variance,
    precision,
)

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Method:
    """How a fit is made; see :func:`perturbgen.de.limma_table`."""

    contrasts: ContrastKind = "exact"
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
    counts: _Array, design: Design, weights: _Array, method: Method, tick: Tick | None = None
) -> FitResult:
    """limma-voom of counts (samples, genes) with contrast ``weights`` (contrasts, columns of the design)."""
    solver = make_solver(design)
    sizes = counts.sum(axis=1)
    if method.normalise == "tmm":
        sizes = sizes * tmm(counts)
    e = log_cpm(counts, sizes)
    found = mean_variance(e, counts, sizes, solver, method.span)
    contrasts = make_contrasts(solver.basis, weights, method.contrasts)
    sigma, effects, unscaled = _fit_genes(
        e, sizes, solver, found.trend, contrasts, device=method.device, tick=tick
    )
    ave_expr = e.mean(axis=0)
    moderated = moderate(
        sigma**2, solver.df_residual, mean=ave_expr, robust=method.robust, trend=method.trend
    )
    se, t, log_p = _test(effects, unscaled, np.sqrt(moderated.s2_post), moderated.df_total)
    return FitResult(effects, se, t, log_p, moderated.df_total, ave_expr, sigma, found)


def _fit_genes(
    e: _Array,
    sizes: _Array,
    solver: Solver,
    trend: Trend,
    contrasts: Contrasts,
    *,
    device: str = "cpu",
    tick: Tick | None = None,
) -> tuple[_Array, _Array, _Array]:
    """Residual SD (genes,), effects and unscaled standard errors (contrasts, genes) of log CPM e (samples, genes)."""
    if device != "cpu":
        from perturbgen.de.torch_fit import fit_genes_on

        return fit_genes_on(device, e, sizes, solver, trend, contrasts, tick)
    rows = contrasts.size
    sigma, effects, unscaled = (
        np.empty(e.shape[1]),
        np.empty((rows, e.shape[1])),
        np.empty((rows, e.shape[1])),
    )

    def fill(block: range) -> None:
        columns = slice(block.start, block.stop)
        y = np.ascontiguousarray(e[:, columns])
        fitted = solver.weighted(y, precision(solver, trend, y, sizes), contrasts.functions)
        sigma[columns] = fitted.sigma
        effects[:, columns], unscaled[:, columns] = contrasts.combine(
            fitted.effects, fitted.unscaled
        )

    spread(fill, e.shape[1], step=BLOCK, done=tick)
    return sigma, effects, unscaled


def _test(
    effects: _Array, unscaled: _Array, sd: _Array, df: _Array
) -> tuple[_Array, _Array, _Array]:
    """Standard errors, t and natural log p of effects (contrasts, genes), with posterior ``sd`` and ``df`` (genes,)."""
    se, t, log_p = (np.empty_like(effects) for _ in range(3))
    # with one df for all genes a row at a time stays in the cache; with several they are gone through once a block
    shared, step = (float(df[0]), 1) if (df == df[0]).all() else (df, 64)
    tabulate = effects.size >= TABLE_PAYS if step == 1 else None

    def fill(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        np.multiply(unscaled[part], sd, out=se[part])
        with np.errstate(invalid="ignore", divide="ignore"):
            np.divide(effects[part], se[part], out=t[part])
        log_p[part] = log_p_t(t[part], shared, tabulate=tabulate)

    spread(fill, len(effects), step=step)
    return se, t, log_p
