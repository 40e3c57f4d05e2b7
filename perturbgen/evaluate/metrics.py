"""Metrics of DE tables: one table of them below, their functions above it.

All arrays are (conditions, genes) of signed −log10 p, and a metric gives one value a condition.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Final, Literal

import numpy as np

from perturbgen.core.stats import Array, divide
from perturbgen.evaluate.values import Metric, Pair


def _rowwise_rmse(truth: Array, prediction: Array) -> Array:
    """√(mean_j (y_j − ŷ_j)²) of each row (conditions,)."""
    difference = truth - prediction
    return np.sqrt(np.einsum("ij,ij->i", difference, difference) / truth.shape[1])


def _rowwise_cosine(truth: Array, prediction: Array) -> Array:
    """Σ y ŷ / (‖y‖ ‖ŷ‖) of each row (conditions,); 0 where either row is zero throughout."""
    products = np.einsum("ij,ij->i", truth, prediction)
    return divide(products, _norms(truth) * _norms(prediction))


def _rowwise_pearson(pair: Pair) -> Array:
    """Pearson's correlation of each row (conditions,); 0 where either row is constant."""
    return _rowwise_cosine(pair.truth.centred, pair.prediction.centred)


def _norms(values: Array) -> Array:
    return np.sqrt(np.einsum("ij,ij->i", values, values))


def _sign_accuracy(truth: Array, prediction: Array, de: Array) -> Array:
    """Share of the responding genes ``de`` that go the right way (conditions,)."""
    agreement = np.sign(truth) * np.sign(prediction)
    # A predicted 0 counts ½, so that zeros get what a coin would.
    return divide(((agreement + 1) / 2 * de).sum(axis=1), de.sum(axis=1), np.nan)


def _de_precision(de: Array, predicted: Array) -> Array:
    """Share of the genes predicted to respond that do (conditions,); 0 where none is predicted."""
    found = divide((de & predicted).sum(axis=1), predicted.sum(axis=1))
    return np.where(de.any(axis=1), found, np.nan)


def _de_recall(de: Array, predicted: Array) -> Array:
    """Share of the responding genes that are predicted to (conditions,); NaN without any."""
    return divide((de & predicted).sum(axis=1), de.sum(axis=1), np.nan)


def _de_overlap(de: Array, predicted: Array, prediction: Array) -> Array:
    """The Virtual Cell Challenge's DE score (conditions,): |true ∩ predicted| / |true|.

    Where more genes are predicted than respond, the |true| strongest of them count; ties share the
    last places.
    """
    # A prediction that responds everywhere finds all: of a longer list only the strongest count.
    places = de.sum(axis=1)
    strength = np.where(predicted, np.abs(prediction), 0)
    chosen = _top_share(strength, places) * predicted
    # The challenge's own code gives 0 where no gene responds; that would make silent conditions
    # look like failures.
    return divide((chosen * de).sum(axis=1), places, np.nan)


def _top_overlap(truth: Array, prediction: Array, *, k: int = 100) -> Array:
    """Share of the k strongest true genes among as many strongest predicted ones (conditions,).

    Equals of the k-th true gene count as true, too. Fewer genes are taken where fewer than k are
    not 0; NaN where all are 0.
    """
    strength = np.abs(truth)
    at = strength.shape[1] - min(k, strength.shape[1])
    kth_largest = np.partition(strength, at, axis=1)[:, at]
    least_positive = np.where(strength > 0, strength, np.inf).min(axis=1)
    true = strength >= np.maximum(kth_largest, least_positive)[:, None]
    places = true.sum(axis=1)
    return divide((_top_share(np.abs(prediction), places) * true).sum(axis=1), places, np.nan)


def _top_share(strength: Array, places: Array) -> Array:
    """How much of each gene is among the strongest ``places`` (conditions,) of its row, 0 to 1."""
    rows = np.arange(len(strength))
    descending = -np.sort(-strength, axis=1)
    cut = descending[rows, np.maximum(places, 1) - 1][:, None]
    above, level = strength > cut, strength == cut
    # Ties share the places that are left, so that a constant prediction gets what chance would.
    share = divide(places - above.sum(axis=1), level.sum(axis=1))
    return above + level * np.clip(share, 0, 1)[:, None]


def _weighted_mse(truth: Array, prediction: Array, weights: Array) -> Array:
    """Σ_j w_j (y_j − ŷ_j)² (conditions,), the weights of each row summing to 1."""
    difference = truth - prediction
    return np.einsum("ij,ij,ij->i", weights, difference, difference)


