"""Every metric with its name, direction, range, definition and what a negative control gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from perturbgen.core.errors import ConfigError, suggest

_Needs = Literal["tables", "reference", "cells", "log_probs"]


@dataclass(frozen=True)
class Metric:
    """What there is to know of a metric.

    ``best`` is the value of a perfect prediction; ``zeros`` what a prediction of zeros gets, None where that depends on
    the data; ``scale_free`` metrics do not change when a prediction is multiplied by a positive number.
    """

    name: str
    title: str
    definition: str
    higher_is_better: bool
    low: float
    high: float
    zeros: float | None
    negative_control: str
    needs: _Needs = "tables"
    scale_free: bool = False

    @property
    def best(self) -> float:
        """The value of a perfect prediction."""
        return self.high if self.higher_is_better else self.low

    @property
    def sign(self) -> int:
        """+1 where more is better, else −1."""
        return 1 if self.higher_is_better else -1

    def record(self) -> dict[str, Any]:
        """The record for a file or a table, infinities as None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


_INFINITE: Final = math.inf

_TABLE_METRICS: Final = (
    Metric(
        "mean_rowwise_rmse",
        "RMSE (MRRMSE)",
        "√ of the mean squared error over genes, of each condition; then the mean over conditions.",
        False,
        0,
        _INFINITE,
        None,
        "zeros: the mean over conditions of the row's root mean square",
    ),
    Metric(
        "mean_rowwise_mae",
        "MAE",
        "Mean absolute error over genes, of each condition.",
        False,
        0,
        _INFINITE,
        None,
        "zeros: the mean absolute true value",
    ),
    Metric(
        "mean_rowwise_pearson",
        "Pearson",
        "Pearson's correlation over genes; 0 where a row is constant.",
        True,
        -1,
        1,
        0,
        "any constant row: 0",
        scale_free=True,
    ),
    Metric(
        "mean_rowwise_spearman",
        "Spearman",
        "Pearson's correlation of average ranks over genes; 0 where a row is constant.",
        True,
        -1,
        1,
        0,
        "any constant row: 0",
        scale_free=True,
    ),
    Metric(
        "mean_rowwise_cosine",
        "Cosine",
        "Cosine similarity over genes; 0 where a row is zero.",
        True,
        -1,
        1,
        0,
        "zeros: 0; a constant row gets that of the truth with a row of ones",
        scale_free=True,
    ),
    Metric(
        "perturbation_discrimination",
        "Discrimination",
        "Share of the other conditions of the same cell type whose truth has a larger cosine distance from the "
        "prediction than its own truth has; ties count ½.",
        True,
        0,
        1,
        0.5,
        "any constant table: ½",
        scale_free=True,
    ),
    Metric(
        "discrimination_l1",
        "Discrimination (L1)",
        "As perturbation_discrimination, with Manhattan distances as in the Virtual Cell Challenge (which divides by N "
        "where this divides by N − 1). Inflating a prediction raises it.",
        True,
        0,
        1,
        0.5,
        "any constant table: ½",
    ),
    Metric(
        "centroid_accuracy",
        "Discrimination (Euclidean)",
        "As perturbation_discrimination, with Euclidean distances (Systema, Open Problems; there ties are losses).",
        True,
        0,
        1,
        0.5,
        "any constant table: ½",
    ),
    Metric(
        "top_100_overlap",
        "Top 100",
        "Share of the 100 genes of largest absolute true value among the 100 of largest absolute prediction; ties "
        "share their places.",
        True,
        0,
        1,
        None,
        "any constant row: 100 / genes, which is chance",
        scale_free=True,
    ),
    Metric(
        "sign_accuracy_de",
        "DE sign",
        "Share of the truly responding genes whose direction is right; a predicted 0 counts ½.",
        True,
        0,
        1,
        0.5,
        "zeros: ½; a constant row gets the share of genes that go its way",
        scale_free=True,
    ),
    Metric(
        "de_precision",
        "DE precision",
        "Share of the genes predicted to respond that do; 0 where none is predicted.",
        True,
        0,
        1,
        0,
        "zeros: 0; responding everywhere: the share of genes that respond",
    ),
    Metric(
        "de_recall",
        "DE recall",
        "Share of the responding genes that are predicted to respond.",
        True,
        0,
        1,
        0,
        "zeros: 0; responding everywhere: 1",
    ),
    Metric(
        "de_overlap",
        "DE overlap (VCC)",
        "The Virtual Cell Challenge's score: genes that respond in truth and prediction over those that do in truth; "
        "of a longer prediction only as many as there are, the strongest.",
        True,
        0,
        1,
        0,
        "zeros: 0",
    ),
    Metric(
        "weighted_mse",
        "Weighted MSE",
        "Mean squared error weighted by evidence: |truth| scaled to 0..1 in its row, squared, summing to 1.",
        False,
        0,
        _INFINITE,
        None,
        "zeros: the weighted mean square of the truth",
    ),
    Metric(
        "weighted_r2_delta_control",
        "Weighted R²",
        "1 − weighted squared error over the weighted variance of the truth; weights as in weighted_mse, Δ to control "
        "(a DE table is one already).",
        True,
        -_INFINITE,
        1,
        None,
        "zeros: below 0",
    ),
    Metric(
        "weighted_r2_delta_perturbed_mean",
        "Weighted R² (Δ mean)",
        "As weighted_r2_delta_control, after the mean perturbation of the training rows is subtracted from both.",
        True,
        -_INFINITE,
        1,
        None,
        "the mean perturbation itself: at most 0",
        needs="reference",
    ),
    Metric(
        "pearson_delta_perturbed_mean",
        "Pearson (Δ mean)",
        "Pearson's correlation after the mean perturbation of the training rows is subtracted from both.",
        True,
        -1,
        1,
        None,
        "the mean perturbation itself: 0",
        needs="reference",
    ),
)

