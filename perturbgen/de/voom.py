"""voom: log counts per million with weights from the mean-variance trend (Law et al. 2014).

The weighted least squares are those of all genes at once. In the basis [D Q] of a design (D
disjoint group indicators, Q orthonormal nuisance columns) the normal equations of one gene with
weights W are a diagonal D'WD, a cross block D'WQ and a small Q'WQ. They are solved through the
Schur complement S = Q'WQ - (D'WQ)'(D'WD)^-1(D'WQ). Every block of them is a matrix product shared
by many genes. An arbitrary design is the case of few groups and a large Q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.sparse import csr_matrix

from perturbgen.core.errors import ConfigError
from perturbgen.core.system import ONE_BLAS_THREAD, spread
from perturbgen.de.counts import as_matrix
from perturbgen.de.design import Design
from perturbgen.de.trend import Trend

_Array = NDArray[np.float64]
_Functions = tuple[csr_matrix, _Array]

# A Schur complement this much smaller than what it was subtracted from has fewer than six digits
# left. It happens where voom's trend comes close to zero and weights reach 1e20, in data with less
# variance than counting itself would give.
_CANCELLED = 1e-10
_BLOCK = 64  # genes at a time, at least
_CACHED = 32_768  # numbers of a block of genes that stay in the processor's cache
_MILLION = np.log2(1e6)


class _Fitted(NamedTuple):
    """``sigma`` (genes,), and functions' ``effects`` and ``unscaled``, both (functions, genes).

    A function's standard error is ``unscaled`` times the residual standard deviation.
    """

    sigma: _Array
    effects: _Array
    unscaled: _Array


class _Solver:
    """Least squares on one design; blocks of genes are arrays (samples, genes of the block)."""

    def __init__(self, design: Design) -> None:
        design.require_df()
        self.design, self.basis, self.df_residual = design, design.basis, design.df_residual
        self.codes, self.q = self.basis.codes, self.basis.q
        self.groups, self.rank_q = len(self.basis.groups), self.q.shape[1]
        # few samples make larger blocks, or a block's arithmetic would be less than calling it
        widest = max(len(self.codes), self.groups * self.rank_q)
        self.block = max(_BLOCK, _CACHED // widest)
        self._grouped = self.codes >= 0
        self._stacked = self._stack_indicators()
        self._indicators = self._stacked[: self.groups]
        self._sizes = np.asarray(self._indicators.sum(axis=1))
        i, j = self._upper = np.triu_indices(self.rank_q)
        self._pairs = np.ascontiguousarray((self.q[:, i] * self.q[:, j]).T)

    def _stack_indicators(self) -> csr_matrix:
        """D' (groups, samples), followed by D' diag(Q_k) for each nuisance column k."""
        rows = np.flatnonzero(self._grouped)
        values = [np.ones(len(rows)), *self.q[rows].T]
        at = np.concatenate([self.codes[rows] + k * self.groups for k in range(len(values))])
        shape = (self.groups * len(values), len(self.codes))
        return csr_matrix((np.concatenate(values), (at, np.tile(rows, len(values)))), shape=shape)

    def unweighted(self, y: _Array) -> tuple[_Array, _Array]:
        """Ordinary least squares: coefficients of D (groups, genes) and of Q (q, genes)."""
        return (self._indicators @ y) / self._sizes, self.q.T @ y

    def predict(self, on_groups: _Array, on_q: _Array) -> _Array:
        """Fitted values (samples, genes)."""
        if not self.groups:
            return self.q @ on_q
        values = on_groups[self.codes]  # D @ on_groups, without the product
        if not self._grouped.all():
            values[~self._grouped] = 0
        if self.rank_q:
            values += self.q @ on_q
        return values

    def residual_sd(self, y: _Array) -> _Array:
        """Residual standard deviations (genes,) of ordinary least squares."""
        residual = y - self.predict(*self.unweighted(y))
        return np.sqrt(np.einsum("ng,ng->g", residual, residual) / self.df_residual)

    def weighted(self, y: _Array, w: _Array, functions: _Functions) -> _Fitted:
        """Least squares of y (samples, genes) with weights w, and functions of the coefficients.

        ``functions`` are (functions, groups) and (functions, q) of the basis' coefficients.
        """
        try:
            return self._by_schur(y, w, functions)
        except np.linalg.LinAlgError:
            if y.shape[1] == 1:
                return self._by_qr(y[:, 0], w[:, 0], functions)
        # one gene spoiled the block: it is found by halves, and only it goes the slow way
        middle = y.shape[1] // 2
        halves = [
            self.weighted(
                np.ascontiguousarray(y[:, part]), np.ascontiguousarray(w[:, part]), functions
            )
            for part in (slice(middle), slice(middle, None))
        ]
        return _Fitted(*(np.concatenate(parts, axis=-1) for parts in zip(*halves, strict=True)))

    def _by_schur(self, y: _Array, w: _Array, functions: _Functions) -> _Fitted:
        """The Schur complement's way; LinAlgError where it would lose too many digits."""
        genes = y.shape[1]
        wy = w * y
        moments = (self._stacked @ w).reshape(1 + self.rank_q, self.groups, genes)
        inverse_mass = 1 / moments[0]
        cross = np.ascontiguousarray(moments[1:].transpose(2, 0, 1))
        ratio = cross * inverse_mass.T[:, None, :]
        gram = np.empty((genes, self.rank_q, self.rank_q))  # Q'WQ, of which half is computed
        i, j = self._upper
        gram[:, i, j] = gram[:, j, i] = (self._pairs @ w).T
        schur = gram - np.matmul(ratio, cross.transpose(0, 2, 1))
        if (np.einsum("bqq->bq", schur) < _CANCELLED * np.einsum("bqq->bq", gram)).any():
            raise np.linalg.LinAlgError
        means = (self._indicators @ wy) * inverse_mass
        right = (self.q.T @ wy).T - np.matmul(cross, means.T[:, :, None])[:, :, 0]
        # numpy has no triangular solve for a stack of matrices; these are small
        inverse_root = np.linalg.inv(np.linalg.cholesky(schur))
        halfway = np.matmul(inverse_root, right[:, :, None])
        on_q = np.matmul(inverse_root.transpose(0, 2, 1), halfway)[:, :, 0].T
        on_groups = means - np.einsum("bqd,qb->db", ratio, on_q)
        residual = y - self.predict(on_groups, on_q)
        residual *= residual
        sigma = np.sqrt(np.einsum("ng,ng->g", residual, w) / self.df_residual)
        effects = functions[0] @ on_groups + functions[1] @ on_q
        variances = _variances(functions, inverse_mass, ratio, inverse_root)
        return _Fitted(sigma, effects, np.sqrt(variances))

    def _by_qr(self, y: _Array, w: _Array, functions: _Functions) -> _Fitted:
        """One gene whose weights differ too much for normal equations."""
        # QR keeps the digits of rows of very different size where the largest come first
        order = np.argsort(-w, kind="stable")
        design = np.hstack([self._indicators.T.toarray(), self.q])[order]
        root = np.sqrt(w[order])
        q, r = np.linalg.qr(root[:, None] * design)
        coefficients = solve_triangular(r, q.T @ (root * y[order]))
        residual = root * (y[order] - design @ coefficients)
        wanted = np.hstack([functions[0].toarray(), functions[1]])
        unscaled = np.linalg.norm(solve_triangular(r, wanted.T, trans="T"), axis=0)
        sigma = np.sqrt(residual @ residual / self.df_residual)
        return _Fitted(np.array([sigma]), (wanted @ coefficients)[:, None], unscaled[:, None])