def _weighted_r2(truth: Array, prediction: Array, weights: Array) -> Array:
    """1 − Σ w (y − ŷ)² / Σ w (y − ȳ_w)² (conditions,); NaN where the truth is constant."""
    centred = truth - np.einsum("ij,ij->i", weights, truth)[:, None]
    spread = np.einsum("ij,ij,ij->i", weights, centred, centred)
    # Exactly 0, which rounding would not give, so that a constant truth has no R².
    spread[truth.max(axis=1) == truth.min(axis=1)] = 0
    return 1 - divide(_weighted_mse(truth, prediction, weights), spread, np.nan)


_Distance = Literal["cosine", "euclidean", "l1"]


def _discrimination(
    truth: Array, prediction: Array, groups: Array, *, distance: _Distance = "cosine"
) -> Array:
    """Share of the group's other truths that are farther from the prediction than its own.

    Ties count ½, so that any constant prediction has mean ½ exactly; NaN where a group has one
    member.
    """
    # NaN for a condition alone in its group: there is nothing to tell it apart from.
    result = np.full(len(truth), np.nan)
    for name in np.unique(groups):
        here = np.flatnonzero(groups == name)
        if len(here) < 2:
            continue
        distances = _distances(prediction[here], truth[here], distance)
        own = np.diag(distances)[:, None]
        farther = (distances > own).sum(axis=1)
        equal = (distances == own).sum(axis=1) - 1
        result[here] = (farther + equal / 2) / (len(here) - 1)
    return result


def _distances(prediction: Array, truth: Array, kind: _Distance) -> Array:
    """Distances (predictions, truths) between rows; the cosine of a row of zeros is 0."""
    if kind == "l1":
        from scipy.spatial.distance import cdist

        return cdist(prediction, truth, "cityblock")
    products = prediction @ truth.T
    if kind == "cosine":
        scale = 1.0
        values = -divide(products, _norms(prediction)[:, None] * _norms(truth)[None])
    else:
        squares = np.square(truth).sum(axis=1)
        scale = squares.max(initial=0) + np.abs(products).max(initial=0)
        values = squares[None] - 2 * products
    # A matrix product gives equal rows different last digits, and what is tied would not be.
    return np.round(values / scale, 12) if scale > 0 else values


# A plain Metric is an error, 0 at best and without limit.
_correlation = partial(Metric, higher_is_better=True, low=-1, high=1)
_share = partial(Metric, higher_is_better=True, low=0, high=1)
_r2 = partial(Metric, higher_is_better=True, low=-math.inf, high=1)
_told_apart = partial(_share, zeros=0.5, across=True)

