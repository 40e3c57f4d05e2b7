"""F statistics of several contrasts, and which of a gene's contrasts make its F significant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_SINGULAR = 1e-8  # of the largest eigenvalue: what limma takes for zero


def inverse_correlations(correlation: _Array) -> tuple[_Array, int]:
    """P such that F = t' P t: inverse correlations over their rank; and that rank.

    ``correlation`` and P are (1 or genes, contrasts, contrasts).
    """
    values, vectors = np.linalg.eigh(correlation)
    kept = values > _SINGULAR * values[:, -1:]
    # contrasts that depend on each other do so in every gene
    rank = int(np.median(kept.sum(axis=1)))
    inverse = np.zeros_like(values)
    inverse[:, -rank:] = 1 / values[:, -rank:] / rank
    return (vectors * inverse[:, None, :]) @ vectors.transpose(0, 2, 1), rank


def quadratic(x: _Array, precision: _Array) -> _Array:
    """x' P x of every gene: x (genes, contrasts), P (1 or genes, contrasts, contrasts)."""
    if len(precision) == 1:
        return np.einsum("gi,gi->g", x @ precision[0], x)
    return np.einsum("gi,gij,gj->g", x, precision, x)


def classify(t: _Array, beyond: Callable[[_Array], NDArray[np.bool_]]) -> _Array:
    """-1, 0 or 1 of every t (genes, contrasts) of genes whose F may be significant.

    From the largest |t| down: a contrast counts as long as F were significant if no larger one
    were more than it is.
    """
    genes, contrasts = t.shape
    order = np.argsort(-np.abs(t), axis=1, kind="stable")
    x, signs, chosen = t.copy(), np.sign(t), np.zeros_like(t)
    every, going = np.arange(genes), beyond(t)
    for j in range(contrasts):
        column = order[:, j]
        if j:
            limit = np.abs(t[every, column])[:, None]
            before = np.take_along_axis(signs, order[:, :j], axis=1) * limit
            np.put_along_axis(x, order[:, :j], before, axis=1)
            going = going & beyond(x)
        chosen[every[going], column[going]] = signs[every[going], column[going]]
    return chosen
