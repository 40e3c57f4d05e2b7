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

from perturbgen.de.design import Basis, Design, estimable
from perturbgen.errors import ConfigError

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
ContrastKind = Literal["exact", "limma"]


@dataclass(frozen=True)
class Contrasts:
    """What a fit must compute, and how the contrasts follow from it.

    ``functions`` are (functions, groups) and (functions, q) of a basis' coefficients. For the exact kind they are the
    contrasts themselves; for limma's they are coefficients, and ``weights`` (contrasts, functions) and their
    ``correlation`` (functions, functions) give the contrasts.
    """

    functions: tuple[csr_matrix, Array]
    weights: csr_matrix | None = None
    correlation: Array | None = None

    @property
    def size(self) -> int:
        """The number of contrasts."""
        return (self.functions[0] if self.weights is None else self.weights).shape[0]

    def combine(self, effects: Array, unscaled: Array) -> tuple[Array, Array]:
        """Effects and unscaled standard errors of the contrasts, (contrasts, genes)."""
        if self.weights is None or self.correlation is None:
            return effects, unscaled
        variances = self.weights.power(2) @ unscaled**2
        for k in range(self.weights.shape[0]):
            row = slice(self.weights.indptr[k], self.weights.indptr[k + 1])
            used, factors = self.weights.indices[row], self.weights.data[row]
            for i in range(len(used)):
                for j in range(i):
                    shared = 2 * factors[i] * factors[j] * self.correlation[used[i], used[j]]
                    variances[k] += shared * unscaled[used[i]] * unscaled[used[j]]
        return self.weights @ effects, np.sqrt(variances)


def make_contrasts(basis: Basis, weights: Array, kind: ContrastKind) -> Contrasts:
    """Contrasts with ``weights`` (contrasts, columns of the design), zero on dropped columns."""
    if kind == "exact":
        return Contrasts(sparse_functions(basis, weights))
    if kind != "limma":
        raise ConfigError(f"contrasts={kind!r} is unknown", expected='"exact" or "limma"')
    columns = np.flatnonzero(weights.any(axis=0))
    coefficients = np.zeros((len(columns), weights.shape[1]))
    coefficients[np.arange(len(columns)), columns] = 1
    covariance = basis.unscaled_covariance(coefficients)
    scale = np.sqrt(np.diag(covariance))
    functions = sparse_functions(basis, coefficients)
    return Contrasts(functions, csr_matrix(weights[:, columns]), covariance / np.outer(scale, scale))


def sparse_functions(basis: Basis, weights: Array) -> tuple[csr_matrix, Array]:
    """Functions of a design's coefficients as functions of the basis' own, the group part sparse."""
    on_groups, on_q = basis.functionals(weights)
    return csr_matrix(on_groups), on_q


def answerable(design: Design, weights: Array, kind: ContrastKind) -> NDArray[np.bool_]:
    """Which contrasts (contrasts, columns) the design can answer.

    limma gives a number for a contrast outside the design's row space too, one that depends on which columns were
    dropped; here it is not answered. With limma's kind a contrast of a dropped coefficient is not, either.
    """
    possible = estimable(design, weights)
    if kind == "limma":
        dropped = np.setdiff1d(np.arange(weights.shape[1]), design.kept)
        possible &= ~weights[:, dropped].any(axis=1)
    return possible
