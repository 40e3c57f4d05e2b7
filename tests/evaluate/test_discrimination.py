from __future__ import annotations

import numpy as np
import pytest

from perturbgen.evaluate.metrics import _discrimination, _Distance

DISTANCES: tuple[_Distance, ...] = ("cosine", "euclidean", "l1")
ONE = np.array(["all"] * 3)


def test_by_hand() -> None:
    truth = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    prediction = np.array([[0.9, 0.1], [1.0, 0.2], [0.1, -1.0]])
    # own first of two others: 1; nearer to the first than to itself: 1/2;
    # cosines of the third (.1, -1, -.1): own in the middle, 1/2
    np.testing.assert_allclose(_discrimination(truth, prediction, ONE), [1, 0.5, 0.5])
    # squared distances of the third: 1.81, 4.01, 2.21; Manhattan: 1.9, 2.1, 2.1: own ties with the
    # second
    np.testing.assert_allclose(
        _discrimination(truth, prediction, ONE, distance="euclidean"), [1, 0.5, 0.5]
    )
    np.testing.assert_allclose(
        _discrimination(truth, prediction, ONE, distance="l1"), [1, 0.5, 0.25]
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.3])
def test_a_constant_table_gets_one_half(distance: _Distance, value: float) -> None:
    truth = np.random.default_rng(0).normal(size=(31, 17))
    row = np.full((1, 17), value) + np.linspace(0, value, 17)
    constant = np.repeat(row, 31, axis=0)
    assert _discrimination(
        truth, constant, np.full(31, "all"), distance=distance
    ).mean() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_perfect_is_1_and_equal_truths_share(distance: _Distance) -> None:
    truth = np.random.default_rng(0).normal(size=(9, 5))
    np.testing.assert_array_equal(
        _discrimination(truth, truth, np.full(9, 0), distance=distance), 1
    )
    truth[4] = truth[7]
    expected = np.ones(9)
    expected[[4, 7]] = (7 + 0.5) / 8
    np.testing.assert_allclose(
        _discrimination(truth, truth, np.full(9, 0), distance=distance), expected
    )


def test_only_the_own_group_counts() -> None:
    rng = np.random.default_rng(1)
    truth, prediction = rng.normal(size=(2, 11, 4))
    groups = np.array(list("abababababc"))
    together = _discrimination(truth, prediction, groups)
    for name in "ab":
        members = groups == name
        apart = _discrimination(truth[members], prediction[members], groups[members])
        np.testing.assert_array_equal(together[members], apart)
    assert np.isnan(together[-1])  # nobody to be told apart from


def test_cosine_is_blind_to_size_which_manhattan_is_not() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(30, 20)) * rng.gamma(1, 1, (30, 1))
    shrunken = 0.2 * truth + 0.1 * rng.normal(size=(30, 20))
    groups = np.full(30, 0)
    before, after = (_discrimination(truth, c * shrunken, groups) for c in (1.0, 5.0))
    np.testing.assert_array_equal(before, after)
    by_l1 = [_discrimination(truth, c * shrunken, groups, distance="l1").mean() for c in (1.0, 5.0)]
    assert by_l1[1] > by_l1[0] + 0.05
