"""Metrics about the genes that respond: which they are, which way they go, and errors weighted towards them."""

from __future__ import annotations

import numpy as np

from perturbgen.evaluate.rowwise import Array, divide


def significant(values: Array, *, level: float = 0.05, adjust: bool = True) -> Array:
    """Which genes are differentially expressed (conditions, genes), from signed −log10 p.

    With ``adjust`` p is Benjamini-Hochberg adjusted within the row, over all its genes; else p itself is compared.
    """
    strength = np.abs(values)
    if not adjust:
        return strength >= -np.log10(level)
    return strength >= benjamini_hochberg_cut(strength, level)[:, None]


def benjamini_hochberg_cut(strength: Array, level: float) -> Array:
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
    chosen = top_share(strength, places) * predicted
    return divide((chosen * de).sum(axis=1), places, np.nan)


def top_overlap(truth: Array, prediction: Array, *, k: int = 100) -> Array:
    """Share of the k strongest true genes among as many strongest predicted ones (conditions,), by absolute value.

    Equals of the k-th true gene count as true, too; predicted ties share their places, so that a constant prediction
    gets what chance would. Fewer genes are taken where fewer than k are not 0; NaN where all are 0.
    """
    strength = np.abs(truth)
    cut = np.maximum(kth_largest(strength, min(k, strength.shape[1])), least_positive(strength))
    true = strength >= cut[:, None]
    places = true.sum(axis=1)
    return divide((top_share(np.abs(prediction), places) * true).sum(axis=1), places, np.nan)


def least_positive(strength: Array) -> Array:
    """The least positive value of each row (conditions,), infinite where there is none."""
    return np.where(strength > 0, strength, np.inf).min(axis=1)


def kth_largest(strength: Array, k: int) -> Array:
    """The k-th largest value of each row (conditions,)."""
    at = strength.shape[1] - k
    return np.partition(strength, at, axis=1)[:, at]


def top_share(strength: Array, places: Array) -> Array:
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
