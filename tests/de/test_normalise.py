"""TMM and the expression filter on examples computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.de import filter_by_expr, tmm_factors
from perturbgen.de.normalise import _within_trim


def test_samples_that_differ_in_depth_only_need_no_factor() -> None:
    counts = np.outer([1, 2, 5], [10, 20, 40, 100, 7, 3])
    np.testing.assert_allclose(tmm_factors(counts), 1)


def test_one_gene_that_takes_over_a_library_is_corrected_for() -> None:
    base = np.arange(100, 300.0)
    swollen = base.copy()
    swollen[0] = base.sum()  # half of the sample's counts: all other shares are halved
    factors = tmm_factors(np.stack([base, base, swollen])).to_numpy()
    np.testing.assert_allclose(factors[2] / factors[0], base.sum() / swollen.sum(), rtol=1e-12)
    np.testing.assert_allclose(factors.prod(), 1)


def test_the_formula_by_hand() -> None:
    """Without trimming: the precision-weighted mean of the log ratios."""
    counts = np.array([[10.0, 20, 70], [30.0, 20, 50]])
    p, r = counts[1] / 100, counts[0] / 100
    weights = 1 / ((100 - counts[1]) / 100 / counts[1] + (100 - counts[0]) / 100 / counts[0])
    log_factor = (weights * np.log2(p / r)).sum() / weights.sum()
    found = tmm_factors(counts, reference=0, ratio_trim=0, sum_trim=0).to_numpy()
    np.testing.assert_allclose(found, [2 ** (-log_factor / 2), 2 ** (log_factor / 2)])
    plain = tmm_factors(counts, reference=0, ratio_trim=0, sum_trim=0, weighted=False).to_numpy()
    np.testing.assert_allclose(np.log2(plain[1] / plain[0]), np.log2(p / r).mean())


def test_trimming_shares_the_rank_of_ties() -> None:
    values = np.array([1.0, 1, 1, 2, 3, 4, 5, 5, 9, 10])
    assert _within_trim(values, 0.2).tolist() == [False] * 3 + [True] * 5 + [False] * 2
    # ranks of the three ones average 2, which a cut of one lets through
    assert _within_trim(values, 0.1).tolist() == [True] * 9 + [False]


def test_labels_and_genes_without_counts() -> None:
    counts = pd.DataFrame(np.random.default_rng(0).poisson(20, (4, 50)), index=list("abcd")).astype(
        float
    )
    factors = tmm_factors(counts)
    assert factors.index.tolist() == list("abcd")
    empty = counts.assign(**{f"z{i}": 0.0 for i in range(30)})
    np.testing.assert_allclose(tmm_factors(empty), factors)


@pytest.mark.parametrize("permute", ["samples", "genes"])
def test_order_does_not_matter(permute: str) -> None:
    rng = np.random.default_rng(1)
    counts = pd.DataFrame(rng.negative_binomial(3, 0.1, (6, 200)).astype(float))
    order = rng.permutation(6 if permute == "samples" else 200)
    shuffled = counts.iloc[order] if permute == "samples" else counts.iloc[:, order]
    np.testing.assert_allclose(
        tmm_factors(shuffled).reindex(counts.index), tmm_factors(counts), rtol=1e-12
    )


def test_filter_wants_enough_counts_in_as_many_samples_as_the_smallest_group() -> None:
    counts = pd.DataFrame(
        {"deep": [1e6 - 60] * 4, "two": [0, 0, 10, 10], "one": [0, 0, 0, 50], "low": [9, 9, 9, 9]},
        dtype=float,
    )
    # every library holds a million: counts are counts per million
    counts["fill"] = 1e6 - counts.sum(axis=1)
    keep = filter_by_expr(counts, group=["a", "a", "b", "b"])
    assert keep.to_dict() == {"deep": True, "two": True, "one": False, "low": False, "fill": True}
    leverage = filter_by_expr(counts, design=np.array([[1, 0], [1, 0], [0, 1], [0, 1.0]]))
    assert leverage.equals(keep)
