"""voom: log counts per million with precision weights from the mean-variance trend (Law et al. 2014).

Cleveland's robust locally weighted regression, with the choices that R's ``lowess`` makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, DesignError
from perturbgen.core.system import spread
from perturbgen.de.design import Design, design_from_matrix, make_basis
from perturbgen.de.fit import Solver
from perturbgen.de.plan import as_matrix

_Array = NDArray[np.float64]


_CELLS = 4096


@dataclass(frozen=True)
class Trend:
    """A piecewise linear curve through ``x`` and ``y`` (both (knots,), x ascending), constant outside its range."""

    x: _Array
    y: _Array

    def __call__(self, at: _Array) -> _Array:
        """The curve's values at any points.

        An even grid of cells makes this several times faster than a search among the knots; the few points in cells
        that a knot divides are searched.
        """
        if at.size < _CELLS or self.x[0] == self.x[-1]:
            return np.interp(at, self.x, self.y)
        start, rise, divided = self._cells
        place = at - self.x[0]
        place *= _CELLS / (self.x[-1] - self.x[0])
        np.maximum(place, 0, out=place)
        np.minimum(place, _CELLS, out=place)
        cell = place.astype(np.int32)
        place -= cell
        place *= rise.take(cell, mode="clip")
        place += start.take(cell, mode="clip")
        search = divided.take(cell, mode="clip")
        place[search] = np.interp(at[search], self.x, self.y)
        return place

    @cached_property
    def _cells(self) -> tuple[_Array, _Array, NDArray[np.bool_]]:
        """Values at the cells' left ends, rises across them, and which cells have a knot inside."""
        edges = np.linspace(self.x[0], self.x[-1], _CELLS + 1)
        values = np.interp(edges, self.x, self.y)
        # a point that rounding puts into the neighbouring cell is on the same line unless a knot is near the edge
        margin = 1e-9 * (edges[1] - edges[0])
        before = np.searchsorted(self.x, edges[:-1] - margin)
        divided = before != np.searchsorted(self.x, edges[1:] + margin, side="right")
        return np.r_[values[:-1], values[-1]], np.r_[np.diff(values), 0.0], np.r_[divided, True]


@dataclass(frozen=True)
class _Window:
    """The neighbours of one anchor: ``rows`` of the sorted points, their design (k, 2) and tricube weights (k,)."""

    anchor: int
    rows: slice
    offset: _Array
    tricube: _Array


def lowess(
    x: _Array, y: _Array, *, span: float, iterations: int = 3, delta: float | None = None
) -> Trend:
    """LOWESS of y on x (Cleveland 1979), fitted at points at least ``delta`` apart and linear between them.

    ``span`` is the share of points in each local fit; ``delta`` is by default 1 % of the range of x, as in R.
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    spread = float(x[-1] - x[0])
    if len(x) < 2 or spread == 0:
        return Trend(x[:1], np.array([y.mean()]))
    anchors = _pick_anchors(x, 0.01 * spread if delta is None else delta)
    neighbours = max(min(int(span * len(x) + 1e-7), len(x)), 2)
    starts = _window_starts(x, anchors, neighbours)
    windows = [
        _make_window(x, anchor, start, neighbours)
        for anchor, start in zip(anchors, starts, strict=True)
    ]
    robustness = np.ones(len(x))
    for remaining in range(iterations, -1, -1):
        fitted = np.array([_local_fit(window, y, robustness, spread) for window in windows])
        if remaining == 0:
            break
        residual = np.abs(y - np.interp(x, x[anchors], fitted))
        scale = 6 * np.median(residual)
        if scale <= 1e-7 * residual.mean():
            break
        robustness = _bisquare(residual, scale)
    return Trend(x[anchors], fitted)


def _pick_anchors(x: _Array, delta: float) -> NDArray[np.intp]:
    """Where local fits are made: from each anchor the last point within ``delta``, or the next one if none is."""
    anchors = [0]
    last = 0
    while last < len(x) - 1:
        last = int(np.searchsorted(x, x[last], side="right")) - 1
        if last == len(x) - 1:
            break
        within = int(np.searchsorted(x, x[last] + delta, side="right")) - 1
        last = max(last + 1, within)
        anchors.append(last)
    return np.array(anchors)


def _window_starts(x: _Array, anchors: NDArray[np.intp], neighbours: int) -> NDArray[np.intp]:
    """The first of the nearest ``neighbours`` of each anchor: the window moves right while that brings it closer."""
    candidates = np.arange(len(x) - neighbours)
    middles = x[candidates] + x[candidates + neighbours]
    return np.searchsorted(middles, 2 * x[anchors], side="left").astype(np.intp)


def _make_window(x: _Array, anchor: int, start: int, neighbours: int) -> _Window:
    """Tricube weights around one anchor; points tied with the window's edge belong to it."""
    centre = x[anchor]
    radius = max(centre - x[start], x[start + neighbours - 1] - centre)
    stop = int(np.searchsorted(x, centre + 0.999 * radius, side="right"))
    rows = slice(start, max(stop, start + 1))
    offset = x[rows] - centre
    distance = np.abs(offset)
    tricube = (1 - (distance / radius) ** 3) ** 3 if radius > 0 else np.ones(len(offset))
    tricube[distance <= 0.001 * radius] = 1
    tricube[distance > 0.999 * radius] = 0
    return _Window(anchor, rows, offset, tricube)


