"""Weighted least squares for all genes at once.

In the basis [D Q] of a design (see ``Basis``: D disjoint group indicators, Q orthonormal nuisance columns) the normal
equations of one gene with weights W are a diagonal D'WD, a cross block D'WQ and a small Q'WQ. They are solved through
the Schur complement S = Q'WQ - (D'WQ)'(D'WD)^-1(D'WQ). Every block of them is a matrix product shared by many genes.
An arbitrary design is the case of few groups and a large Q.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.sparse import csr_matrix

from perturbgen.de.design import Basis

_Array = NDArray[np.float64]

# A Schur complement this much smaller than what it was subtracted from has fewer than six digits left. It happens where
# voom's trend comes close to zero and weights reach 1e20, in data with less variance than counting itself would give.
_CANCELLED = 1e-10


@dataclass(frozen=True)
class _Fitted:
    """Some genes' fits: ``sigma`` (genes,), and of each function ``effects`` and ``unscaled`` (functions, genes).

    A function's standard error is ``unscaled`` times the residual standard deviation.
    """

    sigma: _Array
    effects: _Array
    unscaled: _Array


class Solver:
    """Least squares on one basis; blocks of genes are arrays (samples, genes of the block)."""

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        self.groups, self.rank_q = len(basis.groups), basis.q.shape[1]
        self.df_residual = len(basis.codes) - self.groups - self.rank_q
        self._indicators, self._stacked = _stack_indicators(basis)
        self._sizes = np.asarray(self._indicators.sum(axis=1))
        self._upper = np.triu_indices(self.rank_q)
        self._pairs = np.ascontiguousarray(
            (basis.q[:, self._upper[0]] * basis.q[:, self._upper[1]]).T
        )
        self._grouped = basis.codes >= 0

    def unweighted(self, y: _Array) -> tuple[_Array, _Array]:
        """Ordinary least squares: coefficients of D (groups, genes) and of Q (q, genes)."""
        return (self._indicators @ y) / self._sizes, self.basis.q.T @ y

    def predict(self, on_groups: _Array, on_q: _Array) -> _Array:
        """Fitted values (samples, genes)."""
        if not self.groups:
            return self.basis.q @ on_q
        values = on_groups[self.basis.codes]
        if not self._grouped.all():
            values[~self._grouped] = 0
        if self.rank_q:
            values += self.basis.q @ on_q
        return values

    def residual_sd(self, y: _Array) -> _Array:
        """Residual standard deviations (genes,) of ordinary least squares."""
        residual = y - self.predict(*self.unweighted(y))
        return np.sqrt(np.einsum("ng,ng->g", residual, residual) / self.df_residual)

    def weighted(self, y: _Array, w: _Array, functions: tuple[csr_matrix, _Array]) -> _Fitted:
        """Weighted least squares of y (samples, genes) with weights w, and functions of the coefficients.

        ``functions`` are (functions, groups) and (functions, q) of the basis' coefficients.
        """
        try:
            return self._by_schur(y, w, functions)
        except np.linalg.LinAlgError:
            if y.shape[1] == 1:
                return self._by_qr(y[:, 0], w[:, 0], functions)
        genes = [self.weighted(y[:, [g]], w[:, [g]], functions) for g in range(y.shape[1])]
        return _Fitted(
            *(np.concatenate([getattr(g, f.name) for g in genes], axis=-1) for f in fields(_Fitted))
        )

    def _by_qr(self, y: _Array, w: _Array, functions: tuple[csr_matrix, _Array]) -> _Fitted:
        """One gene whose weights differ too much for normal equations: QR, the heaviest samples first."""
        order = np.argsort(-w, kind="stable")
        design = np.hstack([self._indicators.T.toarray(), self.basis.q])[order]
        root = np.sqrt(w[order])
        q, r = np.linalg.qr(root[:, None] * design)
        coefficients = solve_triangular(r, q.T @ (root * y[order]))
        residual = root * (y[order] - design @ coefficients)
        wanted = np.hstack([functions[0].toarray(), functions[1]])
        unscaled = np.linalg.norm(solve_triangular(r, wanted.T, trans="T"), axis=0)
        sigma = np.sqrt(residual @ residual / self.df_residual)
        return _Fitted(np.array([sigma]), (wanted @ coefficients)[:, None], unscaled[:, None])

    def _by_schur(self, y: _Array, w: _Array, functions: tuple[csr_matrix, _Array]) -> _Fitted:
        """Weighted least squares through the Schur complement; LinAlgError where that would lose too many digits."""
        genes = y.shape[1]
        wy = w * y
        moments = (self._stacked @ w).reshape(1 + self.rank_q, self.groups, genes)
        inverse_mass = 1 / moments[0]
        cross = np.ascontiguousarray(moments[1:].transpose(2, 0, 1))
        ratio = cross * inverse_mass.T[:, None, :]
        gram = self._gram(w)
        schur = gram - np.matmul(ratio, cross.transpose(0, 2, 1))
        if (np.einsum("bqq->bq", schur) < _CANCELLED * np.einsum("bqq->bq", gram)).any():
            raise np.linalg.LinAlgError
        means = (self._indicators @ wy) * inverse_mass
        right = (self.basis.q.T @ wy).T - np.matmul(cross, means.T[:, :, None])[:, :, 0]
        inverse_root = np.linalg.inv(np.linalg.cholesky(schur))
        on_q = np.matmul(
            inverse_root.transpose(0, 2, 1), np.matmul(inverse_root, right[:, :, None])
        )[:, :, 0].T
        on_groups = means - np.einsum("bqd,qb->db", ratio, on_q)
        residual = y - self.predict(on_groups, on_q)
        residual *= residual
        sigma = np.sqrt(np.einsum("ng,ng->g", residual, w) / self.df_residual)
        by_group, by_q = functions
        effects = by_group @ on_groups + by_q @ on_q
        return _Fitted(
            sigma, effects, np.sqrt(_variances(functions, inverse_mass, ratio, inverse_root))
        )

    def _gram(self, w: _Array) -> _Array:
        """Q'WQ of every gene, (genes, q, q)."""
        gram = np.empty((w.shape[1], self.rank_q, self.rank_q))
        products = (self._pairs @ w).T
        gram[:, self._upper[0], self._upper[1]] = products
        gram[:, self._upper[1], self._upper[0]] = products
        return gram


