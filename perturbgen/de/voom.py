"""voom: log counts per million with weights from the mean-variance trend (Law et al. 2014).

The trend is Cleveland's robust locally weighted regression, with the choices of R's ``lowess``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError
from perturbgen.core.system import spread
from perturbgen.de.design import Design
from perturbgen.de.fit import Solver
from perturbgen.de.inputs import as_matrix

_Array = NDArray[np.float64]

_CELLS = 4096  # of the grid in front of a trend's knots
_BLOCK = 64  # genes at a time: their samples stay in the processor's cache
_MILLION = np.log2(1e6)


@dataclass(frozen=True)
class Trend:
    """A piecewise linear curve through ``x`` and ``y`` (knots,), constant outside its range."""

    x: _Array
    y: _Array

    def __call__(self, at: _Array) -> _Array:
        """The curve's values at any points.

        An even grid of cells makes this several times faster than a search among the knots; the few
        points in cells that a knot divides are searched.
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
        # a point that rounding puts into the neighbouring cell is on the same line unless a knot is
        # near the edge
        margin = 1e-9 * (edges[1] - edges[0])
        before = np.searchsorted(self.x, edges[:-1] - margin)
        divided = before != np.searchsorted(self.x, edges[1:] + margin, side="right")
        # the last cell is a point: the trend's right end and all beyond it
        return np.r_[values[:-1], values[-1]], np.r_[np.diff(values), 0.0], np.r_[divided, True]


@dataclass(frozen=True)
class _Window:
    """An anchor's neighbours: ``rows`` of the sorted points, offsets and tricube weights (k,)."""

    anchor: int
    rows: slice
    offset: _Array
    tricube: _Array

    @classmethod
    def around(cls, x: _Array, anchor: int, start: int, neighbours: int) -> _Window:
        """``neighbours`` points from ``start``; points tied with the edge belong to them."""
        centre = x[anchor]
        radius = max(centre - x[start], x[start + neighbours - 1] - centre)
        stop = int(np.searchsorted(x, centre + 0.999 * radius, side="right"))
        rows = slice(start, max(stop, start + 1))
        offset = x[rows] - centre
        distance = np.abs(offset)
        tricube = (1 - (distance / radius) ** 3) ** 3 if radius > 0 else np.ones(len(offset))
        # R's lowess cuts the weights off here, and its numbers are wanted
        tricube[distance <= 0.001 * radius] = 1
        tricube[distance > 0.999 * radius] = 0
        return cls(anchor, rows, offset, tricube)

    def fit(self, y: _Array, robustness: _Array, width: float) -> float:
        """The weighted line at the anchor; the weighted mean where the points hardly spread."""
        weights = self.tricube * robustness[self.rows]
        total = weights.sum()
        if total <= 0:
            return float(y[self.anchor])
        weights = weights / total
        shift = weights @ self.offset
        variance = weights @ (self.offset - shift) ** 2
        values = y[self.rows]
        if np.sqrt(variance) <= 0.001 * width:
            return float(weights @ values)
        return float((weights * (1 - shift * (self.offset - shift) / variance)) @ values)


