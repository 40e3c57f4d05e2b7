"""voom: log counts per million with weights from the mean-variance trend (Law et al. 2014)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perturbgen.core.system import spread
from perturbgen.de.design import Design
from perturbgen.de.solver import Solver
from perturbgen.de.trend import Trend

_Array = NDArray[np.float64]
_MILLION = np.log2(1e6)


@dataclass(frozen=True)
class MeanVariance:
    """The mean log2 count and root residual SD of every gene with counts, and their trend."""

    mean: _Array
    root_sd: _Array
    trend: Trend


@dataclass(frozen=True)
class LogCounts:
    """log2 counts per million ``e`` (samples, genes), and the trend of their precision.

    ``prior`` are weights (samples, genes) of observations, or (samples, 1) of samples, which the
    fits behind the trend and its precisions take into account. ``given`` weights of either shape
    stand in place of the precisions; ``sample_weights`` (samples,) are the part of them that is the
    samples' quality.
    """

    e: _Array
    sizes: _Array
    solver: Solver
    mean_variance: MeanVariance
    prior: _Array | None = None
    given: _Array | None = None
    sample_weights: _Array | None = None

    @classmethod
    def of(
        cls,
        counts: _Array,
        sizes: _Array,
        solver: Design | Solver,
        *,
        span: float | str = 0.5,
        prior: _Array | None = None,
    ) -> LogCounts:
        """Of counts (samples, genes): the trend is sqrt(residual SD) over mean log2 count."""
        solver = Solver(solver) if isinstance(solver, Design) else solver
        e = _log_cpm(counts, sizes)
        genes = e.shape[1]
        sd, mean, seen = np.empty(genes), np.empty(genes), np.empty(genes, dtype=bool)

        def fill(block: range) -> None:
            columns = slice(block.start, block.stop)
            y = np.ascontiguousarray(e[:, columns])
            own = _block_of(prior, columns, y)
            if own is None:
                sd[columns] = solver.residual_sd(y)
            else:
                sd[columns] = solver.weighted(y, own, solver.coefficients).sigma
            mean[columns] = y.mean(axis=0)
            seen[columns] = counts[:, columns].any(axis=0)

        spread(fill, genes, step=solver.block, size=e.size)
        # a gene without any count has no variance to speak of, and would pull the trend down
        x = (mean + np.log2(sizes + 1).mean() - _MILLION)[seen]
        y = np.sqrt(sd)[seen]
        # limma chooses its span by all rows that voom is given, those without counts among them
        trend = Trend.lowess(x, y, span=Trend.span(span, genes))
        return cls(e, sizes, solver, MeanVariance(x, y, trend), prior)

    def each_block(
        self,
        work: Callable[[slice, _Array, _Array], None],
        done: Callable[[float], None] | None = None,
    ) -> None:
        """``work(columns, y, weights)`` on blocks of genes, in threads."""

        def fill(block: range) -> None:
            columns = slice(block.start, block.stop)
            y = np.ascontiguousarray(self.e[:, columns])
            weights = _block_of(self.given, columns, y)
            if weights is None:
                weights = self.precisions(y, _block_of(self.prior, columns, y))
            work(columns, y, weights)

        spread(fill, self.e.shape[1], step=self.solver.block, size=self.e.size, done=done)

    def precisions(self, y: _Array, own: _Array | None) -> _Array:
        """Of a block of genes: the trend's root SD at the fitted log2 counts, to the power -4."""
        solver = self.solver
        if own is None:
            on_groups, on_q = solver.unweighted(y)
        else:
            both = solver.weighted(y, own, solver.coefficients).effects
            on_groups, on_q = both[: solver.groups], both[solver.groups :]
        fitted = solver.predict(on_groups, on_q)
        fitted += (np.log2(self.sizes + 1) - _MILLION)[:, None]
        weights = 1 / self.mean_variance.trend(fitted)
        weights *= weights  # squared twice, which is much faster than **4
        weights *= weights
        return weights

    @property
    def equal(self) -> bool:
        """Whether all genes have the same weights, so that contrasts need no approximation."""
        return self.given is not None and self.given.shape[1] == 1

    @cached_property
    def weights(self) -> _Array:
        """All weights (samples, genes) of the final least squares."""
        found = np.empty_like(self.e)

        def keep(columns: slice, _: _Array, precision: _Array) -> None:
            found[:, columns] = precision

        self.each_block(keep)
        return found


def _block_of(weights: _Array | None, columns: slice, y: _Array) -> _Array | None:
    """The weights of a block of genes, in the shape of y; None where there are none."""
    if weights is None:
        return None
    part = weights if weights.shape[1] == 1 else weights[:, columns]
    return np.ascontiguousarray(np.broadcast_to(part, y.shape))


def _log_cpm(counts: _Array, sizes: _Array) -> _Array:
    """log2((count + 0.5) / (size + 1) * 1e6), (samples, genes)."""
    e = np.empty_like(counts)

    def fill(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        np.add(counts[part], 0.5, out=e[part])
        e[part] *= 1e6 / (sizes[part, None] + 1)
        np.log2(e[part], out=e[part])

    spread(fill, len(counts), step=16, size=counts.size)
    return e
