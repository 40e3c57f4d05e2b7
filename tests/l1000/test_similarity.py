"""Similarities of profiles against scipy and slow loops, and what none of them may do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu, norm, pearsonr, rankdata, spearmanr

from perturbgen.core.errors import SchemaError
from perturbgen.l1000 import SIMILARITIES, symmetrised, wtcs
from perturbgen.l1000.connectivity import (
    _cosine,
    _mann_whitney,
    _wtcs_similarity,
    _xcos,
    _xsum,
    _zhang,
)

RNG = np.random.default_rng(0)
Q, R = RNG.normal(size=(4, 150)), RNG.normal(size=(6, 150))


def test_parity_with_scipy() -> None:
    np.testing.assert_allclose(SIMILARITIES["cosine"](Q, R), 1 - cdist(Q, R, "cosine"), atol=1e-12)
    np.testing.assert_allclose(SIMILARITIES["euclidean"](Q, R), -cdist(Q, R), atol=1e-9)
    pearson, spearman = (
        SIMILARITIES["pearson"](Q, R),
        SIMILARITIES["spearman"](Q.round(1), R.round(1)),
    )
    assert pearson[1, 2] == pytest.approx(pearsonr(Q[1], R[2]).statistic)
    assert spearman[3, 4] == pytest.approx(spearmanr(Q[3].round(1), R[4].round(1)).statistic)


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_a_profile_is_most_like_itself_and_least_like_its_inverse(name: str) -> None:
    similarity = SIMILARITIES[name]
    both = np.concatenate([Q, -Q])
    found = similarity(Q, both)
    assert found.shape == (4, 8)
    assert (found.argmax(axis=1) == np.arange(4)).all()
    assert (found.argmin(axis=1) == np.arange(4) + 4).all()


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_the_order_of_genes_does_not_matter_but_missing_values_do(name: str) -> None:
    similarity, order = SIMILARITIES[name], RNG.permutation(150)
    np.testing.assert_allclose(similarity(Q[:, order], R[:, order]), similarity(Q, R), atol=1e-9)
    broken = R.copy()
    broken[2, 3] = np.nan
    with pytest.raises(
        SchemaError, match="1 of 6 profiles have missing values, the first is number 2"
    ):
        similarity(Q, broken)
    with pytest.raises(SchemaError, match="queries have 150 genes, references 149"):
        similarity(Q, R[:, 1:])


@pytest.mark.parametrize("name", ["cosine", "pearson", "spearman", "xcos", "zhang", "xsum"])
def test_a_profile_of_zeros_is_like_nothing(name: str) -> None:
    assert (SIMILARITIES[name](Q, np.zeros((2, 150))) == 0).all()
    if name != "xsum":  # whose query sets are the genes in file order where all are equal
        assert (SIMILARITIES[name](np.zeros((2, 150)), R) == 0).all()


def test_single_precision_stays_single() -> None:
    assert _cosine(Q.astype(np.float32), R.astype(np.float32)).dtype == np.float32


def test_xsum_and_xcos_by_a_slow_loop() -> None:
    query, reference = Q[0], R[0]
    up, down = set(np.argsort(-query)[:10]), set(np.argsort(query)[:10])
    kept = {*np.argsort(-reference)[:30].tolist(), *np.argsort(reference)[:30].tolist()}
    expected = sum(reference[g] for g in up & kept) - sum(reference[g] for g in down & kept)
    assert _xsum(Q, R, n=30, query_n=10)[0, 0] == pytest.approx(expected)
    chosen = sorted(kept)
    a, b = query[chosen], reference[chosen]
    assert _xcos(Q, R, n=30)[0, 0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_zhang_is_one_for_equal_and_minus_one_for_opposite_orders() -> None:
    assert _zhang(Q, Q)[0, 0] == pytest.approx(1)
    assert _zhang(Q, -Q)[0, 0] == pytest.approx(-1)
    assert _zhang(Q, Q, n=20)[0, 0] == pytest.approx(1)
    ranks = [rankdata(np.abs(v)) * np.sign(v) for v in (Q[0], R[0])]
    assert _zhang(Q, R)[0, 0] == pytest.approx(ranks[0] @ ranks[1] / (np.arange(1, 151) ** 2).sum())


def test_sigcom_is_the_z_of_mann_and_whitney() -> None:
    n = 12
    up, down = np.argsort(-Q[0])[:n], np.argsort(Q[0])[:n]
    z = []
    for chosen in (up, down):
        rest = np.setdiff1d(np.arange(150), chosen)
        p = mannwhitneyu(
            R[0][chosen],
            R[0][rest],
            alternative="greater",
            method="asymptotic",
            use_continuity=False,
        ).pvalue
        z.append(norm.isf(p))
    assert _mann_whitney(Q, R, n=n)[0, 0] == pytest.approx(z[0] - z[1], rel=1e-6)
    with pytest.raises(SchemaError, match="sets of 150 genes of 150"):
        _mann_whitney(Q, R, n=150)


def test_wtcs_of_profiles_is_wtcs_of_their_extreme_genes() -> None:
    table = pd.DataFrame(R, columns=[str(i) for i in range(150)])
    order = np.argsort(-Q, axis=1, kind="stable").astype(str)
    found = wtcs(
        table,
        {str(i): list(order[i, :20]) for i in range(4)},
        {str(i): list(order[i, -20:]) for i in range(4)},
    )
    np.testing.assert_allclose(_wtcs_similarity(Q, R, n=20), found.T.to_numpy(), atol=1e-12)
    with pytest.raises(SchemaError, match="do not overlap"):
        _wtcs_similarity(Q, R, n=100)


def test_the_symmetric_form_is_symmetric() -> None:
    both = symmetrised(_xsum)
    np.testing.assert_allclose(both(Q, R), both(R, Q).T)
    assert not np.allclose(_xsum(Q, Q), _xsum(Q, Q).T)