_CELL_METRICS: Final = (
    Metric(
        "energy_distance_squared",
        "Energy distance, squared",
        "2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, Euclidean norms, all pairs with themselves (V-statistic); cell-eval's form.",
        False,
        0,
        _INFINITE,
        None,
        "control cells in place of the prediction",
        needs="cells",
    ),
    Metric(
        "energy_distance",
        "Energy distance",
        "The root of energy_distance_squared; scipy's form in one dimension.",
        False,
        0,
        _INFINITE,
        None,
        "control cells in place of the prediction",
        needs="cells",
    ),
    Metric(
        "energy_distance_sqeuclidean",
        "Energy distance (squared norms)",
        "2 E‖X−Y‖² − E‖X−X'‖² − E‖Y−Y'‖² = 2 ‖mean X − mean Y‖²: scPerturb's and pertpy's form. It sees means only.",
        False,
        0,
        _INFINITE,
        None,
        "control cells in place of the prediction",
        needs="cells",
    ),
    Metric(
        "mmd_squared",
        "MMD²",
        "Squared maximum mean discrepancy with kernel exp(−‖x−y‖² / 2h²), V-statistic; h² is the sum of the truth's "
        "feature variances, so that 2h² is the mean squared distance of two true cells and no prediction can move it.",
        False,
        0,
        2,
        None,
        "control cells in place of the prediction",
        needs="cells",
    ),
    Metric(
        "wasserstein_per_gene",
        "Wasserstein",
        "Mean over genes of the 1-Wasserstein distance of their distributions.",
        False,
        0,
        _INFINITE,
        None,
        "control cells in place of the prediction",
        needs="cells",
    ),
    Metric(
        "feature_mean_error",
        "Means",
        "√ of the mean over genes of ((mean predicted − mean true) / SD true)²; a true SD of 0 counts as that of the "
        "least variable other gene.",
        False,
        0,
        _INFINITE,
        None,
        "control cells in place of the prediction",
        needs="cells",
    ),
    Metric(
        "feature_variance_error",
        "Variances",
        "Mean over genes of |log2(variance predicted / variance true)|, with a millionth of the mean true variance "
        "added to both. With feature_mean_error, the mean-variance structure.",
        False,
        0,
        _INFINITE,
        None,
        "means in place of drawn cells: very large",
        needs="cells",
    ),
    Metric(
        "correlation_error",
        "Correlations",
        "Root mean square difference of the off-diagonal correlations of genes; a constant gene correlates 0.",
        False,
        0,
        2,
        None,
        "each gene shuffled over the cells: the root mean square true correlation",
        needs="cells",
    ),
    Metric(
        "held_out_nll",
        "Held-out NLL",
        "Mean of −log p over the held-out cells, in nats per cell, or per gene and cell where given so.",
        False,
        -_INFINITE,
        _INFINITE,
        None,
        "a baseline likelihood, for instance one mean per gene",
        needs="log_probs",
    ),
)

METRICS: Final = {metric.name: metric for metric in (*_TABLE_METRICS, *_CELL_METRICS)}
OPEN_PROBLEMS: Final = (
    "mean_rowwise_rmse",
    "mean_rowwise_mae",
    "mean_rowwise_pearson",
    "mean_rowwise_spearman",
    "mean_rowwise_cosine",
)
HEADLINE: Final = (
    "mean_rowwise_pearson",
    "mean_rowwise_spearman",
    "perturbation_discrimination",
    "top_100_overlap",
)


def choose_metrics(
    names: Sequence[str] | None, *, cells: bool = False, reference: bool = False
) -> list[Metric]:
    """The metrics of these names, or all that can be computed; an unknown or impossible one is an error."""
    possible: tuple[_Needs, ...] = (
        ("cells",) if cells else ("tables", "reference") if reference else ("tables",)
    )
    if names is None:
        return [metric for metric in METRICS.values() if metric.needs in possible]
    return [_find_metric(name, possible) for name in dict.fromkeys(names)]


def _find_metric(name: str, possible: Sequence[_Needs]) -> Metric:
    """The metric of a name, if what it needs is at hand."""
    metric = METRICS.get(name)
    if metric is None:
        raise ConfigError(f"there is no metric {name!r}", fix=suggest(name, METRICS))
    if metric.needs not in possible:
        found, fix = _EXPLAIN[metric.needs]
        raise ConfigError(f"{name} {found}", cause=metric.definition, fix=fix)
    return metric


_EXPLAIN: Final[dict[_Needs, tuple[str, str]]] = {
    "cells": (
        "needs cells, and DE tables were given",
        "score_cells({condition: cells x features}, ...)",
    ),
    "tables": (
        "needs DE tables, and cells were given",
        "score(truth, prediction) with conditions x genes",
    ),
    "reference": (
        "needs the mean perturbation of the training rows, and none was given",
        "score(..., reference=train.mean()), or the mean of each cell type as a frame",
    ),
    "log_probs": (
        "needs log probabilities of held-out cells",
        "held_out_nll(log_probs, conditions)",
    ),
}
