import numpy as np
import pytest

from perturbgen.train import heldout as gauges


def test_a_constant_dimension_is_not_active():
    latents = np.random.default_rng(0).normal(size=(100, 3)) * [1, 0, 0.05]
    assert gauges._active_dimensions(latents) == 1


def test_log_cpm_of_sums_by_hand():
    counts = np.array([[1, 3], [1, 3], [5, 5]])
    table = gauges._log_cpm_of_sums(counts, np.array(["b", "b", "a"]))
    np.testing.assert_allclose(table, np.log2([[500_001, 500_001], [250_001, 750_001]]))


def test_the_ratio_between_conditions_is_one_for_itself_and_falls_when_conditions_are_ignored():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], 200)
    levels = rng.gamma(2, 5, (3, 20))
    real = rng.poisson(np.repeat(levels, 200, axis=0))
    assert gauges._between_ratio(real, real, groups) == 1
    assert gauges._between_ratio(real, real[rng.permutation(600)], groups) < 0.05
    assert np.isnan(gauges._between_ratio(real[:200], real[:200], groups[:200]))


def test_predictive_numbers_are_nothing_for_the_same_counts_and_grow_for_means():
    rng = np.random.default_rng(0)
    real = rng.negative_binomial(1, 0.2, (500, 30))
    same = gauges._predictive_numbers(real, real)
    assert same == {
        "mean_abs_log2_ratio_of_means": 0,
        "mean_abs_log2_ratio_of_variances": 0,
        "mean_abs_difference_of_zero_fractions": 0,
        "ratio_of_median_library_sizes": 1,
    }
    means = np.tile(real.mean(axis=0), (500, 1))
    assert gauges._predictive_numbers(real, means)["mean_abs_log2_ratio_of_variances"] > 3
    assert gauges._predictive_numbers(real, means)["mean_abs_log2_ratio_of_means"] == pytest.approx(
        0, abs=1e-9
    )
