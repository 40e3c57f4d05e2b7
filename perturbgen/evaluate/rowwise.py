"""Metrics that compare a row of truth with a row of prediction, as Open Problems computes them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]


def rowwise_rmse(truth: Array, prediction: Array) -> Array:
    """√(mean_j (y_j − ŷ_j)²) of each row (conditions,), from (conditions, genes)."""
    difference = truth - prediction
    return np.sqrt(np.einsum("ij,ij->i", difference, difference) / truth.shape[1])


def rowwise_mae(truth: Array, prediction: Array) -> Array:
    """mean_j |y_j − ŷ_j| of each row (conditions,), from (conditions, genes)."""
    return np.abs(truth - prediction).mean(axis=1)


def rowwise_cosine(truth: Array, prediction: Array) -> Array:
    """Σ y ŷ / (‖y‖ ‖ŷ‖) of each row (conditions,); 0 where either row is zero throughout."""
    products = np.einsum("ij,ij->i", truth, prediction)
    return divide(products, norms(truth) * norms(prediction))


def rowwise_pearson(truth: Array, prediction: Array) -> Array:
    """Pearson's correlation of each row (conditions,); 0 where either row is constant."""
    return rowwise_cosine(centre(truth), centre(prediction))


def centre(values: Array) -> Array:
    """Rows less their mean (conditions, genes); a constant row is exactly zero, which rounding would not give."""
    centred = values - values.mean(axis=1, keepdims=True)
    centred[values.max(axis=1) == values.min(axis=1)] = 0
    return centred


def centred_ranks(values: Array) -> Array:
    """Ranks within each row less their mean, ties at their average (conditions, genes)."""
    rows, genes = values.shape
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    first = np.ones((rows, genes), bool)  # whether a value begins a run of equal ones
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=rows * genes)
    middles = starts % genes + (lengths - genes) / 2  # the mean position of the run, less (genes − 1)/2
    ranks = np.empty((rows, genes))
    np.put_along_axis(ranks, order, np.repeat(middles, lengths).reshape(rows, genes), axis=1)
    return ranks


def norms(values: Array) -> Array:
    """Euclidean norm of each row (conditions,)."""
    return np.sqrt(np.einsum("ij,ij->i", values, values))


def divide(numerator: Array, denominator: Array, otherwise: float = 0.0) -> Array:
    """The ratio, and ``otherwise`` where the denominator is 0."""
    out = np.full(np.broadcast(numerator, denominator).shape, otherwise)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)
