"""What the tests by subject leave open, so that every metric has all four kinds.

* golden: by hand, test_rowwise, test_discrimination, test_genes, test_cells, and here the two
  against the perturbed mean;
* invariant: test_score (every table metric) and test_cells, and here the best value of every metric
  of cells;
* attack: test_attacks on the headline, and here on every metric alone, with those that it does fool
  named;
* parity: scipy, scikit-learn, cell-eval in the files above, and here where those had none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import log_loss, mean_squared_error, precision_score, r2_score
from sklearn.preprocessing import StandardScaler

from perturbgen.evaluate import METRICS, held_out_nll, score, score_points
from perturbgen.evaluate import cells as c
from perturbgen.evaluate.cells import CELL_METRICS, _CellPair
from perturbgen.evaluate.metrics import TABLE_METRICS
from perturbgen.evaluate.values import _evidence_weights
from tests.evaluate.tables import experiment, frame, told
from tests.evaluate.test_attacks import ATTACKS

SILENT = (
    "loud noise",
    "genes shuffled",
    "conditions shuffled",
    "negated",
    "a large constant",
    "zeros",
)
# Attacks that do raise a metric: why it is no part of the headline.
FOOLED = {
    # what calls everything responding misses nothing
    "de_recall": {"loud noise", "a large constant"},
    "de_overlap": {"loud noise", "a large constant"},
}
BLIND = {  # what a metric of cells cannot see
    "collapsed": {"energy_distance_sqeuclidean", "feature_mean_error"},
    "features shuffled": {
        "energy_distance_sqeuclidean",
        "wasserstein_per_gene",
        "feature_mean_error",
        "feature_variance_error",
    },
}
OF_CELLS = [metric.name for metric in CELL_METRICS if metric.needs == "cells"]


def mean_score(name: str, truth: pd.DataFrame, prediction: pd.DataFrame) -> float:
    """Turned so that more is better."""
    found = score(truth, prediction, metrics=[name], **told(truth)).loc[name]
    return float(METRICS[name].sign * np.nanmean(found))


@pytest.mark.parametrize("name", [metric.name for metric in TABLE_METRICS])
def test_what_has_nothing_to_say_is_worse_on_every_metric_or_the_metric_is_known_to_be_fooled(
    name: str,
) -> None:
    truth, honest, _ = experiment(conditions=40, genes=300)
    rng = np.random.default_rng(0)
    before = mean_score(name, truth, honest)
    after = {attack: mean_score(name, truth, ATTACKS[attack](honest, rng)) for attack in SILENT}
    assert {attack for attack, value in after.items() if value > before} == FOOLED.get(name, set())


@pytest.fixture(scope="module")
def two_draws() -> tuple[np.ndarray, np.ndarray]:
    """Two samples of one distribution, correlated features with means."""
    rng = np.random.default_rng(0)
    mix = np.array([[1.0, 0.9, 0.4], [0.0, 0.5, 0.4], [0.0, 0.0, 0.6]])
    x, y = (rng.normal(size=(900, 3)) @ mix + [1.0, 2.0, 0.5] for _ in range(2))
    return x, y


@pytest.mark.parametrize("name", OF_CELLS)
def test_the_same_cells_are_the_best_prediction(
    name: str, two_draws: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = two_draws
    found = score_points(
        {"same": x, "other": x}, {"same": x[::-1], "other": y}, metrics=[name]
    ).loc[name]
    # the root of a sum that is 0 but for rounding
    assert found["same"] == pytest.approx(METRICS[name].best, abs=1e-6)
    assert found["same"] < found["other"]


@pytest.mark.parametrize("name", OF_CELLS)
@pytest.mark.parametrize("attack", ["inflated", "shifted", "collapsed", "features shuffled"])
def test_attacked_cells_are_worse_unless_the_metric_is_blind(
    name: str, attack: str, two_draws: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = two_draws
    rng = np.random.default_rng(1)
    attacked = {
        "inflated": 1.5 * y,
        "shifted": y + 0.8,
        "collapsed": np.repeat(y.mean(axis=0, keepdims=True), len(y), axis=0),
        "features shuffled": rng.permuted(y, axis=0),
    }[attack]
    found = score_points(
        {"before": x, "after": x}, {"before": y, "after": attacked}, metrics=[name]
    ).loc[name]
    blind = BLIND.get(attack, set()) | (
        {"feature_variance_error", "correlation_error"} if attack == "shifted" else set()
    )
    blind |= {"correlation_error"} if attack == "inflated" else set()
    if name in blind:
        assert found["after"] == pytest.approx(found["before"], abs=1e-9)
    else:
        assert found["after"] > 1.5 * found["before"]


def test_metrics_against_the_perturbed_mean_by_hand() -> None:
    truth, prediction = frame([[2.0, -2.0, 3.0]]), frame([[1.0, -1.0, 1.0]])
    mean = pd.Series([1.0, 1.0, 1.0], truth.columns)
    found = score(truth, prediction, reference=mean).iloc[:, 0]
    # less the mean: 1, -3, 2 and 0, -2, 0; weights of |truth| 2, 2, 3 -> 0, 0, 1: the third gene
    # alone is weighed
    centred = np.array([1.0, -3.0, 2.0]), np.array([2 / 3, -4 / 3, 2 / 3])
    pearson = (centred[0] * centred[1]).sum() / np.sqrt(
        (centred[0] ** 2).sum() * (centred[1] ** 2).sum()
    )
    assert (
        found["pearson_delta_perturbed_mean"]
        == pytest.approx(pearson)
        == pytest.approx(6 / np.sqrt(14 * 24 / 9))
    )
    assert np.isnan(found["weighted_r2_delta_perturbed_mean"]), "one gene has no variance"
    truth, prediction = frame([[1.0, -3.0, 2.0]]), frame([[0.0, -2.0, 0.0]])
    shifted = pd.Series([-1.0, 0.0, 1.0], truth.columns)
    # weights 0, .8, .2; Δ -3, 1 and -2, -1: error .8 + .2 · 4 = 1.6; weighted mean -2.2, variance
    # .8 · .64 + .2 · 10.24
    value = score(
        truth, prediction, metrics=["weighted_r2_delta_perturbed_mean"], reference=shifted
    ).iloc[0, 0]
    assert value == pytest.approx(1 - 1.6 / 2.56)


def test_weighted_metrics_are_those_of_scikit_learn() -> None:
    truth, prediction, _ = experiment(conditions=15, genes=80)
    mean = truth.mean()
    found = score(truth, prediction, reference=mean)
    weights = _evidence_weights(truth.to_numpy())
    rows = list(zip(truth.to_numpy(), prediction.to_numpy(), weights, strict=True))
    squared = [mean_squared_error(t, p, sample_weight=w) for t, p, w in rows]
    np.testing.assert_allclose(found.loc["weighted_mse"], squared)
    centre = mean.to_numpy()
    explained = [r2_score(t - centre, p - centre, sample_weight=w) for t, p, w in rows]
    np.testing.assert_allclose(found.loc["weighted_r2_delta_perturbed_mean"], explained)


def test_the_overlap_of_the_strongest_is_scikit_learns_precision() -> None:
    truth, prediction, _ = experiment(conditions=15, genes=400)
    strongest = [
        np.argsort(-np.abs(table.to_numpy()), axis=1)[:, :100] for table in (truth, prediction)
    ]
    masks = [np.isin(np.arange(400), row) for rows in strongest for row in rows]
    expected = [precision_score(t, p) for t, p in zip(masks[:15], masks[15:], strict=True)]
    np.testing.assert_allclose(
        score(truth, prediction, metrics=["top_100_overlap"]).iloc[0], expected
    )


def test_errors_of_means_and_variances_are_those_of_scaled_features(
    two_draws: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = two_draws
    scaler = StandardScaler().fit(x)
    assert c._feature_mean_error(_CellPair(x, y)) == pytest.approx(
        np.sqrt((scaler.transform(y).mean(axis=0) ** 2).mean())
    )
    ratio = np.log2(scaler.transform(y).var(axis=0))
    assert c._feature_variance_error(_CellPair(x, y)) == pytest.approx(
        np.abs(ratio).mean(), rel=1e-3
    )


def test_the_held_out_nll_is_that_of_scipy_and_scikit_learn_and_rewards_no_boasting() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 1.5, 400)
    labels = rng.choice(["a", "b"], 400)
    found = held_out_nll(norm(2.0, 1.5).logpdf(x), labels).loc["held_out_nll"]
    for name in "ab":
        assert found[name] == pytest.approx(-norm(2.0, 1.5).logpdf(x[labels == name]).mean())
    order = rng.permutation(400)
    again = held_out_nll(norm(2.0, 1.5).logpdf(x[order]), labels[order]).loc["held_out_nll"]
    pd.testing.assert_series_equal(again[["a", "b"]], found[["a", "b"]])
    answer, probability = rng.integers(2, size=50), rng.uniform(0.05, 0.95, 50)
    said = np.where(answer == 1, probability, 1 - probability)
    assert held_out_nll(np.log(said)).iloc[0, 0] == pytest.approx(log_loss(answer, probability))
    for boast in (norm(2.0, 0.5), norm(2.0, 6.0), norm(4.0, 1.5)):  # too sure, too vague, elsewhere
        assert (
            held_out_nll(boast.logpdf(x)).iloc[0, 0]
            > held_out_nll(norm(2.0, 1.5).logpdf(x)).iloc[0, 0]
        )
