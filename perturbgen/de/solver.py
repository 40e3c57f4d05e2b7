"""Weighted least squares of all genes at once, on one design.

In the basis [D Q] of a design (D disjoint group indicators, Q orthonormal nuisance columns) the
normal equations of one gene with weights W are a diagonal D'WD, a cross block D'WQ and a small
Q'WQ. They are solved through the Schur complement S = Q'WQ - (D'WQ)'(D'WD)^-1(D'WQ). Every block of
them is a matrix product shared by many genes. An arbitrary design is the case of few groups and a
large Q.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.sparse import csr_matrix

from perturbgen.de.design import Design

_Array = NDArray[np.float64]
Functions = tuple[csr_matrix, _Array]

# A Schur complement this much smaller than what it was subtracted from has fewer than six digits
# left. It happens where voom's trend comes close to zero and weights reach 1e20, in data with less
# variance than counting itself would give.
_CANCELLED = 1e-10
_BLOCK = 64  # genes at a time, at least
CACHED = 32_768  # numbers of a block of genes that stay in the processor's cache


class Fitted(NamedTuple):
    """``sigma`` (genes,), and functions' ``effects`` and ``unscaled``, both (functions, genes).

    A function's standard error is ``unscaled`` times the residual standard deviation.
    """

    sigma: _Array
    effects: _Array
    unscaled: _Array


class Solver:
    """Least squares on one design; blocks of genes are arrays (samples, genes of the block)."""

    def __init__(self, design: Design) -> None:
        design.require_df()
        self.design, self.basis, self.df_residual = design, design.basis, design.df_residual
        self.codes, self.q = self.basis.codes, self.basis.q
        self.groups, self.rank_q = len(self.basis.groups), self.q.shape[1]
        # few samples make larger blocks, or a block's arithmetic would be less than calling it
        widest = max(len(self.codes), self.groups * self.rank_q)
        self.block = max(_BLOCK, CACHED // widest)
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

    def unscaled_covariance(self, weights: _Array) -> _Array:
        """Covariance (functions, functions) under equal weights, residual variance 1."""
        return self.basis.unscaled_covariance(weights)

    @cached_property
    def coefficients(self) -> Functions:
        """The basis' own coefficients, as functions of themselves."""
        identity = np.eye(self.groups + self.rank_q)
        return csr_matrix(identity[:, : self.groups]), identity[:, self.groups :]

    def weighted(self, y: _Array, w: _Array, functions: Functions) -> Fitted:
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
        return Fitted(*(np.concatenate(parts, axis=-1) for parts in zip(*halves, strict=True)))

    def _by_schur(self, y: _Array, w: _Array, functions: Functions) -> Fitted:
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
        return Fitted(sigma, effects, np.sqrt(variances))

    def _by_qr(self, y: _Array, w: _Array, functions: Functions) -> Fitted:
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
        return Fitted(np.array([sigma]), (wanted @ coefficients)[:, None], unscaled[:, None])


def _variances(
    functions: Functions, inverse_mass: _Array, ratio: _Array, inverse_root: _Array
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
