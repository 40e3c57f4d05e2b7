"""Least squares where samples of one block are correlated, as limma's ``gls.series``.

With C the correlation matrix (1 on the diagonal, rho within blocks) and a gene's weights W, the
errors have the covariance W^-1/2 C W^-1/2: sqrt(W) y and sqrt(W) X are multiplied by C^-1/2, which
for blocks of m samples is a multiple of each value and one of the block's mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perturbgen.de.blocks import require_correlation
from perturbgen.de.design import Design
from perturbgen.de.solver import CACHED, Fitted, Functions, Solver

_Array = NDArray[np.float64]


class BlockedSolver(Solver):
    """Generalised least squares on one design, with one correlation within all blocks."""

    def __init__(self, design: Design, codes: NDArray[np.intp], correlation: float) -> None:
        super().__init__(design)
        require_correlation(correlation, codes)
        self.correlation, self.blocks = correlation, codes
        # in the order of the blocks, sums within them are one pass over the rows
        self._order = np.argsort(codes, kind="stable")
        ordered = codes[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sizes = np.diff(np.r_[self._starts, len(codes)])
        within = 1 / np.sqrt(1 - correlation)
        between = 1 / np.sqrt(1 + (sizes - 1) * correlation)
        self._within, self._beyond = within, (between - within) / sizes
        self._own = np.repeat(np.arange(len(sizes)), sizes)
        x = np.hstack([self._indicators.T.toarray(), self.q])
        self._x = x[self._order]
        self._base = np.linalg.qr(self._whiten(self._x[None]))
        self.block = max(8, CACHED // max(x.size, 1))

    def _whiten(self, values: _Array) -> _Array:
        """C^-1/2 of values (any, samples in the order of blocks, columns)."""
        sums = np.add.reduceat(values, self._starts, axis=1) * self._beyond[:, None]
        return np.asarray(values * self._within + sums[:, self._own])

    def correlations(self) -> _Array:
        """C (samples, samples)."""
        found = np.where(self.blocks[:, None] == self.blocks, self.correlation, 0.0)
        np.fill_diagonal(found, 1)
        return found

    def unweighted(self, y: _Array) -> tuple[_Array, _Array]:
        """Coefficients of D (groups, genes) and of Q (q, genes), of equal weights."""
        q, r = self._base
        found = np.linalg.solve(r[0], q[0].T @ self._whiten(y[self._order][None])[0])
        return found[: self.groups], found[self.groups :]

    def residual_sd(self, y: _Array) -> _Array:
        """Residual standard deviations (genes,) of equal weights."""
        q = self._base[0][0]
        white = self._whiten(y[self._order][None])[0]
        return np.sqrt(((white - q @ (q.T @ white)) ** 2).sum(axis=0) / self.df_residual)

    def unscaled_covariance(self, weights: _Array) -> _Array:
        """Covariance (functions, functions) under equal weights, residual variance 1."""
        wanted = np.hstack(self.basis.functionals(weights))
        half = np.linalg.solve(self._base[1][0].T, wanted.T)
        return np.asarray(half.T @ half)

    def weighted(self, y: _Array, w: _Array, functions: Functions) -> Fitted:
        """Least squares of y (samples, genes) with weights w, and functions of the coefficients."""
        root = np.sqrt(w[self._order]).T[:, :, None]
        q, r = np.linalg.qr(self._whiten(root * self._x))
        white = self._whiten(root * y[self._order].T[:, :, None])
        on_q = np.matmul(q.transpose(0, 2, 1), white)
        residual = (white - np.matmul(q, on_q))[:, :, 0]
        sigma = np.sqrt((residual**2).sum(axis=1) / self.df_residual)
        wanted = np.hstack([functions[0].toarray(), functions[1]])
        effects = wanted @ np.linalg.solve(r, on_q)[:, :, 0].T
        half = np.linalg.solve(
            r.transpose(0, 2, 1), np.broadcast_to(wanted.T, (len(r), *wanted.T.shape))
        )
        unscaled = np.sqrt((half**2).sum(axis=1)).T
        return Fitted(sigma, effects, unscaled)
