from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.evaluate import cells as c
from perturbgen.evaluate import held_out_nll, score, score_points
from tests.evaluate.tables import frame

X = np.array([[0.0, 0.0], [3.0, 4.0]])
Y = np.array([[0.0, 0.0]])


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    """Sixty and forty-five cells of five features, correlated, of other means and variances."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5))
    return rng.normal(size=(60, 5)) @ mix, rng.gamma(2, 1, size=(45, 5)) @ mix * 1.3 + 0.2


def of(metric: str, truth: np.ndarray, prediction: np.ndarray) -> float:
    """A metric of one condition."""
    return float(score_points({"a": truth}, {"a": prediction}, metrics=[metric]).iloc[0, 0])


def test_energy_distances_by_hand() -> None:
    # ‖X−Y‖: 0 and 5, mean 2.5; ‖X−X'‖: 0, 5, 5, 0, mean 2.5; ‖Y−Y'‖: 0
    assert of("energy_distance_squared", X, Y) == pytest.approx(2 * 2.5 - 2.5)
    assert of("energy_distance", X, Y) == pytest.approx(np.sqrt(2.5))
    # squares: 12.5, 12.5, 0; twice the squared distance of the means (1.5, 2) and (0, 0)
    assert (
        of("energy_distance_sqeuclidean", X, Y)
        == pytest.approx(2 * 12.5 - 12.5)
        == pytest.approx(2 * 6.25)
    )


def test_mmd_by_hand() -> None:
    # variances 2.25 and 4 make h² = 6.25, so that k of the two cells is exp(−25 / 12.5)
    k = np.exp(-2.0)
    assert c._kernel_bandwidth(X) == pytest.approx(2.5)
    assert of("mmd_squared", X, Y) == pytest.approx((2 + 2 * k) / 4 + 1 - 2 * (1 + k) / 2)


def test_energy_distance_is_scipys_in_one_dimension(samples: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (sample[:, :1] for sample in samples)
    assert of("energy_distance", x, y) == pytest.approx(
        scipy.stats.energy_distance(x[:, 0], y[:, 0])
    )


def test_energy_and_mmd_agree_with_whole_matrices(samples: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = samples
    expected = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
    assert of("energy_distance_squared", x, y) == pytest.approx(expected, rel=1e-10)
    squared = 2 * (cdist(x, y) ** 2).mean() - (cdist(x, x) ** 2).mean() - (cdist(y, y) ** 2).mean()
    assert of("energy_distance_sqeuclidean", x, y) == pytest.approx(squared)
    gamma = 1 / (cdist(x, x) ** 2).mean()  # of 2h², the mean squared distance of two true cells
    kernel = (
        rbf_kernel(x, x, gamma).mean()
        + rbf_kernel(y, y, gamma).mean()
        - 2 * rbf_kernel(x, y, gamma).mean()
    )
    assert of("mmd_squared", x, y) == pytest.approx(kernel, rel=1e-10)


def test_blocks_of_cells_add_up(
    samples: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_points({"a": samples[0]}, {"a": samples[1]})
    monkeypatch.setattr(c, "_BLOCK", 7)
    pd.testing.assert_frame_equal(score_points({"a": samples[0]}, {"a": samples[1]}), whole)


def test_wasserstein_by_hand_and_as_scipy(samples: tuple[np.ndarray, np.ndarray]) -> None:
    # quantile functions 0, 1 by halves and 0, 0, 3 by thirds: |1 − 0| on (1/2, 2/3), |1 − 3| on
    # (2/3, 1)
    by_hand = of("wasserstein_per_gene", np.array([[1.0], [0.0]]), np.array([[3.0], [0.0], [0.0]]))
    assert by_hand == pytest.approx(5 / 6)
    for x, y in (samples, (samples[0][:45], samples[1])):
        expected = [scipy.stats.wasserstein_distance(x[:, g], y[:, g]) for g in range(5)]
        assert of("wasserstein_per_gene", x, y) == pytest.approx(np.mean(expected))


def test_means_and_variances_by_hand() -> None:
    # means 1 and 1, SDs 1 and 0, which counts as the least other one, 1
    truth = np.array([[0.0, 1.0], [2.0, 1.0]])
    prediction = np.array([[2.0, 1.0], [6.0, 1.0]])
    assert of("feature_mean_error", truth, prediction) == pytest.approx(np.sqrt((3**2 + 0) / 2))
    assert of("feature_variance_error", truth, prediction) == pytest.approx(
        np.log2(4) / 2, rel=1e-5
    )


def test_correlation_error_by_hand() -> None:
    # correlation 1; the third is constant
    truth = np.array([[0.0, 0.0, 5.0], [1.0, 2.0, 5.0], [2.0, 4.0, 5.0]])
    assert of("correlation_error", truth, truth * [1, -1, 1]) == pytest.approx(
        np.sqrt(2 * 2**2 / 6)
    )
    assert np.isnan(of("correlation_error", truth[:, :1], truth[:, :1]))


def test_correlations_are_numpys(samples: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(c._correlations(samples[0]), np.corrcoef(samples[0].T), atol=1e-12)


def test_what_each_metric_sees() -> None:
    rng = np.random.default_rng(1)
    mix = np.array([[1.0, 0.9], [0.0, 0.5]])
    truth, other = rng.normal(size=(1500, 2)) @ mix, rng.normal(size=(1500, 2)) @ mix
    shuffled = np.column_stack([truth[:, 0], rng.permutation(truth[:, 1])])
    centred = np.repeat(truth.mean(axis=0, keepdims=True), 1500, axis=0)
    scores = score_points(dict.fromkeys("dsc", truth), {"d": other, "s": shuffled, "c": centred})
    assert scores.loc["correlation_error", "s"] > 10 * scores.loc["correlation_error", "d"]
    # margins alone cannot see broken dependence
    assert scores.loc["wasserstein_per_gene", "s"] == pytest.approx(0)
    assert scores.loc["energy_distance", "s"] > 2 * scores.loc["energy_distance", "d"]
    assert scores.loc["mmd_squared", "s"] > 4 * scores.loc["mmd_squared", "d"]
    # nor squared norms a collapse
    assert scores.loc["energy_distance_sqeuclidean", "c"] == pytest.approx(0)
    assert scores.loc["feature_variance_error", "c"] > 15
    assert scores.loc["energy_distance", "c"] > 5 * scores.loc["energy_distance", "d"]


def test_more_noise_is_never_better() -> None:
    rng = np.random.default_rng(2)
    truth, draw, noise = rng.normal(size=(3, 800, 3)) @ np.array(
        [[1.0, 0.8, 0], [0, 1, 0.5], [0, 0, 1]]
    )
    for name in (
        "energy_distance",
        "mmd_squared",
        "wasserstein_per_gene",
        "feature_variance_error",
        "correlation_error",
    ):
        levels = {level: draw + level * rng.permuted(noise, axis=0) for level in (0.0, 1.0, 3.0)}
        scores = score_points(dict.fromkeys(levels, truth), levels, metrics=[name]).loc[name]
        assert scores.is_monotonic_increasing, name


def test_order_of_cells_and_features_and_units_do_not_matter(
    samples: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = samples
    before = score_points({"a": x}, {"a": y})["a"]
    rng = np.random.default_rng(3)
    features = rng.permutation(5)
    after = score_points(
        {"a": rng.permutation(x)[:, features]}, {"a": rng.permutation(y)[:, features]}
    )["a"]
    np.testing.assert_allclose(after, before)
    scaled = score_points({"a": 7 * x}, {"a": 7 * y})["a"]
    linear = ["energy_distance_squared", "wasserstein_per_gene"]
    np.testing.assert_allclose(scaled[linear], 7 * before[linear])
    free = ["mmd_squared", "feature_mean_error", "feature_variance_error", "correlation_error"]
    np.testing.assert_allclose(scaled[free], before[free])


def test_frames_are_joined_by_feature(samples: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (pd.DataFrame(sample, columns=list("abcde")) for sample in samples)
    one = score_points({("B", "d"): x}, {("B", "d"): y})
    other = score_points({("B", "d"): x}, {("B", "d"): y[list("edcba")]})
    pd.testing.assert_frame_equal(one, other)
    with pytest.raises(SchemaError, match="1 of 5 are absent"):
        score_points({"a": x}, {"a": y.drop(columns="c")})


def test_held_out_nll_by_hand() -> None:
    table = held_out_nll(np.log([0.5, 0.25, 0.1]), ["a", "a", "b"])
    np.testing.assert_allclose(table.loc["held_out_nll"], [(np.log(2) + np.log(4)) / 2, np.log(10)])
    per_gene = held_out_nll(np.log([[0.5, 0.25], [0.1, 1.0]]))
    assert per_gene.loc["held_out_nll", "all"] == pytest.approx(np.log(80) / 4)


def test_a_normal_nll_is_least_at_the_truth() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, 4000)
    nll = {
        m: held_out_nll(scipy.stats.norm(m, 2).logpdf(draws)).iloc[0, 0] for m in (0.0, 1.0, 2.0)
    }
    assert nll[1.0] < min(nll[0.0], nll[2.0])
    assert nll[1.0] == pytest.approx(scipy.stats.norm(1, 2).entropy(), abs=0.05)


@pytest.mark.parametrize(
    ("log_probs", "labels", "words"),
    [
        (np.array([0.0, -np.inf]), None, "1 of 2 cells have no finite"),
        (np.array([]), None, "0 of 0"),
        (np.array([0.0, -1.0]), ["a"], "1 conditions for 2 cells"),
    ],
)
def test_bad_log_probabilities_are_named(
    log_probs: np.ndarray, labels: list[str] | None, words: str
) -> None:
    with pytest.raises(SchemaError, match=words):
        held_out_nll(log_probs, labels)


def test_bad_cells_are_named(samples: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = samples
    hole = y.copy()
    hole[3, 1] = np.nan
    for truth, prediction, words in (
        ({"a": x}, {"a": hole}, "the first in cell 3, feature 1"),
        ({"a": x}, {"a": y[:, :3]}, "5 features in truth and 3"),
        ({"a": x}, {"a": y[:0]}, "at least one"),
        ({"a": x}, {"b": y}, "unknown to the truth"),
        ({}, {"b": y}, "no cells were given"),
    ):
        with pytest.raises(SchemaError, match=words):
            score_points(truth, prediction)


def test_a_metric_that_needs_cells_says_so_and_the_other_way_round(
    samples: tuple[np.ndarray, np.ndarray],
) -> None:
    table = frame(np.eye(4))
    with pytest.raises(ConfigError, match="energy_distance needs cells, and DE tables were given"):
        score(table, table, metrics=["energy_distance"])
    with pytest.raises(
        ConfigError, match="mean_rowwise_rmse needs DE tables, and cells were given"
    ):
        score_points({"a": samples[0]}, {"a": samples[1]}, metrics=["mean_rowwise_rmse"])
    with pytest.raises(ConfigError, match="held_out_nll needs log probabilities"):
        score(table, table, metrics=["held_out_nll"])
