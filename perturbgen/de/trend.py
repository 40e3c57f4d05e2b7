"""Curves through points: Cleveland's robust locally weighted regression, as R's ``lowess``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

_CELLS = 4096  # of the grid in front of a trend's knots
_ITERATIONS = 3  # of robust fitting, as in R


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

    @classmethod
    def lowess(cls, x: _Array, y: _Array, *, span: float) -> Trend:
        """LOWESS of y on x (Cleveland 1979), fitted at points 1 % of the range of x apart, as in R.

        ``span`` is the share of points in each local fit.
        """
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
        width = float(x[-1] - x[0])
        if len(x) < 2 or width == 0:
            return cls(x[:1], np.array([y.mean()]))
        anchors = _pick_anchors(x, 0.01 * width)
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
        for remaining in range(_ITERATIONS, -1, -1):
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
        return cls(x[anchors], fitted)

    @staticmethod
    def span(span: float | str, genes: int) -> float:
        """The span, or for ``"adaptive"`` what limma has chosen since 3.66: wider for few genes.

        ``genes`` are all that voom is given, with counts or without (``chooseLowessSpan``).
        """
        if span != "adaptive":
            return float(span)
        return float(min(0.3 + 0.7 * (50 / genes) ** (1 / 3), 1.0)) if genes else 1.0

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


def _pick_anchors(x: _Array, delta: float) -> NDArray[np.intp]:
    """From each anchor the last point within ``delta``, or the next one if none is."""
    anchors, last = [0], 0
    while last < len(x) - 1:
        last = int(np.searchsorted(x, x[last], side="right")) - 1
        if last == len(x) - 1:
            break
        within = int(np.searchsorted(x, x[last] + delta, side="right")) - 1
        last = max(last + 1, within)
        anchors.append(last)
    return np.array(anchors)
