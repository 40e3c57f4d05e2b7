"""Partners in folds: scores by hand, a null that keeps compounds whole, intervals, and Mantel's
test.
"""

import numpy as np
import pandas as pd
import pytest
from match_scores import (
    _chance,
    _exchange,
    _weighted_medians,
    mantel,
    matched_difference,
    query_scores,
    score_folds,
)
from scipy.stats import spearmanr

from perturbgen.core.errors import SchemaError
from perturbgen.retrieval import MatchedFold, match_modalities
from perturbgen.retrieval.crossmodal import _partner_scores


def tables(noise: float, rows: int = 40, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    shared, names = rng.normal(size=(rows, 8)), [f"c{i // 2} @ {i % 2}" for i in range(rows)]
    return tuple(
        pd.DataFrame(shared + noise * rng.normal(size=shared.shape), names) for _ in range(2)
    )


def compounds(table: pd.DataFrame) -> pd.Series:
    return pd.Series([name.split(" @")[0] for name in table.index], table.index)


def test_scores_by_hand() -> None:
    low, high = np.array([1, 3, 11, 2]), np.array([1, 3, 11, 4])
    found = _partner_scores(low, high, 21, (1, 10))
    np.testing.assert_allclose(found[:, 0], [1, 1 / 3, 1 / 11, (1 / 2 + 1 / 3 + 1 / 4) / 3])
    np.testing.assert_allclose(found[:, 1], [0, 0.1, 0.5, 0.1])
    np.testing.assert_allclose(found[:, 2], [1, 0, 0, 0])
    np.testing.assert_allclose(found[:, 3], [1, 1, 0, 1])
    np.testing.assert_allclose(_partner_scores(np.array(10), np.array(11), 21, (1, 10))[3], 0.5)


def test_one_fold_agrees_with_match_modalities() -> None:
    first, second = tables(1.0)
    fold = MatchedFold.of(first, second.sample(frac=1, random_state=1))
    theirs = match_modalities(first, second, permutations=1, rng=np.random.default_rng(0)).iloc[0]
    found = query_scores([fold])
    assert found["mAP"].mean() == pytest.approx(theirs["MRR"])
    assert found["R@10"].mean() == pytest.approx(theirs["R@10"])
    assert found["median_q"].median() == pytest.approx(theirs["median_rank"])


def test_chance_is_what_random_tables_get() -> None:
    folds = [
        MatchedFold.of(tables(0, 30, seed)[0], tables(0, 30, seed + 500)[0]) for seed in range(60)
    ]
    expected = _chance(folds)
    assert expected[0] == pytest.approx((1 / np.arange(1, 31)).sum() / 30)
    found = query_scores(folds)
    np.testing.assert_allclose(found.mean(), expected, atol=0.015)


def test_whole_compounds_are_exchanged() -> None:
    codes = np.array([0, 1, 0, 2, 1, 2, 0])
    for seed in range(20):
        partner = _exchange(codes, np.random.default_rng(seed))
        for code in range(3):
            assert len(set(codes[partner[codes == code]])) == 1, (
                "all rows of a compound go to one other compound"
            )
    equal = _exchange(np.repeat(np.arange(5), 3), np.random.default_rng(0))
    assert sorted(equal) == list(range(15)), "with equal sizes it is a permutation"
    assert _exchange(np.empty(0, int), np.random.default_rng(0)).tolist() == []


def test_a_null_of_whole_compounds_is_not_fooled_by_them() -> None:
    """Doses of a compound are alike: chance alone must not make such pairs significant."""
    p = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        names = [f"c{i // 6} @ {i % 6}" for i in range(60)]
        first, second = (
            pd.DataFrame(
                np.repeat(rng.normal(size=(10, 3)), 6, axis=0) + 0.1 * rng.normal(size=(60, 3)),
                names,
            )
            for _ in range(2)
        )
        row = score_folds(
            [MatchedFold.of(first, second)], compounds(first), permutations=99, draws=10, rng=rng
        ).iloc[0]
        p.append(row["mAP p"])
    assert np.mean(np.array(p) <= 0.1) < 0.25
    assert 0.3 < np.mean(p) < 0.7


def test_rows_strata_and_intervals() -> None:
    first, second = tables(0.3, 60)
    noisy = first.index[30:]
    second.loc[noisy] = np.random.default_rng(9).normal(size=(30, 8))
    folds = [
        MatchedFold.of(first.iloc[rows], second.iloc[rows])
        for rows in (range(0, 60, 2), range(1, 60, 2))
    ]
    strata = pd.Series("good", first.index)
    strata.loc[noisy] = "bad"
    found = score_folds(
        folds,
        compounds(first),
        strata=strata,
        permutations=199,
        draws=300,
        rng=np.random.default_rng(0),
    ).set_index("stratum")
    assert found.loc[["all", "good", "bad"], "n"].tolist() == [60, 30, 30]
    assert found.loc["good", "mAP p"] == 0.005
    assert found.loc["bad", "mAP p"] > 0.02
    assert found.loc["all", "mAP"] == pytest.approx(found.loc[["good", "bad"], "mAP"].mean())
    for name in ("mAP", "median_q", "R@1", "R@10"):
        assert (found[f"{name} low"] <= found[name]).all()
        assert (found[f"{name} high"] >= found[name]).all()
    with pytest.raises(SchemaError, match="no stratum for 60 perturbations"):
        score_folds(
            folds,
            compounds(first),
            strata=strata.iloc[:0],
            permutations=9,
            draws=9,
            rng=np.random.default_rng(0),
        )


def test_a_difference_by_hand() -> None:
    ours, theirs = pd.Series({"a": 1.0, "b": 0.5}), pd.Series({"b": 0.5, "a": 0.0})
    one = matched_difference(
        ours, theirs, pd.Series({"a": "x", "b": "x"}), draws=50, rng=np.random.default_rng(0)
    )
    assert one.tolist() == [0.5, 0.5, 0.5], "one compound: nothing to resample"
    two = matched_difference(
        ours, theirs, pd.Series({"a": "x", "b": "y"}), draws=500, rng=np.random.default_rng(0)
    )
    assert two.tolist() == [0.5, 0.0, 1.0]


def test_medians_of_repeated_values() -> None:
    counts = np.array([[1, 1, 1], [5, 0, 0], [0, 1, 3]])
    assert _weighted_medians(np.array([3.0, 1.0, 2.0]), counts).tolist() == [2, 3, 2]


def test_mantel_is_spearman_of_the_pairs() -> None:
    first, second = tables(0.5)
    found = mantel(
        first, second.sample(frac=1, random_state=0), permutations=99, rng=np.random.default_rng(0)
    )
    i, j = np.triu_indices(len(first), 1)
    expected = spearmanr(np.corrcoef(first)[i, j], np.corrcoef(second)[i, j]).statistic
    assert found["spearman"] == pytest.approx(expected)
    assert found["p"] == 0.01
    unrelated = mantel(first, tables(1, seed=77)[0], permutations=199, rng=np.random.default_rng(0))
    assert unrelated["p"] > 0.05
    with pytest.raises(SchemaError, match="0 perturbations in both assays"):
        mantel(first, second.rename(index=str.upper), rng=np.random.default_rng(0))
    with pytest.raises(SchemaError, match="profile is constant"):
        mantel(first * 0, second, rng=np.random.default_rng(0))
