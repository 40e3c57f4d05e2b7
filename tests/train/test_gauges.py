import numpy as np
import pytest

from perturbgen.train.heldout import _Predictive


def test_the_ratio_between_conditions_by_hand():
    counts, flat = np.array([[1, 3], [1, 3], [5, 5]]), np.array([[1, 2], [1, 2], [2, 2]])
    labels = np.array(["b", "b", "a"])
    a, b, c = (
        np.log2([share * 1e6 + 1 for share in pair])
        for pair in ((0.5, 0.5), (0.25, 0.75), (1 / 3, 2 / 3))
    )
    expected = np.square((a - c) / 2).sum() / np.square((a - b) / 2).sum()
    assert _Predictive(counts, flat, labels).between_ratio() == pytest.approx(expected)


def test_the_ratio_between_conditions_is_one_for_itself_and_falls_when_conditions_are_ignored():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], 200)
    levels = rng.gamma(2, 5, (3, 20))
    real = rng.poisson(np.repeat(levels, 200, axis=0))
    assert _Predictive(real, real, groups).between_ratio() == 1
    assert _Predictive(real, real[rng.permutation(600)], groups).between_ratio() < 0.05
    assert np.isnan(_Predictive(real[:200], real[:200], groups[:200]).between_ratio())


def test_predictive_numbers_are_nothing_for_the_same_counts_and_grow_for_means():
    rng = np.random.default_rng(0)
    real = rng.negative_binomial(1, 0.2, (500, 30))
    groups = np.repeat("a", 500)
    same = _Predictive(real, real, groups).numbers()
    assert same == {
        "mean_abs_log2_ratio_of_means": 0,
        "mean_abs_log2_ratio_of_variances": 0,
        "mean_abs_difference_of_zero_fractions": 0,
        "ratio_of_median_library_sizes": 1,
    }
    means = np.tile(real.mean(axis=0), (500, 1))
    found = _Predictive(real, means, groups).numbers()
    assert found["mean_abs_log2_ratio_of_variances"] > 3
    assert found["mean_abs_log2_ratio_of_means"] == pytest.approx(0, abs=1e-9)
