"""Metrics that compare a row of truth with a row of prediction, as Open Problems computes them.

Metrics about the genes that respond: which they are, which way they go, and errors weighted towards them.

Whether a prediction is nearer to its own truth than to the truth of other perturbations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from perturbgen.core.stats import Array, divide


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
    return divide(products, _norms(truth) * _norms(prediction))


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
    middles = (
        starts % genes + (lengths - genes) / 2
    )  # the mean position of the run, less (genes − 1)/2
    ranks = np.empty((rows, genes))
    np.put_along_axis(ranks, order, np.repeat(middles, lengths).reshape(rows, genes), axis=1)
    return ranks


def _norms(values: Array) -> Array:
    """Euclidean norm of each row (conditions,)."""
    return np.sqrt(np.einsum("ij,ij->i", values, values))


def significant(values: Array, *, level: float = 0.05, adjust: bool = True) -> Array:
    """Which genes are differentially expressed (conditions, genes), from signed −log10 p.

    With ``adjust`` p is Benjamini-Hochberg adjusted within the row, over all its genes; else p itself is compared.
    """
    strength = np.abs(values)
    if not adjust:
        return strength >= -np.log10(level)
    return strength >= _benjamini_hochberg_cut(strength, level)[:, None]


def _benjamini_hochberg_cut(strength: Array, level: float) -> Array:
    """The least −log10 p of each row that is significant (conditions,); infinite where none is.

    The largest k with p_(k) ≤ k·level/genes decides; in −log10 p this is a comparison of the sorted values.
    """
    genes = strength.shape[1]
    descending = -np.sort(-strength, axis=1)
    passes = descending >= -np.log10(np.arange(1, genes + 1) * (level / genes))
    last = genes - 1 - np.argmax(passes[:, ::-1], axis=1)
    return np.where(passes.any(axis=1), descending[np.arange(len(strength)), last], np.inf)


def sign_accuracy(truth: Array, prediction: Array, de: Array) -> Array:
    """Share of the truly responding genes ``de`` whose direction is right (conditions,); a predicted 0 counts ½.

    NaN where no gene responds.
    """
    agreement = np.sign(truth) * np.sign(prediction)
    return divide(((agreement + 1) / 2 * de).sum(axis=1), de.sum(axis=1), np.nan)


def precision(de: Array, predicted: Array) -> Array:
    """Share of the genes predicted to respond that do (conditions,); 0 where none is predicted, NaN where none does."""
    found = divide((de & predicted).sum(axis=1), predicted.sum(axis=1))
    return np.where(de.any(axis=1), found, np.nan)


def recall(de: Array, predicted: Array) -> Array:
    """Share of the responding genes that are predicted to (conditions,); NaN where none responds."""
    return divide((de & predicted).sum(axis=1), de.sum(axis=1), np.nan)


def de_overlap(de: Array, predicted: Array, prediction: Array) -> Array:
    """The Virtual Cell Challenge's differential expression score (conditions,): |true ∩ predicted| / |true|.

    Where more genes are predicted than respond, the |true| strongest of them count; ties share the last places.
    NaN where no gene responds (the challenge's own code gives 0).
    """
    places = de.sum(axis=1)
    strength = np.where(predicted, np.abs(prediction), 0)
    chosen = _top_share(strength, places) * predicted
    return divide((chosen * de).sum(axis=1), places, np.nan)


def top_overlap(truth: Array, prediction: Array, *, k: int = 100) -> Array:
    """Share of the k strongest true genes among as many strongest predicted ones (conditions,), by absolute value.

    Equals of the k-th true gene count as true, too; predicted ties share their places, so that a constant prediction
    gets what chance would. Fewer genes are taken where fewer than k are not 0; NaN where all are 0.
    """
    strength = np.abs(truth)
    cut = np.maximum(_kth_largest(strength, min(k, strength.shape[1])), _least_positive(strength))
    true = strength >= cut[:, None]
    places = true.sum(axis=1)
    return divide((_top_share(np.abs(prediction), places) * true).sum(axis=1), places, np.nan)


def _least_positive(strength: Array) -> Array:
    """The least positive value of each row (conditions,), infinite where there is none."""
    return np.where(strength > 0, strength, np.inf).min(axis=1)


def _kth_largest(strength: Array, k: int) -> Array:
    """The k-th largest value of each row (conditions,)."""
    at = strength.shape[1] - k
    return np.partition(strength, at, axis=1)[:, at]


def _top_share(strength: Array, places: Array) -> Array:
    """How much of each gene is among the strongest ``places`` (conditions,) of its row: 1, 0, or a share at a tie."""
    rows = np.arange(len(strength))
    descending = -np.sort(-strength, axis=1)
    cut = descending[rows, np.maximum(places, 1) - 1][:, None]
    above, level = strength > cut, strength == cut
    left = places - above.sum(axis=1)
    share = divide(left, level.sum(axis=1))
    return above + level * np.clip(share, 0, 1)[:, None]


def evidence_weights(truth: Array) -> Array:
    """Weights (conditions, genes) from the truth's absolute values: scaled to 0..1 in each row, squared, sum 1.

    Uniform where all absolute values of a row are equal. Mejia et al. 2025, on any statistic of expression.
    """
    strength = np.abs(truth)
    low = strength.min(axis=1, keepdims=True)
    spread = strength.max(axis=1, keepdims=True) - low
    squared = np.square(divide(strength - low, spread, 1.0))
    return squared / squared.sum(axis=1, keepdims=True)


def weighted_mse(truth: Array, prediction: Array, weights: Array) -> Array:
    """Σ_j w_j (y_j − ŷ_j)² (conditions,), the weights of each row summing to 1."""
    difference = truth - prediction
    return np.einsum("ij,ij,ij->i", weights, difference, difference)


def weighted_r2(truth: Array, prediction: Array, weights: Array) -> Array:
    """1 − Σ w (y − ŷ)² / Σ w (y − ȳ_w)² (conditions,); NaN where the truth is constant."""
    centred = truth - np.einsum("ij,ij->i", weights, truth)[:, None]
    spread = np.einsum("ij,ij,ij->i", weights, centred, centred)
    spread[truth.max(axis=1) == truth.min(axis=1)] = 0
    return 1 - divide(weighted_mse(truth, prediction, weights), spread, np.nan)


Distance = Literal["cosine", "euclidean", "l1"]


def discrimination(
    truth: Array, prediction: Array, groups: Array, *, distance: Distance = "cosine"
) -> Array:
    """Share of the other conditions of the group whose truth is farther from the prediction than its own (conditions,).

    Ties count ½, so that any constant prediction has mean ½ exactly; 1 is perfect. ``groups`` (conditions,) says who is
    compared with whom; NaN where a group has one member. Cosine distance is blind to the size of a prediction, which
    the others are not: inflating predictions raises them.
    """
    result = np.full(len(truth), np.nan)
    for members in _each_group(groups):
        if len(members) > 1:
            result[members] = _rank_share(_distances(prediction[members], truth[members], distance))
    return result


def _each_group(groups: Array) -> Iterator[Array]:
    """The positions of each group's members, in order of first appearance."""
    names: dict[object, list[int]] = {}
    for position, name in enumerate(groups):
        names.setdefault(name, []).append(position)
    yield from (np.array(members) for members in names.values())


def _rank_share(distances: Array) -> Array:
    """Share of each row's other entries above its diagonal one, ties ½ (conditions,), from (conditions, conditions)."""
    own = np.diag(distances)[:, None]
    farther = (distances > own).sum(axis=1)
    equal = (distances == own).sum(axis=1) - 1
    return (farther + equal / 2) / (len(distances) - 1)


def _distances(prediction: Array, truth: Array, kind: Distance) -> Array:
    """Distances (predictions, truths) between rows; those of identical predictions are identical.

    A row of zeros has cosine similarity 0 with everything.
    """
    if kind == "l1":
        from scipy.spatial.distance import cdist

        return cdist(prediction, truth, "cityblock")
    products = prediction @ truth.T
    if kind == "cosine":
        return -_round_off(divide(products, _norms(prediction)[:, None] * _norms(truth)[None]), 1.0)
    squares = np.square(truth).sum(axis=1)
    return _round_off(
        squares[None] - 2 * products, squares.max(initial=0) + np.abs(products).max(initial=0)
    )


def _round_off(values: Array, scale: float) -> Array:
    """Values without their last digits, in which a matrix product of equal rows may differ."""
    return np.round(values / scale, 12) if scale > 0 else values
