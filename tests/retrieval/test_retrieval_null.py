"""The null of average precision: closed forms, enumeration, p-values of groups."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest

from perturbgen.retrieval import expected_ap, retrieve
from perturbgen.retrieval import scores as module
from perturbgen.retrieval.scores import _ap_null, _mixed_null, _random_ap


def enumerated(positives: int, total: int) -> np.ndarray:
    ranks = np.array(list(combinations(range(1, total + 1), positives)))
    return (np.arange(1, positives + 1) / ranks).mean(axis=1)


@pytest.mark.parametrize(("positives", "total"), [(1, 7), (2, 9), (3, 12), (5, 11), (8, 9), (4, 4)])
def test_chance_is_the_mean_of_all_rankings(positives: int, total: int) -> None:
    every = enumerated(positives, total)
    assert float(expected_ap(positives, total)) == pytest.approx(every.mean())
    null = _ap_null(positives, total)
    places = np.linspace(0, 1, len(null.mass))
    assert null.draws is None
    assert null.mass.sum() == pytest.approx(1)
    assert null.mass @ places == pytest.approx(every.mean())  # the grid keeps the mean exactly


@pytest.mark.parametrize(("positives", "total"), [(1, 40), (2, 40), (3, 30), (5, 20)])
def test_the_tail_is_that_of_all_rankings(positives: int, total: int) -> None:
    every, null = enumerated(positives, total), _ap_null(positives, total)
    place = 2 / 4096  # of the grid, in each direction
    for value in np.unique(every):
        worse, better = (every >= value - place).mean(), (every >= value + place).mean()
        assert better * 0.99 <= null.tail(value) <= worse * 1.01
    # the best ranking is one of C(L, M)
    assert null.tail(1.0) == pytest.approx(1 / comb(total, positives))
    assert null.tail(0.0) == pytest.approx(1)


def test_far_tails_are_not_cut_off() -> None:
    assert _ap_null(6, 300).tail(1.0) == pytest.approx(1 / comb(300, 6), rel=1e-6)  # 1.0e-12


# few positives; and crowded ones
@pytest.mark.parametrize(("positives", "total"), [(5, 400), (40, 300)])
def test_drawn_rankings_are_uniform(positives: int, total: int) -> None:
    drawn = _random_ap(positives, total, 20_000, np.random.default_rng(0))
    error = drawn.std() / np.sqrt(len(drawn))
    assert drawn.mean() == pytest.approx(float(expected_ap(positives, total)), abs=4 * error)
    exact = _ap_null(positives, total)
    for value in np.quantile(drawn, [0.5, 0.9, 0.99]):
        assert (drawn >= value).mean() == pytest.approx(exact.tail(value), rel=0.15)


def test_large_problems_are_drawn_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORK", 0)
    _ap_null.cache_clear()
    drawn = _ap_null(4, 200, draws=5000, seed=1)
    monkeypatch.undo()
    _ap_null.cache_clear()
    exact = _ap_null(4, 200)
    assert (drawn.draws, exact.draws) == (5000, None)
    assert drawn.tail(1.0) == pytest.approx(1 / 5001)
    assert drawn.tail(0.08) == pytest.approx(exact.tail(0.08), rel=0.15)


def test_groups_of_mixed_queries_have_the_null_of_their_mean() -> None:
    shape = {(2, 30): 3, (3, 25): 1}
    null = _mixed_null(shape, draws=1000, seed=0)
    rng = np.random.default_rng(0)
    drawn = 0.75 * _random_ap(2, 30, 40_000, rng) + 0.25 * _random_ap(3, 25, 40_000, rng)
    places = np.linspace(0, 1, len(null.mass))
    assert null.mass @ places == pytest.approx(
        0.75 * expected_ap(2, 30) + 0.25 * expected_ap(3, 25)
    )
    for value in np.quantile(drawn, [0.3, 0.9, 0.99]):
        assert null.tail(value) == pytest.approx((drawn >= value).mean(), rel=0.1)


def test_p_values_of_random_embeddings_are_not_small() -> None:
    rng = np.random.default_rng(0)
    p = [
        retrieve(
            rng.normal(size=(60, 5)), pd.DataFrame({"g": np.arange(60) % 15}), same="g"
        ).groups["p"]
        for _ in range(20)
    ]
    pooled = np.concatenate(p)
    # The shared ranking is wider than the mean of dependent queries: fewer small p-values than
    # uniform ones.
    assert (pooled < 0.05).mean() < 0.06
    assert (pooled < 0.001).mean() < 0.005
    assert 0.35 < np.median(pooled) < 0.65
