"""Contrasts of coefficients: exactly, or with the approximation of limma's ``contrasts.fit``.

``"exact"`` takes each gene's own weighted covariance: a contrast then has the same value however
the design is coded. ``"limma"`` combines each gene's coefficient standard errors with the
correlations of the *unweighted* design. With voom weights that is an approximation which depends on
the order of the levels: renaming plates changes p-values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from perturbgen.de.design import Design

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Approximation:
    """limma's contrasts: ``weights`` (contrasts, coefficients), and what pairs of those share.

    The variance of a contrast is sum_i c_i^2 u_i^2 + sum_{i<j} 2 c_i c_j r_ij u_i u_j; ``shared``
    (contrasts, pairs) are the 2 c_i c_j r_ij, with the pairs in ``first`` and ``second``.
    """

    weights: csr_matrix
    shared: csr_matrix
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    @classmethod
    def of(cls, weights: _Array, correlation: _Array) -> _Approximation:
        """Of ``weights`` (contrasts, coefficients) and the coefficients' ``correlation``."""
        contrast, first, second = [], [], []
        for k, row in enumerate(weights):
            used = np.flatnonzero(row)
            i, j = np.triu_indices(len(used), 1)
            contrast.append(np.full(len(i), k))
            first.append(used[i])
            second.append(used[j])
        at, i, j = (np.concatenate(parts) for parts in (contrast, first, second))
        values = 2 * weights[at, i] * weights[at, j] * correlation[i, j]
        shared = csr_matrix((values, (at, np.arange(len(at)))), shape=(len(weights), len(at)))
        return cls(csr_matrix(weights), shared, i, j)


@dataclass(frozen=True)
class Contrasts:
    """What a fit must compute, and how the contrasts follow from it.

    ``functions`` are (functions, groups) and (functions, q) of a basis' coefficients: the contrasts
    themselves for the exact kind; for limma's, coefficients that its ``approximation`` combines.
    """

    functions: tuple[csr_matrix, _Array]
    approximation: _Approximation | None = None

    @classmethod
    def of(cls, design: Design, weights: _Array, kind: str) -> Contrasts:
        """Contrasts with ``weights`` (contrasts, columns of the design), 0 on dropped columns."""
        basis = design.basis

        def functions(wanted: _Array) -> tuple[csr_matrix, _Array]:
            on_groups, on_q = basis.functionals(wanted)
            return csr_matrix(on_groups), on_q  # a contrast touches two groups of hundreds

        if kind == "exact":
            return cls(functions(weights))
        columns = np.flatnonzero(weights.any(axis=0))
        coefficients = np.zeros((len(columns), weights.shape[1]))
        coefficients[np.arange(len(columns)), columns] = 1
        covariance = basis.unscaled_covariance(coefficients)
        scale = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(scale, scale)
        return cls(functions(coefficients), _Approximation.of(weights[:, columns], correlation))

    @property
    def size(self) -> int:
        """The number of contrasts."""
        kind = self.approximation
        return (self.functions[0] if kind is None else kind.weights).shape[0]

    def combine(self, effects: _Array, unscaled: _Array) -> tuple[_Array, _Array]:
        """Effects and unscaled standard errors of the contrasts from those of the functions."""
        limma = self.approximation
        if limma is None:
            return effects, unscaled
        pairs = unscaled[limma.first] * unscaled[limma.second]
        variances = limma.weights.power(2) @ unscaled**2 + limma.shared @ pairs
        return limma.weights @ effects, np.sqrt(variances)