TABLE_METRICS: Final = (
    Metric(
        "mean_rowwise_rmse",
        "Error (RMSE)",
        "√ of the mean squared error over genes, of each condition; then the mean over conditions.",
        lambda t: _rowwise_rmse(t.truth.values, t.prediction.values),
        "zeros: the mean over conditions of the row's root mean square",
        meaning="How large a typical error of a gene is; large errors weigh most.",
    ),
    Metric(
        "mean_rowwise_mae",
        "Error (MAE)",
        "Mean absolute error over genes, of each condition.",
        lambda t: np.abs(t.truth.values - t.prediction.values).mean(axis=1),
        "zeros: the mean absolute true value",
        meaning="How large the mean error of a gene is, all errors alike.",
    ),
    _correlation(
        "mean_rowwise_pearson",
        "Correlation (Pearson)",
        "Pearson's correlation over genes; 0 where a row is constant.",
        _rowwise_pearson,
        "any constant row: 0",
        zeros=0,
        scale_free=True,
        meaning="Do strong genes come out strong, and in the right direction?",
    ),
    _correlation(
        "mean_rowwise_spearman",
        "Correlation of ranks (Spearman)",
        "Pearson's correlation of average ranks over genes; 0 where a row is constant.",
        lambda t: _rowwise_cosine(t.truth.ranks, t.prediction.ranks),
        "any constant row: 0",
        zeros=0,
        scale_free=True,
        meaning="Are genes in the right order, from most reduced to most raised?",
    ),
    _correlation(
        "mean_rowwise_cosine",
        "Cosine similarity",
        "Cosine similarity over genes; 0 where a row is zero.",
        lambda t: _rowwise_cosine(t.truth.values, t.prediction.values),
        "zeros: 0; a constant row gets that of the truth with a row of ones",
        zeros=0,
        scale_free=True,
        meaning="As the correlation, with 0 as the middle in place of the mean.",
    ),
    _told_apart(
        "perturbation_discrimination",
        "Conditions told apart",
        "Share of the other conditions of the same cell type whose truth has a larger cosine "
        "distance from the prediction than its own truth has; ties count ½.",
        lambda t: _discrimination(t.truth.values, t.prediction.values, t.groups),
        "any constant table: ½",
        scale_free=True,
        meaning="Is a prediction nearer to its own compound's effect than to others? By chance ½.",
    ),
    _told_apart(
        "discrimination_same_layout",
        "Told apart, same layout",
        "As perturbation_discrimination, among the conditions of the same cell type that were "
        "measured in the same places (plates and row, say): what is left cannot be the layout.",
        lambda t: _discrimination(t.truth.values, t.prediction.values, t.places),
        "any constant table: ½",
        needs="layout",
        scale_free=True,
        meaning="As conditions told apart, among neighbours on the plates only.",
    ),
    _told_apart(
        "discrimination_l1",
        "Told apart (L1)",
        "As perturbation_discrimination, with Manhattan distances as in the Virtual Cell "
        "Challenge (which divides by N where this divides by N − 1). Inflating a prediction "
        "raises it.",
        lambda t: _discrimination(t.truth.values, t.prediction.values, t.groups, distance="l1"),
        "any constant table: ½",
        meaning="As conditions told apart, by absolute differences.",
    ),
    _told_apart(
        "centroid_accuracy",
        "Told apart (Euclidean)",
        "As perturbation_discrimination, with Euclidean distances (Systema, Open Problems; there "
        "ties are losses).",
        lambda t: _discrimination(
            t.truth.values, t.prediction.values, t.groups, distance="euclidean"
        ),
        "any constant table: ½",
        meaning="As conditions told apart, by straight-line distance.",
    ),
    _share(
        "top_100_overlap",
        "Top 100 genes found",
        "Share of the 100 genes of largest absolute true value among the 100 of largest absolute "
        "prediction; ties share their places.",
        lambda t: _top_overlap(t.truth.values, t.prediction.values, k=100),
        "any constant row: 100 / genes, which is chance",
        scale_free=True,
        meaning="How many of the 100 strongest genes are among the 100 predicted strongest?",
    ),
    _share(
        "sign_accuracy_de",
        "Directions right",
        "Share of the truly responding genes whose direction is right; a predicted 0 counts ½.",
        lambda t: _sign_accuracy(t.truth.values, t.prediction.values, t.truth.de),
        "zeros: ½; a constant row gets the share of genes that go its way",
        zeros=0.5,
        scale_free=True,
        meaning="Of the genes that respond, how many go the predicted way? By chance ½.",
    ),
    _share(
        "de_precision",
        "Predicted genes that respond",
        "Share of the genes predicted to respond that do; 0 where none is predicted.",
        lambda t: _de_precision(t.truth.de, t.prediction.de),
        "zeros: 0; responding everywhere: the share of genes that respond",
        zeros=0,
        meaning="Of the genes called responding, how many are?",
    ),
    _share(
        "de_recall",
        "Responding genes found",
        "Share of the responding genes that are predicted to respond.",
        lambda t: _de_recall(t.truth.de, t.prediction.de),
        "zeros: 0; responding everywhere: 1",
        zeros=0,
        meaning="Of the genes that respond, how many are called responding?",
    ),
    _share(
        "de_overlap",
        "Responding genes shared (VCC)",
        "The Virtual Cell Challenge's score: genes that respond in truth and prediction over "
        "those that do in truth; of a longer prediction only as many as there are, the strongest.",
        lambda t: _de_overlap(t.truth.de, t.prediction.de, t.prediction.given),
        "zeros: 0",
        zeros=0,
        meaning="How many of the responding genes are in a prediction's list of the same length?",
    ),
    Metric(
        "weighted_mse",
        "Error of strong genes",
        "Mean squared error weighted by evidence: |truth| scaled to 0..1 in its row, squared, "
        "summing to 1.",
        lambda t: _weighted_mse(t.truth.values, t.prediction.values, t.truth.weights),
        "zeros: the weighted mean square of the truth",
        meaning="The squared error where the evidence of an effect is.",
    ),
    _r2(
        "weighted_r2_delta_control",
        "Variance explained (R²)",
        "1 − weighted squared error over the weighted variance of the truth; weights as in "
        "weighted_mse, Δ to control (a DE table is one already).",
        lambda t: _weighted_r2(t.truth.values, t.prediction.values, t.truth.weights),
        "zeros: below 0",
        meaning="How much of what varies between genes is explained, strong genes first.",
    ),
    _r2(
        "weighted_r2_delta_perturbed_mean",
        "Variance explained beyond the mean (R²)",
        "As weighted_r2_delta_control, after the mean perturbation of the training rows is "
        "subtracted from both.",
        lambda t: _weighted_r2(
            t.deviations.truth.values, t.deviations.prediction.values, t.truth.weights
        ),
        "the mean perturbation itself: at most 0",
        needs="reference",
        meaning="The same, after what all perturbations share is taken away.",
    ),
    _correlation(
        "pearson_delta_perturbed_mean",
        "Correlation beyond the mean",
        "Pearson's correlation after the mean perturbation of the training rows is subtracted "
        "from both.",
        lambda t: _rowwise_pearson(t.deviations),
        "the mean perturbation itself: 0",
        needs="reference",
        meaning="The correlation after what all perturbations share is taken away.",
    ),
)