def _local_fit(window: _Window, y: _Array, robustness: _Array, spread: float) -> float:
    """The weighted straight line at the anchor; the weighted mean where the points hardly spread."""
    weights = window.tricube * robustness[window.rows]
    total = weights.sum()
    if total <= 0:
        return float(y[window.anchor])
    weights = weights / total
    shift = weights @ window.offset
    variance = weights @ (window.offset - shift) ** 2
    values = y[window.rows]
    if np.sqrt(variance) <= 0.001 * spread:
        return float(weights @ values)
    return float((weights * (1 - shift * (window.offset - shift) / variance)) @ values)


def _bisquare(residual: _Array, scale: float) -> _Array:
    """Tukey's weights of absolute residuals."""
    weights = (1 - np.minimum(residual / scale, 1) ** 2) ** 2
    weights[residual <= 0.001 * scale] = 1
    weights[residual > 0.999 * scale] = 0
    return weights


def adaptive_span(genes: int) -> float:
    """The span that limma has chosen since 3.66: wider for few genes, 0.3 + 0.7 (50/genes)^(1/3), at most 1."""
    return float(min(0.3 + 0.7 * (50 / genes) ** (1 / 3), 1.0)) if genes else 1.0


BLOCK = 64  # genes at a time: their samples stay in the processor's cache
_MILLION = np.log2(1e6)


@dataclass(frozen=True)
class MeanVariance:
    """The mean-variance plot: mean log2 count and root of the residual SD of every gene with counts, and the trend."""

    mean: _Array
    root_sd: _Array
    trend: Trend


@dataclass(frozen=True)
class _Voom:
    """``e`` (log2 counts per million) and ``weights`` (precisions), both samples x genes, and how they came about."""

    e: pd.DataFrame
    weights: pd.DataFrame
    library_size: pd.Series
    mean_variance: MeanVariance


def voom(
    counts: pd.DataFrame | _Array,
    design: Design | pd.DataFrame | _Array,
    *,
    norm_factors: pd.Series | _Array | None = None,
    span: float | str = 0.5,
) -> _Voom:
    """log2 CPM and weights of counts (samples, genes) under a design.

    ``norm_factors`` (samples,) scale the library sizes, 1 by default. ``span`` is the lowess span, or ``"adaptive"``.
    """
    values, samples, genes = as_matrix(counts)
    if not isinstance(design, Design):
        design = design_from_matrix(design)
    factors = _align_factors(norm_factors, samples)
    solver = make_solver(design)
    sizes = values.sum(axis=1) * factors
    e = log_cpm(values, sizes)
    found = mean_variance(e, values, sizes, solver, span)
    weights = np.empty_like(e)

    def fill(block: range) -> None:
        columns = slice(block.start, block.stop)
        weights[:, columns] = precision(
            solver, found.trend, np.ascontiguousarray(e[:, columns]), sizes
        )

    spread(fill, e.shape[1], step=BLOCK)
    return _Voom(
        pd.DataFrame(e, samples, genes),
        pd.DataFrame(weights, samples, genes),
        pd.Series(sizes, samples, name="library_size"),
        found,
    )


def _align_factors(norm_factors: pd.Series | _Array | None, samples: pd.Index) -> _Array:
    """Normalisation factors (samples,) in the order of the counts."""
    if norm_factors is None:
        return np.ones(len(samples))
    if isinstance(norm_factors, pd.Series):
        norm_factors = norm_factors.reindex(samples).to_numpy(dtype=float)
    factors = np.asarray(norm_factors, dtype=float)
    if factors.shape != (len(samples),) or not (np.isfinite(factors) & (factors > 0)).all():
        raise ConfigError(
            "norm_factors are not one positive number a sample", fix="pass tmm_factors(counts)"
        )
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


def log_cpm(counts: _Array, sizes: _Array) -> _Array:
    """log2((count + 0.5) / (size + 1) * 1e6), (samples, genes)."""
    e = np.empty_like(counts)

    def fill(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        np.add(counts[part], 0.5, out=e[part])
        e[part] *= 1e6 / (sizes[part, None] + 1)
        np.log2(e[part], out=e[part])

    spread(fill, len(counts), step=16)
    return e


def mean_variance(
    e: _Array, counts: _Array, sizes: _Array, solver: Solver, span: float | str
) -> MeanVariance:
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
    x = (mean + np.log2(sizes + 1).mean() - _MILLION)[seen]
    y = np.sqrt(sd)[seen]
    width = adaptive_span(len(x)) if span == "adaptive" else float(span)
    return MeanVariance(x, y, lowess(x, y, span=width))


def precision(solver: Solver, trend: Trend, y: _Array, sizes: _Array) -> _Array:
    """Weights of log CPM y (samples, genes): the trend's root SD at the fitted log2 count, to the power of -4."""
    fitted = solver.predict(*solver.unweighted(y))
    fitted += (np.log2(sizes + 1) - _MILLION)[:, None]
    weights = 1 / trend(fitted)
    weights *= weights
    weights *= weights
    return weights
