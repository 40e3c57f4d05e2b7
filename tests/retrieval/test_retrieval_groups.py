"""Controls, neighbours, mixing of batches, percent replicating and matching of modalities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.retrieval import (
    controlled,
    group_neighbours,
    knn_mixing,
    match_modalities,
    mixing_summary,
    nearest,
    neighbour_table,
    percent_replicating,
)
from perturbgen.retrieval.evaluator import _shuffle_labels


def plates(
    plate_effect: float, compound_effect: float, seed: int = 0
) -> tuple[np.ndarray, pd.DataFrame]:
    """12 compounds x 6 plates, each compound at one well position on half of the plates and at
    another on the rest.
    """
    rng = np.random.default_rng(seed)
    compound, plate = (a.ravel() for a in np.meshgrid(np.arange(12), np.arange(6), indexing="ij"))
    well = np.where(plate < 3, compound, (compound + 5) % 12)
    x = (
        compound_effect * rng.normal(size=(12, 20))[compound]
        + plate_effect * rng.normal(size=(6, 20))[plate]
    )
    meta = pd.DataFrame({"compound": compound, "plate": plate, "well": well}).astype(str)
    return x + rng.normal(size=(72, 20)), meta


def test_controls_tell_a_compound_effect_from_a_plate_effect() -> None:
    options = {"same": "compound", "plate": "plate", "well": "well"}
    compounds = controlled(*plates(0, 1), **options, rng=np.random.default_rng(0))
    both = controlled(*plates(2, 1), **options, rng=np.random.default_rng(0))
    assert compounds.loc["as given", "auc"] > 0.9
    assert compounds.loc["shuffled labels", "auc"] == pytest.approx(0.5, abs=0.05)
    assert compounds.loc["the plate itself", "auc"] == pytest.approx(0.5, abs=0.05)
    assert both.loc["the plate itself", "auc"] > 0.9
    # All replicates lie on other plates, so a plate effect hurts, and against the own plate most of
    # all.
    assert (
        both.loc["negatives on the plate", "auc"]
        < both.loc["as given", "auc"]
        < compounds.loc["as given", "auc"]
    )
    assert (compounds["note"] == "").all()


def test_a_position_effect_shows_as_such() -> None:
    _, meta = plates(0, 0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 20))[meta["well"].astype(int)] + rng.normal(size=(72, 20))
    table = controlled(x, meta, same="compound", plate="plate", well="well", rng=rng)
    assert table.loc["as given", "auc"] > table.loc["other well", "auc"] + 0.1
    assert table.loc["other well", "auc"] == pytest.approx(0.5, abs=0.08)
    assert table.loc["the well itself", "auc"] > 0.9


def test_an_impossible_control_says_why() -> None:
    x, meta = plates(0, 1)
    table = controlled(
        x, meta.assign(plate="only"), same="compound", plate="plate", rng=np.random.default_rng(0)
    )
    assert "nothing to retrieve" in table.loc["other plate", "note"]
    assert np.isnan(table.loc["other plate", "auc"])
    assert table.loc["as given", "note"] == ""


def test_shuffling_keeps_what_each_plate_holds() -> None:
    _, meta = plates(0, 0)
    shuffled = _shuffle_labels(meta, ["compound"], within=["plate"], rng=np.random.default_rng(0))
    assert (shuffled["compound"] != meta["compound"]).mean() > 0.5
    pd.testing.assert_frame_equal(shuffled[["plate", "well"]], meta[["plate", "well"]])
    for _, rows in meta.groupby("plate"):
        assert sorted(shuffled.loc[rows.index, "compound"]) == sorted(rows["compound"])
    vehicle = (meta["compound"] == "3").to_numpy()
    meta.loc[:4, "compound"] = None
    shuffled = _shuffle_labels(meta, ["compound"], rows=~vehicle, rng=np.random.default_rng(0))
    assert ((shuffled["compound"] == "3") == vehicle).all()
    assert shuffled["compound"].isna().tolist() == [True] * 5 + [False] * 67


def test_the_vehicle_stays_the_vehicle_when_labels_are_shuffled() -> None:
    x, meta = plates(0, 1)
    vehicle = (meta["compound"] == "0").to_numpy()
    rule = {"candidates": ~vehicle, "queries": ~vehicle, "negatives": vehicle}
    table = controlled(x, meta, same="compound", **rule, rng=np.random.default_rng(0))
    assert (table["queries"] == 66).all()
    assert table.loc["as given", "ap"] > table.loc["shuffled labels", "ap"] + 0.1


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_nearest_is_a_sort_of_all_distances(similarity: str) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6))
    meta = pd.DataFrame({"plate": np.arange(40) % 3})
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    whole = unit @ unit.T if similarity == "cosine" else -np.linalg.norm(x[:, None] - x, axis=-1)
    np.fill_diagonal(whole, -np.inf)
    rows, values = nearest(x, meta, k=5, similarity=similarity)
    np.testing.assert_array_equal(rows, np.argsort(-whole, axis=1)[:, :5])
    np.testing.assert_allclose(values, -np.sort(-whole, axis=1)[:, :5])
    other, _ = nearest(x, meta, k=5, differ="plate", similarity=similarity)
    assert (meta["plate"].to_numpy()[other] != meta["plate"].to_numpy()[:, None]).all()


def test_where_too_few_neighbours_differ_the_rest_is_empty() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    rows, values = nearest(x, pd.DataFrame({"plate": list("aaaaab")}), k=3, differ="plate")
    assert (rows[:5, 0] == 5).all()
    assert (rows[:5, 1:] == -1).all()
    assert np.isnan(values[:5, 1:]).all()
    with pytest.raises(SchemaError, match="6 neighbours of 6 rows"):
        nearest(x, pd.DataFrame(index=range(6)), k=6)


def test_neighbour_tables_by_hand() -> None:
    meta = pd.DataFrame({"g": ["a", "a", "b"]}, index=["x", "y", "z"])
    rows, values = (
        np.array([[1, 2], [0, 2], [1, -1]]),
        np.array([[0.9, 0.1], [0.9, 0.3], [0.3, np.nan]]),
    )
    table = neighbour_table(meta, rows, values, same=["g"])
    assert table["neighbour"].tolist() == ["y", "z", "x", "z", "y"]
    assert table["agrees"].tolist() == [True, False, True, False, False]
    groups = group_neighbours(table, same=["g"])
    assert groups.to_dict("records") == [
        {"g": "a", "neighbour g": "b", "share": 0.5, "similarity": 0.2},
        {"g": "b", "neighbour g": "a", "share": 1.0, "similarity": 0.3},
    ]


def test_mixing_by_hand() -> None:
    # On a line: batch a at 0, 1, 2, batch b at 10, 11, 12; the two nearest of each are of its own
    # batch.
    x = np.array([[0.0], [1], [2], [10], [11], [12]])
    meta = pd.DataFrame({"batch": list("aaabbb")})
    table = knn_mixing(x, meta, batch="batch", k=2)
    assert (table["same_batch"] == 1).all()
    np.testing.assert_allclose(table["expected"], 2 / 5)  # two of the five others
    np.testing.assert_allclose(table["lisi"], 1)
    # expected counts 0.8 and 1.2 against 2 and 0: chi2 = 1.44/.8 + 1.2 = 3
    from scipy.stats import chi2

    np.testing.assert_allclose(table["p"], chi2.sf(3, 1))
    assert mixing_summary(table)["ilisi"] == 0


def test_mixing_tells_batches_apart_from_none() -> None:
    rng = np.random.default_rng(0)
    x, meta = (
        rng.normal(size=(300, 8)),
        pd.DataFrame({"batch": np.arange(300) % 3, "label": np.arange(300) // 100}),
    )
    mixed = mixing_summary(knn_mixing(x, meta, batch="batch", k=30))
    apart = mixing_summary(
        knn_mixing(x + 3 * meta[["batch"]].to_numpy(), meta, batch="batch", k=30)
    )
    assert mixed["ilisi"] > 0.85
    assert mixed["acceptance"] > 0.85
    assert mixed["same_batch"] == pytest.approx(mixed["expected"], abs=0.03)
    assert apart["ilisi"] < 0.2
    assert apart["acceptance"] < 0.1
    # A batch that holds another label is no batch effect: within the label all is mixed.
    shifted = x + 9 * meta[["label"]].to_numpy()
    within = knn_mixing(shifted, meta, batch="batch", within="label", k=30)
    assert mixing_summary(within)["ilisi"] > 0.8
    with pytest.raises(SchemaError, match="no stratum holds two batches"):
        mixing_summary(knn_mixing(x, meta, batch="label", within="label", k=30))


def test_percent_replicating_finds_those_that_replicate() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 4)
    x = np.where(group[:, None] < 20, rng.normal(size=(60, 30))[group], 0) + rng.normal(
        size=(240, 30)
    )
    table = percent_replicating(x, pd.DataFrame({"g": group}), same="g", null_groups=400, rng=rng)
    assert table.loc[:19, "passes"].all()
    assert table.loc[20:, "passes"].mean() < 0.2  # one in twenty by chance
    correlation = np.corrcoef(x[:4])[np.triu_indices(4, 1)]
    assert table.loc[0, "median"] == pytest.approx(np.median(correlation))
    assert table["size"].tolist() == [4] * 60


def test_percent_matching_counts_pairs_of_other_compounds_only() -> None:
    rng = np.random.default_rng(0)
    compound = np.repeat(np.arange(40), 3)
    x = 3 * rng.normal(size=(40, 30))[compound] + rng.normal(size=(120, 30))
    meta = pd.DataFrame({"compound": compound, "moa": compound // 2})
    alone = percent_replicating(x, meta, same="moa", null_groups=300, rng=rng)
    across = percent_replicating(x, meta, same="moa", differ="compound", null_groups=300, rng=rng)
    assert alone["passes"].mean() > 0.3  # replicates of one compound pass for a mechanism
    assert across["passes"].mean() < 0.2
    with pytest.raises(SchemaError, match="no group of 'compound' has a pair"):
        percent_replicating(x, meta.assign(compound=np.arange(120)), same="compound", rng=rng)
    with pytest.raises(SchemaError, match="50 rows of different groups cannot be drawn from 2"):
        percent_replicating(x, meta.assign(compound=np.arange(120) // 60), same="compound", rng=rng)


@pytest.mark.data
def test_percent_replicating_of_a_real_cell_painting_plate(real_data: Path) -> None:
    path = real_data / "imaging" / "cellpainting" / "SQ00015054_normalized_feature_select.csv.gz"
    table = pd.read_csv(path)
    table = table[table["Metadata_broad_sample"] != "DMSO"]
    x = table.loc[:, ~table.columns.str.startswith("Metadata_")].to_numpy()
    result = percent_replicating(
        x, table, same="Metadata_broad_sample", rng=np.random.default_rng(0)
    )
    assert len(result) == 58
    # copairs' correlation_test on the same wells draws pairs, not groups; the medians are the same
    # numbers.
    one = table["Metadata_broad_sample"].iloc[0]
    rows = (table["Metadata_broad_sample"] == one).to_numpy()
    correlation = np.corrcoef(x[rows])[np.triu_indices(rows.sum(), 1)]
    assert result.loc[one, "median"] == pytest.approx(np.median(correlation))
    assert 0.3 < result["passes"].mean() < 0.9


def modalities(noise: float, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(50, 16))
    names = [f"c{i}" for i in range(50)]
    first = pd.DataFrame(shared + noise * rng.normal(size=(50, 16)), index=names)
    second = pd.DataFrame(shared + noise * rng.normal(size=(50, 16)), index=names).sample(
        frac=1, random_state=0
    )
    return first, second


def test_partners_are_found_by_label_in_both_directions() -> None:
    first, second = modalities(0.1)
    table = match_modalities(
        first, second, permutations=99, names=("image", "L1000"), rng=np.random.default_rng(0)
    )
    assert table["direction"].tolist() == ["image to L1000", "L1000 to image"]
    assert (table[["R@1", "MRR"]] == 1).all(axis=None)
    assert (table["median_rank"] == 0).all()
    assert (table[["R@1 p", "MRR p", "median_rank p"]] == 0.01).all(axis=None)
    assert table["R@10 null"].to_numpy() == pytest.approx(10 / 50, abs=0.03)


def test_unrelated_modalities_are_at_chance() -> None:
    first, _ = modalities(1, seed=1)
    _, second = modalities(1, seed=2)
    table = match_modalities(first, second, permutations=199, rng=np.random.default_rng(0))
    assert (table[["MRR p", "median_rank p"]] > 0.02).all(axis=None)
    constant = match_modalities(
        first * 0 + 1, second, permutations=19, rng=np.random.default_rng(0)
    ).iloc[1]
    assert constant["R@5"] == pytest.approx(5 / 50)  # all candidates tie
    assert constant["MRR"] == pytest.approx((1 / np.arange(1, 51)).mean())
    assert constant["median_rank"] == pytest.approx(0.5)


def test_strata_ask_apart_and_share_candidates() -> None:
    first, second = modalities(0.1)
    noisy = first.index[:25]
    first.loc[noisy] = np.random.default_rng(5).normal(size=(25, 16))
    strata = pd.Series("reproducible", first.index)
    strata.loc[noisy] = "not"
    extra = pd.DataFrame(
        np.random.default_rng(6).normal(size=(30, 16)), index=[f"x{i}" for i in range(30)]
    )
    table = match_modalities(
        first,
        pd.concat([second, extra]),
        strata=strata,
        permutations=99,
        rng=np.random.default_rng(0),
    ).set_index(["direction", "stratum"])
    good, bad = (
        table.loc[("first to second", "reproducible")],
        table.loc[("first to second", "not")],
    )
    assert (good["candidates"], good["n"], bad["n"]) == (80, 25, 25)
    assert good["R@1"] == 1
    assert bad["MRR"] < 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (pd.concat([a, a.iloc[:2]]), b), "first modality repeats 2 labels"),
        (lambda a, b: (a, b.iloc[:, :3]), "16 and 3 features"),
        (lambda a, b: (a, b.rename(index=str.upper)), "share 0 perturbations"),
        (lambda a, b: (a.replace(a.iloc[0, 0], np.nan), b), "NaN or infinity"),
    ],
)
def test_modalities_that_cannot_be_matched(change: object, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        match_modalities(*change(*modalities(1)), rng=np.random.default_rng(0))