def _variances(
    functions: _Functions, inverse_mass: _Array, ratio: _Array, inverse_root: _Array
) -> _Array:
    """Unscaled variances (functions, genes) of f = (f_D, f_Q).

    They are f_D (D'WD)^-1 f_D' + |S^-1/2 (f_Q - f_D (D'WD)^-1 D'WQ)|^2, where
    ``inverse_mass`` (groups, genes) is the diagonal of (D'WD)^-1, ``ratio`` (genes, q, groups)
    (D'WD)^-1 D'WQ, and ``inverse_root`` (genes, q, q) S^-1/2.
    """
    by_group, by_q = functions
    genes, rank, groups = ratio.shape
    size, ones = by_group.shape[0], np.arange(by_group.shape[0])
    # limma's contrasts ask for the group coefficients themselves: their product can be saved
    identity = by_group.shape[1] == size == by_group.nnz
    if identity and (by_group.indices == ones).all() and (by_group.data == 1).all():
        shifted = ratio
    else:
        products = (by_group @ ratio.reshape(genes * rank, groups).T).T
        shifted = products.reshape(genes, rank, size)
    beside = np.matmul(inverse_root, by_q.T - shifted)
    return by_group.power(2) @ inverse_mass + np.einsum("bqm,bqm->mb", beside, beside)


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
    solver: _Solver
    mean_variance: MeanVariance

    @classmethod
    def of(
        cls, counts: _Array, sizes: _Array, design: Design, *, span: float | str = 0.5
    ) -> LogCounts:
        """Of counts (samples, genes): the trend is sqrt(residual SD) over mean log2 count."""
        solver = _Solver(design)
        e = _log_cpm(counts, sizes)
        genes = e.shape[1]
        sd, mean, seen = np.empty(genes), np.empty(genes), np.empty(genes, dtype=bool)

        def fill(block: range) -> None:
            columns = slice(block.start, block.stop)
            y = np.ascontiguousarray(e[:, columns])
            sd[columns], mean[columns] = solver.residual_sd(y), y.mean(axis=0)
            seen[columns] = counts[:, columns].any(axis=0)

        spread(fill, genes, step=solver.block, size=e.size)
        # a gene without any count has no variance to speak of, and would pull the trend down
        x = (mean + np.log2(sizes + 1).mean() - _MILLION)[seen]
        y = np.sqrt(sd)[seen]
        # limma chooses its span by all rows that voom is given, those without counts among them
        trend = Trend.lowess(x, y, span=Trend.span(span, genes))
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

        spread(fill, self.e.shape[1], step=self.solver.block, size=self.e.size, done=done)


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


@dataclass(frozen=True)
class _Voom:
    """log2 counts per million ``e`` and their precisions ``weights``, both samples x genes."""

    e: pd.DataFrame
    weights: pd.DataFrame
    library_size: pd.Series
    mean_variance: MeanVariance


@ONE_BLAS_THREAD
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
        what = "norm_factors are not one positive number a sample"
        raise ConfigError(what, fix="pass tmm_factors(counts)")
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
