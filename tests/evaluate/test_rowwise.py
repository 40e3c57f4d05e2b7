from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from sklearn.metrics.pairwise import paired_cosine_distances

from perturbgen.core.stats import Array
from perturbgen.evaluate import METRICS, Values
from perturbgen.evaluate.values import Pair

TRUTH = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 3.0, 0.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
PREDICTION = np.array([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])


def on_scorecard(metric: str, truth: Array, prediction: Array) -> Array:
    """A row-wise metric as the scorecard computes it."""
    pair = Pair(Values(truth), Values(prediction), np.full(len(truth), "all"))
    return pair.scores([METRICS[f"mean_rowwise_{metric}"]])[0]


def test_rmse_by_hand() -> None:
    # differences: (0, 0, 0, 4); (0, 3, 0, 4); (1, 0, -1, -2)
    np.testing.assert_allclose(on_scorecard("rmse", TRUTH, PREDICTION), [2.0, 2.5, np.sqrt(1.5)])


def test_mae_by_hand() -> None:
    np.testing.assert_allclose(on_scorecard("mae", TRUTH, PREDICTION), [1.0, 1.75, 1.0])


def test_pearson_by_hand() -> None:
    # deviations (-1.5, -.5, .5, 1.5) and (-.5, .5, 1.5, -1.5): products .75 - .25 + .75 - 2.25 =
    # -1; squares 5 and 5
    np.testing.assert_allclose(
        on_scorecard("pearson", TRUTH, PREDICTION), [-0.2, 0.0, 0.0], atol=1e-15
    )


def test_spearman_by_hand() -> None:
    # ranks (1, 2, 3, 4) and (2, 3, 4, 1): 1 - 6 (1 + 1 + 1 + 9) / (4 * 15) = -0.2
    np.testing.assert_allclose(
        on_scorecard("spearman", TRUTH, PREDICTION), [-0.2, 0.0, 0.0], atol=1e-15
    )
    # ties: ranks (1.5, 1.5, 3) and (1, 2.5, 2.5), deviations (-.5, -.5, 1) and (-1, .5, .5): .75 /
    # 1.5
    np.testing.assert_allclose(
        on_scorecard("spearman", np.array([[0.0, 0.0, 1.0]]), np.array([[0.0, 5.0, 5.0]])), [0.5]
    )


def test_cosine_by_hand() -> None:
    # 14 / √(30 · 14); a zero row; 2 · 10 / (4 · √30)
    np.testing.assert_allclose(
        on_scorecard("cosine", TRUTH, PREDICTION), [np.sqrt(14 / 30), 0.0, 5 / np.sqrt(30)]
    )


def test_a_row_that_is_constant_but_for_rounding_correlates_0() -> None:
    row = np.random.default_rng(0).normal(size=(1, 1000))
    constant = np.full((1, 1000), 0.1)
    assert on_scorecard("pearson", row, constant)[0] == 0
    assert on_scorecard("spearman", row, constant)[0] == 0


@pytest.mark.parametrize("ties", [False, True])
def test_the_five_agree_with_scipy_and_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(1)
    truth, prediction = rng.normal(size=(2, 7, 50))
    if ties:
        truth, prediction = truth.round(), prediction.round()
    pearson = [scipy.stats.pearsonr(a, b).statistic for a, b in zip(truth, prediction, strict=True)]
    spearman = [
        scipy.stats.spearmanr(a, b).statistic for a, b in zip(truth, prediction, strict=True)
    ]
    rmse = root_mean_squared_error(truth.T, prediction.T, multioutput="raw_values")
    mae = mean_absolute_error(truth.T, prediction.T, multioutput="raw_values")
    np.testing.assert_allclose(
        on_scorecard("pearson", truth, prediction), pearson, rtol=1e-10, atol=1e-14
    )
    cosine = 1 - paired_cosine_distances(truth, prediction)
    expected = {
        "rmse": rmse,
        "mae": mae,
        "pearson": pearson,
        "spearman": spearman,
        "cosine": cosine,
    }
    for name, values in expected.items():
        found = on_scorecard(name, truth, prediction)
        np.testing.assert_allclose(found, values, rtol=1e-10, atol=1e-14, err_msg=name)


def test_ranks_are_those_of_scipy() -> None:
    values = np.random.default_rng(2).integers(0, 9, (6, 31)).astype(float)
    np.testing.assert_array_equal(Values(values).ranks, scipy.stats.rankdata(values, axis=1) - 16)
