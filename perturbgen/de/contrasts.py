"""Contrasts of coefficients: exactly, or with the approximation of limma's ``contrasts.fit``.

``"exact"`` takes each gene's own weighted covariance: a contrast then has the same value however the design is coded.
``"limma"`` combines each gene's coefficient standard errors with the correlations of the *unweighted* design. With
voom weights that is an approximation which depends on the order of the levels: renaming plates changes p-values.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from perturbgen.core.errors import ConfigError
from perturbgen.de.design import Basis, Design, estimable

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
ContrastKind = Literal["exact", "limma"]


@dataclass(frozen=True)
class _Approximation:
    """limma's contrasts of coefficients: ``weights`` (contrasts, coefficients), and what pairs of coefficients share.

    The variance of a contrast is sum_i c_i^2 u_i^2 + sum_{i<j} 2 c_i c_j r_ij u_i u_j; ``shared`` (contrasts, pairs)
    are the 2 c_i c_j r_ij, with the pairs in ``first`` and ``second``.
    """

    weights: csr_matrix
    shared: csr_matrix
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    def combine(self, effects: _Array, unscaled: _Array) -> tuple[_Array, _Array]:
        """Effects and unscaled standard errors of contrasts from those of coefficients, both (..., genes)."""
        pairs = unscaled[self.first] * unscaled[self.second]
        variances = self.weights.power(2) @ unscaled**2 + self.shared @ pairs
        return self.weights @ effects, np.sqrt(variances)


@dataclass(frozen=True)
class Contrasts:
    """What a fit must compute, and how the contrasts follow from it.

    ``functions`` are (functions, groups) and (functions, q) of a basis' coefficients: the contrasts themselves for the
    exact kind; for limma's, coefficients that its ``approximation`` combines.
    """

    functions: tuple[csr_matrix, _Array]
    approximation: _Approximation | None = None

    @property
    def size(self) -> int:
        """The number of contrasts."""
        return (
            self.functions[0] if self.approximation is None else self.approximation.weights
        ).shape[0]

    def combine(self, effects: _Array, unscaled: _Array) -> tuple[_Array, _Array]:
        """Effects and unscaled standard errors of the contrasts, (contrasts, genes)."""
        return (
            (effects, unscaled)
            if self.approximation is None
            else self.approximation.combine(effects, unscaled)
        )


def make_contrasts(basis: Basis, weights: _Array, kind: ContrastKind) -> Contrasts:
    """Contrasts with ``weights`` (contrasts, columns of the design), zero on dropped columns."""
    if kind == "exact":
        return Contrasts(_sparse_functions(basis, weights))
    if kind != "limma":
        raise ConfigError(f"contrasts={kind!r} is unknown", expected='"exact" or "limma"')
    columns = np.flatnonzero(weights.any(axis=0))
    coefficients = np.zeros((len(columns), weights.shape[1]))
    coefficients[np.arange(len(columns)), columns] = 1
    covariance = basis.unscaled_covariance(coefficients)
    scale = np.sqrt(np.diag(covariance))
    approximation = _approximate(weights[:, columns], covariance / np.outer(scale, scale))
    return Contrasts(_sparse_functions(basis, coefficients), approximation)


def _approximate(weights: _Array, correlation: _Array) -> _Approximation:
    """limma's approximation for ``weights`` (contrasts, coefficients) and the coefficients' ``correlation``."""
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
    return _Approximation(csr_matrix(weights), shared, i, j)


def _sparse_functions(basis: Basis, weights: _Array) -> tuple[csr_matrix, _Array]:
    """Functions of a design's coefficients as functions of the basis' own, the group part sparse."""
    on_groups, on_q = basis.functionals(weights)
    return csr_matrix(on_groups), on_q


def answerable(design: Design, weights: _Array, kind: ContrastKind) -> NDArray[np.bool_]:
    """Which contrasts (contrasts, columns) the design can answer.

    limma gives a number for a contrast outside the design's row space too, one that depends on which columns were
    dropped; here it is not answered. With limma's kind a contrast of a dropped coefficient is not, either.
    """
    possible = estimable(design, weights)
    if kind == "limma":
        dropped = np.setdiff1d(np.arange(weights.shape[1]), design.kept)
        possible &= ~weights[:, dropped].any(axis=1)
    return possible
