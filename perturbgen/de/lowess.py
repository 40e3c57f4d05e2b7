"""Cleveland's robust locally weighted regression, with the choices that R's ``lowess`` makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


CELLS = 4096


@dataclass(frozen=True)
class Trend:
    """A piecewise linear curve through ``x`` and ``y`` (both (knots,), x ascending), constant outside its range."""

    x: Array
    y: Array

    def __call__(self, at: Array) -> Array:
        """The curve's values at any points.

        An even grid of cells makes this several times faster than a search among the knots; the few points in cells
        that a knot divides are searched.
        """
        if at.size < CELLS or self.x[0] == self.x[-1]:
            return np.interp(at, self.x, self.y)
        start, rise, divided = self._cells
        place = at - self.x[0]
        place *= CELLS / (self.x[-1] - self.x[0])
        np.maximum(place, 0, out=place)
        np.minimum(place, CELLS, out=place)
        cell = place.astype(np.int32)
        place -= cell
        place *= rise.take(cell, mode="clip")
        place += start.take(cell, mode="clip")
        search = divided.take(cell, mode="clip")
        place[search] = np.interp(at[search], self.x, self.y)
        return place

    @cached_property
    def _cells(self) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Values at the cells' left ends, rises across them, and which cells have a knot inside."""
        edges = np.linspace(self.x[0], self.x[-1], CELLS + 1)
        values = np.interp(edges, self.x, self.y)
        # a point that rounding puts into the neighbouring cell is on the same line unless a knot is near the edge
        margin = 1e-9 * (edges[1] - edges[0])
        before = np.searchsorted(self.x, edges[:-1] - margin)
        divided = before != np.searchsorted(self.x, edges[1:] + margin, side="right")
        return np.r_[values[:-1], values[-1]], np.r_[np.diff(values), 0.0], np.r_[divided, True]


@dataclass(frozen=True)
class Window:
    """The neighbours of one anchor: ``rows`` of the sorted points, their design (k, 2) and tricube weights (k,)."""

    anchor: int
    rows: slice
    offset: Array
    tricube: Array


def lowess(x: Array, y: Array, *, span: float, iterations: int = 3, delta: float | None = None) -> Trend:
    """LOWESS of y on x (Cleveland 1979), fitted at points at least ``delta`` apart and linear between them.

    ``span`` is the share of points in each local fit; ``delta`` is by default 1 % of the range of x, as in R.
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    spread = float(x[-1] - x[0])
    if len(x) < 2 or spread == 0:
        return Trend(x[:1], np.array([y.mean()]))
    anchors = pick_anchors(x, 0.01 * spread if delta is None else delta)
    neighbours = max(min(int(span * len(x) + 1e-7), len(x)), 2)
    starts = window_starts(x, anchors, neighbours)
    windows = [make_window(x, anchor, start, neighbours) for anchor, start in zip(anchors, starts, strict=True)]
    robustness = np.ones(len(x))
    for remaining in range(iterations, -1, -1):
        fitted = np.array([local_fit(window, y, robustness, spread) for window in windows])
        if remaining == 0:
            break
        residual = np.abs(y - np.interp(x, x[anchors], fitted))
        scale = 6 * np.median(residual)
        if scale <= 1e-7 * residual.mean():
            break
        robustness = bisquare(residual, scale)
    return Trend(x[anchors], fitted)


def pick_anchors(x: Array, delta: float) -> NDArray[np.intp]:
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


def window_starts(x: Array, anchors: NDArray[np.intp], neighbours: int) -> NDArray[np.intp]:
    """The first of the nearest ``neighbours`` of each anchor: the window moves right while that brings it closer."""
    candidates = np.arange(len(x) - neighbours)
    middles = x[candidates] + x[candidates + neighbours]
    return np.searchsorted(middles, 2 * x[anchors], side="left").astype(np.intp)


def make_window(x: Array, anchor: int, start: int, neighbours: int) -> Window:
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
    return Window(anchor, rows, offset, tricube)


def local_fit(window: Window, y: Array, robustness: Array, spread: float) -> float:
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


def bisquare(residual: Array, scale: float) -> Array:
    """Tukey's weights of absolute residuals."""
    weights = (1 - np.minimum(residual / scale, 1) ** 2) ** 2
    weights[residual <= 0.001 * scale] = 1
    weights[residual > 0.999 * scale] = 0
    return weights


def adaptive_span(genes: int) -> float:
    """The span that limma has chosen since 3.66: wider for few genes, 0.3 + 0.7 (50/genes)^(1/3), at most 1."""
    return float(min(0.3 + 0.7 * (50 / genes) ** (1 / 3), 1.0)) if genes else 1.0