def _variances(
    functions: tuple[csr_matrix, _Array], inverse_mass: _Array, ratio: _Array, inverse_root: _Array
) -> _Array:
    """Unscaled variances (functions, genes): f_D (D'WD)^-1 f_D' + |S^-1/2 (f_Q - f_D (D'WD)^-1 D'WQ)|^2.

    ``inverse_mass`` (groups, genes) is the diagonal of (D'WD)^-1, ``ratio`` (genes, q, groups) (D'WD)^-1 D'WQ, and
    ``inverse_root`` (genes, q, q) S^-1/2.
    """
    by_group, by_q = functions
    genes, rank, groups = ratio.shape
    if _is_identity(by_group):
        shifted = ratio
    else:
        shifted = (by_group @ ratio.reshape(genes * rank, groups).T).T.reshape(
            genes, rank, by_q.shape[0]
        )
    spread = np.matmul(inverse_root, by_q.T - shifted)
    return by_group.power(2) @ inverse_mass + np.einsum("bqm,bqm->mb", spread, spread)


def _is_identity(matrix: csr_matrix) -> bool:
    """Whether a sparse matrix changes nothing, as where the functions are the group coefficients themselves."""
    size, ones = matrix.shape[0], np.arange(matrix.shape[0])
    same = matrix.shape[1] == size == matrix.nnz
    return bool(same and (matrix.indices == ones).all() and (matrix.data == 1).all())


def _stack_indicators(basis: Basis) -> tuple[csr_matrix, csr_matrix]:
    """D' (groups, samples), and D' followed by D' diag(Q_k) for each nuisance column k."""
    rows = np.flatnonzero(basis.codes >= 0)
    codes, groups, samples = basis.codes[rows], len(basis.groups), len(basis.codes)
    values = [np.ones(len(rows)), *basis.q[rows].T]
    data, at = (
        np.concatenate(values),
        np.concatenate([codes + k * groups for k in range(len(values))]),
    )
    columns = np.tile(rows, len(values))
    stacked = csr_matrix((data, (at, columns)), shape=(groups * len(values), samples))
    return csr_matrix((np.ones(len(rows)), (codes, rows)), shape=(groups, samples)), stacked
