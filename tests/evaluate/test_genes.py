from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import precision_score, r2_score, recall_score

from perturbgen.evaluate import metrics as de
from perturbgen.evaluate.values import _evidence_weights, _significant

TRUTH = np.array([[5.0, -4.0, 3.0, 0.5, 0.0, 0.1]])
DE = np.array([[True, True, True, False, False, False]])


def test_significance_is_that_of_scipys_benjamini_hochberg() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 200)) * rng.gamma(1, 1.5, (30, 1))
    values[0] = 0
    p = 10.0 ** -np.abs(values)
    expected = np.array([scipy.stats.false_discovery_control(row) for row in p]) <= 0.05
    assert expected.any(axis=1).sum() not in (0, 30)
    np.testing.assert_array_equal(_significant(values), expected)
    np.testing.assert_array_equal(_significant(values, adjust=False), p <= 0.05)


def test_benjamini_hochberg_by_hand() -> None:
    # p = .01, .02, .04, 1 against k · .05 / 4 = .0125, .025, .0375, .05: two are significant
    values = np.array([[-np.log10(0.02), np.log10(0.01), -np.log10(0.04), 0.0]])
    np.testing.assert_array_equal(_significant(values), [[True, True, False, False]])


def test_sign_accuracy_by_hand() -> None:
    # of three responding genes one is right, one wrong, one predicted 0
    prediction = np.array([[0.2, 4.0, 0.0, 9.0, 9.0, 9.0]])
    assert de._sign_accuracy(TRUTH, prediction, DE)[0] == pytest.approx(0.5)
    assert de._sign_accuracy(TRUTH, -TRUTH, DE)[0] == 0
    assert np.isnan(de._sign_accuracy(TRUTH, prediction, ~DE & False)[0])


def test_precision_and_recall_by_hand_and_as_scikit_learn() -> None:
    predicted = np.array([[True, False, True, True, True, False]])
    assert de._de_precision(DE, predicted)[0] == 0.5
    assert de._de_recall(DE, predicted)[0] == pytest.approx(2 / 3)
    rng = np.random.default_rng(3)
    true, found = rng.random((2, 20, 30)) < 0.3
    for i in range(20):
        assert de._de_precision(true, found)[i] == pytest.approx(
            precision_score(true[i], found[i], zero_division=0)
        )
        assert de._de_recall(true, found)[i] == pytest.approx(recall_score(true[i], found[i]))


def test_precision_and_recall_where_nothing_responds_or_is_predicted() -> None:
    nothing = np.zeros_like(DE)
    assert de._de_precision(DE, nothing)[0] == 0
    assert de._de_recall(DE, nothing)[0] == 0
    assert np.isnan(de._de_precision(nothing, DE)[0])
    assert np.isnan(de._de_recall(nothing, DE)[0])


def test_de_overlap_takes_only_as_many_as_respond() -> None:
    predicted = np.array([[True, True, True, True, True, False]])
    # of the predicted, the strongest three: one responds
    prediction = np.array([[1.0, 2.0, -3.0, 4.0, 5.0, 9.0]])
    assert de._de_overlap(DE, predicted, prediction)[0] == pytest.approx(1 / 3)
    few = np.array([[True, False, False, False, False, True]])
    assert de._de_overlap(DE, few, prediction)[0] == pytest.approx(1 / 3)
    assert np.isnan(de._de_overlap(~DE & False, predicted, prediction)[0])


def test_top_overlap_by_hand() -> None:
    # true top two: genes 0 and 1; predicted: 5 and 1
    prediction = np.array([[0.1, -2.0, 0.0, 1.0, 0.0, 3.0]])
    assert de._top_overlap(TRUTH, prediction, k=2)[0] == 0.5
    # a tie for the second place of genes 1, 2, 3, of which one is true: (1 + 1/3) / 2
    tied = np.array([[9.0, 2.0, 2.0, 2.0, 0.0, 0.0]])
    assert de._top_overlap(TRUTH, tied, k=2)[0] == pytest.approx((1 + 1 / 3) / 2)


def test_top_overlap_of_ties_in_the_truth() -> None:
    clipped = np.array([[4.0, -4.0, 4.0, 1.0, 0.0, 0.0]])
    # three tie for two places: all three are true
    assert de._top_overlap(clipped, clipped, k=2)[0] == 1
    constant = np.ones((1, 6))
    assert de._top_overlap(clipped, constant, k=2)[0] == pytest.approx(0.5)  # chance: 3 of 6
    assert de._top_overlap(clipped, clipped, k=100)[0] == 1  # only four are not 0
    assert de._top_overlap(clipped, constant, k=100)[0] == pytest.approx(4 / 6)
    assert np.isnan(de._top_overlap(np.zeros((1, 6)), constant, k=2)[0])


def test_top_overlap_of_a_constant_is_what_shuffling_gets() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.normal(size=(1, 50)), 4000, axis=0)
    shuffled = rng.permuted(truth, axis=1)
    chance = de._top_overlap(truth[:1], np.ones((1, 50)), k=10)[0]
    assert chance == pytest.approx(0.2)
    assert de._top_overlap(truth, shuffled, k=10).mean() == pytest.approx(chance, abs=0.01)


def test_weights_by_hand() -> None:
    # |y| 1, 3, 2 -> 0, 1, .5 -> squares 0, 1, .25, of sum 1.25
    np.testing.assert_allclose(_evidence_weights(np.array([[1.0, -3.0, 2.0]])), [[0, 0.8, 0.2]])
    np.testing.assert_allclose(_evidence_weights(np.array([[2.0, -2.0]])), [[0.5, 0.5]])


def test_weighted_errors_by_hand_and_as_scikit_learn() -> None:
    truth, prediction = np.array([[1.0, -3.0, 2.0]]), np.array([[0.0, -2.0, 0.0]])
    weights = _evidence_weights(truth)
    assert de._weighted_mse(truth, prediction, weights)[0] == pytest.approx(0.8 * 1 + 0.2 * 4)
    # weighted mean -2, weighted variance .8 · 1 + .2 · 16 = 4
    assert de._weighted_r2(truth, prediction, weights)[0] == pytest.approx(1 - 1.6 / 4)
    rng = np.random.default_rng(4)
    truth, prediction = rng.normal(size=(2, 5, 40))
    weights = _evidence_weights(truth)
    expected = [
        r2_score(t, p, sample_weight=w) for t, p, w in zip(truth, prediction, weights, strict=True)
    ]
    np.testing.assert_allclose(de._weighted_r2(truth, prediction, weights), expected)


def test_weighted_r2_of_a_constant_truth_is_undefined() -> None:
    truth = np.full((1, 7), 0.1)
    assert np.isnan(de._weighted_r2(truth, truth, _evidence_weights(truth))[0])