def lowess(
    x: _Array, y: _Array, *, span: float, iterations: int = 3, delta: float | None = None
) -> Trend:
    """LOWESS of y on x (Cleveland 1979), fitted at points ``delta`` apart, linear between them.

    ``span`` is the share of points in each local fit; ``delta`` is by default 1 % of the range of
    x, as in R.
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    width = float(x[-1] - x[0])
    if len(x) < 2 or width == 0:
        return Trend(x[:1], np.array([y.mean()]))
    anchors = _pick_anchors(x, 0.01 * width if delta is None else delta)
    neighbours = max(min(int(span * len(x) + 1e-7), len(x)), 2)
    # the nearest neighbours of an anchor: their window moves right while that brings it closer
    candidates = np.arange(len(x) - neighbours)
    middles = x[candidates] + x[candidates + neighbours]
    starts = np.searchsorted(middles, 2 * x[anchors], side="left")
    windows = [
        _Window.around(x, anchor, start, neighbours)
        for anchor, start in zip(anchors, starts, strict=True)
    ]
    robustness = np.ones(len(x))
    for remaining in range(iterations, -1, -1):
        fitted = np.array([window.fit(y, robustness, width) for window in windows])
        if remaining == 0:
            break
        residual = np.abs(y - np.interp(x, x[anchors], fitted))
        scale = 6 * np.median(residual)
        if scale <= 1e-7 * residual.mean():
            break
        robustness = (1 - np.minimum(residual / scale, 1) ** 2) ** 2  # Tukey's bisquare
        robustness[residual <= 0.001 * scale] = 1
        robustness[residual > 0.999 * scale] = 0
    return Trend(x[anchors], fitted)


def _pick_anchors(x: _Array, delta: float) -> NDArray[np.intp]:
    """From each anchor the last point within ``delta``, or the next one if none is."""
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


def choose_span(span: float | str, genes: int) -> float:
    """The span, or for ``"adaptive"`` what limma has chosen since 3.66: wider for few genes."""
    if span != "adaptive":
        return float(span)
    return float(min(0.3 + 0.7 * (50 / genes) ** (1 / 3), 1.0)) if genes else 1.0


@dataclass(frozen=True)
class MeanVariance:
    """The mean log2 count and root residual SD of every gene with counts, and their trend."""

    mean: _Array
    root_sd: _Array
    trend: Trend


@dataclass(frozen=True)
class LogCounts:
    """log2 counts per million ``e`` (samples, genes), and the trend of their precision."""

    e: _Array
    sizes: _Array
    solver: Solver
    mean_variance: MeanVariance

    @classmethod
    def of(
        cls, counts: _Array, sizes: _Array, design: Design, *, span: float | str = 0.5
    ) -> LogCounts:
        """Of counts (samples, genes): the trend is sqrt(residual SD) over mean log2 count."""
        solver = Solver(design)
        e = _log_cpm(counts, sizes)
        genes = e.shape[1]
        sd, mean, seen = np.empty(genes), np.empty(genes), np.empty(genes, dtype=bool)

        def fill(block: range) -> None:
            columns = slice(block.start, block.stop)
            y = np.ascontiguousarray(e[:, columns])
            sd[columns], mean[columns] = solver.residual_sd(y), y.mean(axis=0)
            seen[columns] = counts[:, columns].any(axis=0)

        spread(fill, genes, step=_BLOCK)
        # a gene without any count has no variance to speak of, and would pull the trend down
        x = (mean + np.log2(sizes + 1).mean() - _MILLION)[seen]
        y = np.sqrt(sd)[seen]
        trend = lowess(x, y, span=choose_span(span, len(x)))
        return cls(e, sizes, solver, MeanVariance(x, y, trend))

    def each_block(
        self,
        work: Callable[[slice, _Array, _Array], None],
        done: Callable[[float], None] | None = None,
    ) -> None:
        """``work(columns, y, weights)`` on blocks of genes, in threads.

        The weights are the trend's root SD at the fitted log2 count, to the power of -4.
        """
        offset = (np.log2(self.sizes + 1) - _MILLION)[:, None]

        def fill(block: range) -> None:
            columns = slice(block.start, block.stop)
            y = np.ascontiguousarray(self.e[:, columns])
            fitted = self.solver.predict(*self.solver.unweighted(y))
            fitted += offset
            weights = 1 / self.mean_variance.trend(fitted)
            weights *= weights  # squared twice, which is much faster than **4
            weights *= weights
            work(columns, y, weights)

        spread(fill, self.e.shape[1], step=_BLOCK, done=done)


def _log_cpm(counts: _Array, sizes: _Array) -> _Array:
    """log2((count + 0.5) / (size + 1) * 1e6), (samples, genes)."""
    e = np.empty_like(counts)

    def fill(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        np.add(counts[part], 0.5, out=e[part])
        e[part] *= 1e6 / (sizes[part, None] + 1)
        np.log2(e[part], out=e[part])

    spread(fill, len(counts), step=16)
    return e


@dataclass(frozen=True)
class _Voom:
    """log2 counts per million ``e`` and their precisions ``weights``, both samples x genes."""

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

    ``norm_factors`` (samples,) scale the library sizes, 1 by default. ``span`` is the lowess span,
    or ``"adaptive"``.
    """
    values, samples, genes = as_matrix(counts)
    if not isinstance(design, Design):
        design = Design.from_matrix(design)
    if norm_factors is None:
        norm_factors = np.ones(len(samples))
    elif isinstance(norm_factors, pd.Series):
        norm_factors = norm_factors.reindex(samples).to_numpy(dtype=float)
    factors = np.asarray(norm_factors, dtype=float)
    if factors.shape != (len(samples),) or not (np.isfinite(factors) & (factors > 0)).all():
        raise ConfigError(
            "norm_factors are not one positive number a sample", fix="pass tmm_factors(counts)"
        )
    logs = LogCounts.of(values, values.sum(axis=1) * factors, design, span=span)
    weights = np.empty_like(logs.e)

    def keep(columns: slice, _: _Array, precision: _Array) -> None:
        weights[:, columns] = precision

    logs.each_block(keep)
    return _Voom(
        pd.DataFrame(logs.e, samples, genes),
        pd.DataFrame(weights, samples, genes),
        pd.Series(logs.sizes, samples, name="library_size"),
        logs.mean_variance,
    )
