"""Ranks and metrics of queries: hand-computed, brute force, ties, rules of pairs, bad input."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.retrieval import expected_ap, retrieve
from tests.retrieval.slow_way import all_orders, brute_force, plain_query

METRICS = [
    "ap",
    "auc",
    "early_auc",
    "top_0.001",
    "top_0.01",
    "top_0.1",
    "p_at_1",
    "r_at_5",
    "r_at_10",
]


def cosine(x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def test_a_query_by_hand() -> None:
    # From A0 at angle 0 the others lie at 10 (B), 20 (A), 30 (B), 40 (A), 50 (B) degrees.
    angles = np.deg2rad([0, 10, 20, 30, 40, 50])
    x = np.column_stack([np.cos(angles), np.sin(angles)])
    result = retrieve(x, pd.DataFrame({"label": list("ABABAB")}), same="label").queries.iloc[0]
    assert result["ap"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result["auc"] == pytest.approx(1 - (1 / 3 + 2 / 3) / 2)
    assert result["median_q"] == pytest.approx(0.5)
    assert (result["p_at_1"], result["r_at_5"], result["positives"], result["negatives"]) == (
        0,
        1,
        2,
        3,
    )
    # M = 2 among L = 5: H_5 = 137/60, E = ((1/4)(5 - H_5) + H_5)/5
    chance = ((5 - 137 / 60) / 4 + 137 / 60) / 5
    assert result["nap"] == pytest.approx((0.5 - chance) / (1 - chance))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "correlation"])
@pytest.mark.parametrize(
    ("differ", "negatives_same"),
    [([], []), (["plate"], []), ([], ["plate"]), (["plate"], ["plate"])],
)
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second goes through torch
def test_equal_to_brute_force(
    screen: tuple[np.ndarray, pd.DataFrame],
    similarity: str,
    differ: list[str],
    negatives_same: list[str],
    device: str,
) -> None:
    x, meta = screen
    whole = {
        "cosine": lambda: cosine(x),
        "euclidean": lambda: -((x[:, None] - x) ** 2).sum(axis=-1),
        "correlation": lambda: np.corrcoef(x),
    }[similarity]()
    rule = {"same": "compound", "differ": differ, "negatives_same": negatives_same}
    result = retrieve(x, meta, **rule, similarity=similarity, device=device, chunk=7)
    expected = brute_force(whole, meta, "compound", differ, negatives_same)
    np.testing.assert_allclose(result.queries[METRICS], expected[METRICS], atol=1e-9)


def test_spearman_is_scipys() -> None:
    from scipy.stats import spearmanr

    # many features, rounded: ties within rows, none between similarities
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(8, 400))[np.arange(40) % 8] + 2 * rng.normal(size=(40, 400))).round(1)
    meta = pd.DataFrame({"g": np.arange(40) % 8})
    expected = brute_force(spearmanr(x, axis=1).statistic, meta, "g", [], [])
    result = retrieve(x, meta, same="g", similarity="spearman").queries
    np.testing.assert_allclose(result[METRICS], expected[METRICS], atol=1e-9)


def test_neither_chunks_nor_row_order_nor_precision_matter(
    screen: tuple[np.ndarray, pd.DataFrame],
) -> None:
    x, meta = screen
    whole = retrieve(x, meta, same="compound").queries
    order = np.random.default_rng(1).permutation(len(meta))
    np.testing.assert_allclose(
        retrieve(x, meta, same="compound", chunk=1).queries[METRICS], whole[METRICS], atol=1e-12
    )
    shuffled = retrieve(x[order], meta.iloc[order], same="compound").queries.loc[meta.index]
    np.testing.assert_allclose(shuffled[METRICS], whole[METRICS], atol=1e-12)
    single = retrieve(x.astype(np.float32), meta, same="compound").queries
    np.testing.assert_allclose(single[METRICS], whole[METRICS], atol=1e-6)


def test_a_labelled_embedding_is_joined_by_label(screen: tuple[np.ndarray, pd.DataFrame]) -> None:
    x, meta = screen
    reversed_table = pd.DataFrame(x, index=meta.index).iloc[::-1]
    pd.testing.assert_frame_equal(
        retrieve(reversed_table, meta, same="compound").queries,
        retrieve(x, meta, same="compound").queries,
    )
    with pytest.raises(SchemaError, match="lacks 1 of the 90 rows"):
        retrieve(reversed_table.iloc[1:], meta, same="compound")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_ties_count_as_the_mean_over_their_orders(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    sims = rng.integers(3, size=(8, 8)).astype(float)
    labels = np.array(list("AAABBBBB"))
    result = retrieve(
        sims, pd.DataFrame({"g": labels}), same="g", similarity="precomputed", device=device
    ).queries
    for i in range(8):
        others = np.arange(8) != i
        expected = all_orders(sims[i, others], labels[others] == labels[i])
        assert {name: result[name].iloc[i] for name in METRICS} == pytest.approx(
            {name: expected[name] for name in METRICS}
        )


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "spearman"])
def test_a_constant_embedding_gives_exactly_chance(similarity: str) -> None:
    meta = pd.DataFrame({"g": np.repeat(list("abcdef"), 5)})
    result = (
        retrieve(np.ones((30, 4)), meta, same="g", similarity=similarity).summary().loc["per query"]
    )
    assert result["ap"] == pytest.approx(float(expected_ap(4, 29)))
    assert result["nap"] == pytest.approx(0, abs=1e-12)
    assert result["auc"] == result["median_q"] == pytest.approx(0.5)
    assert result["p_at_1"] == pytest.approx(4 / 29)


def test_a_perfect_embedding_is_best_and_noise_hurts() -> None:
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(20), 6)
    meta = pd.DataFrame({"g": group})
    scores = []
    for noise in (0.0, 0.5, 2.0, 50.0):
        x = np.eye(20)[group] + noise * rng.normal(size=(120, 20)) / 4
        scores.append(retrieve(x, meta, same="g").summary().loc["per group"])
    assert scores[0]["ap"] == scores[0]["auc"] == scores[0]["p_at_1"] == scores[0]["retrieved"] == 1
    assert scores[0]["median_q"] == 0
    assert scores[0]["ap"] > scores[1]["ap"] > scores[2]["ap"] > scores[3]["ap"]
    assert scores[3]["auc"] == pytest.approx(0.5, abs=0.05)


def test_equal_rows_tie_exactly_wherever_they_lie() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(70, 33)).astype(np.float32)
    x[1::2] = x[0]  # the query and 35 copies of it, positives and negatives alike
    labels = np.where(np.arange(70) % 4 < 2, "a", "b")
    result = retrieve(x, pd.DataFrame({"g": labels}), same="g").queries.iloc[0]
    copies = np.arange(1, 70, 2)
    share = (labels[copies] == "a").mean()
    assert result["p_at_1"] == pytest.approx(share)


def test_zero_vectors_are_equally_far_from_everything(caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).normal(size=(20, 5))
    x[3] = 0
    with caplog.at_level(logging.WARNING, "perturbgen"):
        result = retrieve(x, pd.DataFrame({"g": np.arange(20) % 5}), same="g").queries.iloc[3]
    assert result["auc"] == pytest.approx(0.5)
    assert result["ap"] == pytest.approx(float(expected_ap(3, 19)))
    assert "1 of 20 rows are zero vectors" in caplog.text


def test_tiny_and_huge_vectors_have_a_direction() -> None:
    x = np.random.default_rng(0).normal(size=(20, 5))
    meta = pd.DataFrame({"g": np.arange(20) % 5})
    scale = np.where(np.arange(20) % 2, 1e-200, 1e200)[:, None]
    np.testing.assert_allclose(
        retrieve(x * scale, meta, same="g").queries[METRICS],
        retrieve(x, meta, same="g").queries[METRICS],
        atol=1e-12,
    )


def test_singletons_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).normal(size=(7, 3))
    meta = pd.DataFrame({"g": list("aabbbcd")})
    with caplog.at_level(logging.WARNING, "perturbgen"):
        result = retrieve(x, meta, same="g")
    assert "2 of 7 queries have no positive" in caplog.text
    assert result.queries["ap"].isna().tolist() == [False] * 5 + [True] * 2
    assert result.groups["g"].tolist() == ["a", "b"]
    # singletons are still negatives of others
    assert result.queries["negatives"].tolist()[:5] == [5, 5, 4, 4, 4]


def test_rows_without_a_label_take_no_part_unless_named_as_negatives() -> None:
    x = np.random.default_rng(0).normal(size=(8, 3))
    meta = pd.DataFrame({"g": ["a", "a", "b", "b", None, None, np.nan, "b"]})
    known = meta["g"].notna().to_numpy()
    without = retrieve(x, meta, same="g")
    pd.testing.assert_frame_equal(
        without.queries, retrieve(x[known], meta[known], same="g").queries
    )
    against = retrieve(x, meta, same="g", negatives=~known)
    assert (against.queries["negatives"] == 3).all()


def test_masks_say_who_asks_who_is_found_and_who_opposes(
    screen: tuple[np.ndarray, pd.DataFrame],
) -> None:
    x, meta = screen
    rng = np.random.default_rng(2)
    queries, candidates = rng.random(90) < 0.5, rng.random(90) < 0.6
    negatives = pd.Series((meta["compound"] == "0").to_numpy(), index=meta.index)
    found = retrieve(
        x,
        meta,
        same="compound",
        queries=queries,
        candidates=candidates,
        negatives=negatives.iloc[::-1],
    )
    sims = cosine(x)
    for name, row in found.queries.iterrows():
        i = meta.index.get_loc(name)
        positive = candidates & (meta["compound"] == meta["compound"].iloc[i]).to_numpy()
        positive[i] = False
        opposed = negatives.to_numpy() & (meta["compound"] != meta["compound"].iloc[i]).to_numpy()
        if not positive.any() or not opposed.any():
            assert np.isnan(row["ap"])
            continue
        chosen = positive | opposed
        assert row["ap"] == pytest.approx(plain_query(sims[i, chosen], positive[chosen])["ap"])


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_negatives_may_have_to_differ(device: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 4))
    meta = pd.DataFrame({"plate": np.arange(40) % 4, "compound": rng.integers(5, size=40)})
    rule = {"differ": "compound", "negatives_differ": "compound"}
    row = retrieve(x, meta, same="plate", device=device, **rule).queries.iloc[7]
    other = (meta["compound"] != meta["compound"].iloc[7]).to_numpy()
    alike = (meta["plate"] == meta["plate"].iloc[7]).to_numpy()
    assert (row["positives"], row["negatives"]) == ((other & alike).sum(), (other & ~alike).sum())
    assert row["ap"] == pytest.approx(plain_query(cosine(x)[7, other], alike[other])["ap"])


def test_pooled_numbers_count_every_pair_once(screen: tuple[np.ndarray, pd.DataFrame]) -> None:
    x, meta = screen
    result = retrieve(x, meta, same="compound")
    sims, q = cosine(x), []
    for i in range(90):
        alike = (meta["compound"] == meta["compound"].iloc[i]).to_numpy()
        opposed = sims[i, ~alike]
        alike[i] = False
        q += [(opposed > s).mean() for s in sims[i, alike]]
    pooled = result.summary().loc["pooled"]
    assert pooled["auc"] == pytest.approx(1 - np.mean(q))
    assert pooled["median_q"] == pytest.approx(np.median(q), abs=1e-6)
    assert pooled["n"] == len(q)
    fractions = np.array([0.05, 0.3, 1.0])
    np.testing.assert_allclose(
        result.curve(fractions), [(np.array(q) <= f + 1e-6).mean() for f in fractions]
    )


def test_intervals_hold_the_means_and_narrow_with_more_groups() -> None:
    rng = np.random.default_rng(0)

    def run(groups: int) -> tuple[pd.Series, pd.DataFrame]:
        code = np.repeat(np.arange(groups), 4)
        x = rng.normal(size=(groups, 6))[code] + rng.normal(size=(4 * groups, 6))
        result = retrieve(x, pd.DataFrame({"g": code}), same="g")
        return result.summary().loc["pooled"], result.intervals(draws=300)

    mean, few = run(20)
    _, many = run(200)
    for row in (few, many):
        assert (row.loc[("pooled", "high"), "auc"] - row.loc[("pooled", "low"), "auc"]) > 0
    assert few.loc[("pooled", "low"), "auc"] < mean["auc"] < few.loc[("pooled", "high"), "auc"]
    width = [
        t.loc[("per group", "high"), "ap"] - t.loc[("per group", "low"), "ap"] for t in (few, many)
    ]
    assert width[1] < width[0] / 1.5


def test_several_columns_make_one_group(screen: tuple[np.ndarray, pd.DataFrame]) -> None:
    x, meta = screen
    joined = meta.assign(both=meta["compound"] + "/" + meta["plate"])
    two = retrieve(x, meta, same=["compound", "plate"])
    one = retrieve(x, joined, same="both")
    np.testing.assert_allclose(two.queries[METRICS], one.queries[METRICS])
    assert (two.groups["compound"] + "/" + two.groups["plate"]).tolist() == one.groups[
        "both"
    ].tolist()


@pytest.mark.gpu
def test_the_gpu_gives_the_same_numbers(screen: tuple[np.ndarray, pd.DataFrame]) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, meta = screen
    gpu = retrieve(x, meta, same="compound", differ="plate", device="cuda").queries
    np.testing.assert_allclose(
        gpu[METRICS], retrieve(x, meta, same="compound", differ="plate").queries[METRICS], atol=1e-9
    )
