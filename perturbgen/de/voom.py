"""voom: log counts per million with precision weights from the mean-variance trend (Law et al. 2014)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.de.checks import as_matrix
from perturbgen.de.design import Design, design_from_matrix, make_basis
from perturbgen.de.fit import Solver
from perturbgen.de.lowess import Trend, adaptive_span, lowess
from perturbgen.de.parallel import spread
from perturbgen.errors import ConfigError, DesignError

Array = NDArray[np.float64]

BLOCK = 64  # genes at a time: their samples stay in the processor's cache
MILLION = np.log2(1e6)


@dataclass(frozen=True)
class MeanVariance:
    """The mean-variance plot: mean log2 count and root of the residual SD of every gene with counts, and the trend."""

    mean: Array
    root_sd: Array
    trend: Trend


@dataclass(frozen=True)
class Voom:
    """``e`` (log2 counts per million) and ``weights`` (precisions), both samples x genes, and how they came about."""

    e: pd.DataFrame
    weights: pd.DataFrame
    library_size: pd.Series
    mean_variance: MeanVariance


def voom(
    counts: pd.DataFrame | Array,
    design: Design | pd.DataFrame | Array,
    *,
    norm_factors: pd.Series | Array | None = None,
    span: float | str = 0.5,
) -> Voom:
    """log2 CPM and weights of counts (samples, genes) under a design.

    ``norm_factors`` (samples,) scale the library sizes, 1 by default. ``span`` is the lowess span, or ``"adaptive"``.
    """
    values, samples, genes = as_matrix(counts)
    if not isinstance(design, Design):
        design = design_from_matrix(design)
    factors = align_factors(norm_factors, samples)
    solver = make_solver(design)
    sizes = values.sum(axis=1) * factors
    e = log_cpm(values, sizes)
    found = mean_variance(e, values, sizes, solver, span)
    weights = np.empty_like(e)

    def fill(block: range) -> None:
        columns = slice(block.start, block.stop)
        weights[:, columns] = precision(solver, found.trend, np.ascontiguousarray(e[:, columns]), sizes)

    spread(fill, e.shape[1], step=BLOCK)
    return Voom(
        pd.DataFrame(e, samples, genes),
        pd.DataFrame(weights, samples, genes),
        pd.Series(sizes, samples, name="library_size"),
        found,
    )


def align_factors(norm_factors: pd.Series | Array | None, samples: pd.Index) -> Array:
    """Normalisation factors (samples,) in the order of the counts."""
    if norm_factors is None:
        return np.ones(len(samples))
    if isinstance(norm_factors, pd.Series):
        norm_factors = norm_factors.reindex(samples).to_numpy(dtype=float)
    factors = np.asarray(norm_factors, dtype=float)
    if factors.shape != (len(samples),) or not (np.isfinite(factors) & (factors > 0)).all():
        raise ConfigError("norm_factors are not one positive number a sample", fix="pass tmm_factors(counts)")
    return factors


def make_solver(design: Design) -> Solver:
    """The least-squares solver of a design that leaves something to estimate a variance from."""
    if design.df_residual <= 0:
        raise DesignError(
            f"no residual degrees of freedom: {len(design.matrix)} samples, {design.rank} coefficients",
            expected="more samples than coefficients",
            cause="no level of the design is replicated",
            fix="leave covariates out, or add replicates",
        )
    return Solver(make_basis(design))


def log_cpm(counts: Array, sizes: Array) -> Array:
    """log2((count + 0.5) / (size + 1) * 1e6), (samples, genes)."""
    e = np.empty_like(counts)

    def fill(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        np.add(counts[part], 0.5, out=e[part])
        e[part] *= 1e6 / (sizes[part, None] + 1)
        np.log2(e[part], out=e[part])

    spread(fill, len(counts), step=16)
    return e


def mean_variance(e: Array, counts: Array, sizes: Array, solver: Solver, span: float | str) -> MeanVariance:
    """The trend of sqrt(residual SD) over mean log2 count; genes without any count are left out of it."""
    sd = np.empty(e.shape[1])
    mean = np.empty(e.shape[1])
    seen = np.empty(e.shape[1], dtype=bool)

    def fill(block: range) -> None:
        columns = slice(block.start, block.stop)
        y = np.ascontiguousarray(e[:, columns])
        sd[columns], mean[columns] = solver.residual_sd(y), y.mean(axis=0)
        seen[columns] = counts[:, columns].any(axis=0)

    spread(fill, e.shape[1], step=BLOCK)
    x = (mean + np.log2(sizes + 1).mean() - MILLION)[seen]
    y = np.sqrt(sd)[seen]
    width = adaptive_span(len(x)) if span == "adaptive" else float(span)
    return MeanVariance(x, y, lowess(x, y, span=width))


def precision(solver: Solver, trend: Trend, y: Array, sizes: Array) -> Array:
    """Weights of log CPM y (samples, genes): the trend's root SD at the fitted log2 count, to the power of -4."""
    fitted = solver.predict(*solver.unweighted(y))
    fitted += (np.log2(sizes + 1) - MILLION)[:, None]
    weights = 1 / trend(fitted)
    weights *= weights
    weights *= weights
    return weights
