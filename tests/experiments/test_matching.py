"""The protocol finds what was planted, finds nothing where nothing is, and never looks at what it
is asked about.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from match_scores import query_scores, score_folds
from mechanisms import mechanism_table
from paired_fixture import SHARED, read_truth

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.profiles import Profiles
from perturbgen.profiles.crossmodal import (
    TORN,
    Matched,
    PairedProfiles,
    Setting,
    _compound_folds,
    _splits,
)

GRID = [Setting.correlated(tau, 10, before) for tau in (0.1, 0.5) for before in (None, 20)]


@pytest.fixture(scope="module")
def matched(paired: PairedProfiles, folder: Path) -> dict[str, Matched]:
    truth = read_truth(folder)
    grid = {"RGCCA": GRID, "planted": [Setting.given(truth.images, truth.l1000)]}
    return paired.match(grid, folds=4, inner=2, rng=np.random.default_rng(0), torn_from="RGCCA")


def table(matched: Matched, paired: PairedProfiles, groups: pd.Series) -> pd.DataFrame:
    return score_folds(
        matched.forward,
        paired.meta["compound"],
        strata=groups,
        permutations=199,
        draws=200,
        rng=np.random.default_rng(0),
    ).set_index("stratum")


def test_responders_in_both_assays_are_found_and_nobody_else(
    paired: PairedProfiles, folder: Path, matched: dict[str, Matched]
) -> None:
    groups = paired.meta["compound"].map(read_truth(folder).groups)
    found = table(matched["RGCCA"], paired, groups)
    assert found.loc["both", "mAP p"] == 0.005
    assert found.loc["both", "mAP"] > 2 * found.loc["both", "mAP null"]
    assert found.loc["both", "mAP low"] > found.loc["both", "mAP chance"]
    for group in ("neither", "images", "L1000"):
        assert found.loc[group, "mAP p"] > 0.01
    assert found.loc["both", "R@10"] > 0.4


def test_the_planted_maps_are_the_ceiling_and_torn_pairs_lie_at_chance(
    paired: PairedProfiles, matched: dict[str, Matched]
) -> None:
    groups = pd.Series("all of them", paired.meta.index)
    rows = {name: table(found, paired, groups).loc["all"] for name, found in matched.items()}
    assert rows["planted"]["mAP"] > rows["RGCCA"]["mAP"] > 1.5 * rows[TORN]["mAP"]
    assert rows[TORN]["mAP"] == pytest.approx(rows[TORN]["mAP chance"], rel=0.2)


def test_as_many_pairs_of_variates_hold_as_were_planted(paired: PairedProfiles) -> None:
    found = paired.variate_correlations(
        Setting.correlated(0.3, 16), folds=4, rng=np.random.default_rng(1)
    ).mean()
    assert (found[:3] > 0.3).all()
    assert found[SHARED + 2 :].abs().max() < 0.25
    assert found[0] > 2 * found[SHARED + 2 :].abs().max()


def test_what_is_withheld_changes_neither_maps_nor_settings(paired: PairedProfiles) -> None:
    """Withheld partners are exchanged: the queries of the other assay, the maps and the choice stay
    as they were.
    """
    fold = _compound_folds(paired.meta["compound"].to_numpy(), 4, rng=np.random.default_rng(7))
    held = np.flatnonzero(fold == 0)
    values = paired.second.values.copy()
    values[held] = values[np.roll(held, 5)] * 100
    other = replace(paired, second=paired.second.with_values(values))
    one, two = (
        pairs.match({"RGCCA": GRID}, folds=4, inner=2, rng=np.random.default_rng(7))["RGCCA"]
        for pairs in (paired, other)
    )
    assert one.forward[0].labels.tolist() == paired.meta.index[held].tolist()
    assert one.chosen[0] == two.chosen[0]
    splits = [
        next(_splits(p, np.arange(len(p)), 4, rng=np.random.default_rng(7)))
        for p in (paired, other)
    ]
    for name in ("mean", "weight", "u", "s"):
        np.testing.assert_array_equal(
            getattr(splits[0].second, name), getattr(splits[1].second, name)
        )


def test_doses_of_a_compound_lie_in_one_fold() -> None:
    compounds = np.repeat([f"c{i}" for i in range(23)], 3)
    fold = _compound_folds(compounds, 5, rng=np.random.default_rng(0))
    assert pd.Series(fold).groupby(compounds).nunique().max() == 1
    assert np.bincount(fold).min() >= 4 * 3
    np.testing.assert_array_equal(fold, _compound_folds(compounds, 5, rng=np.random.default_rng(0)))


@pytest.mark.parametrize(
    "setting",
    [
        Setting.correlated(0.1, 10),
        Setting.rotated(20),
        Setting.predicted(0.1),
        Setting.correlated(0, 10, 20),
    ],
    ids=str,
)
def test_an_assay_finds_itself_by_every_method(paired: PairedProfiles, setting: object) -> None:
    same = replace(paired, second=paired.first)
    found = same.match({"m": [setting]}, folds=3, inner=2, rng=np.random.default_rng(0))["m"]
    for folds in (found.forward, found.backward):
        assert query_scores(folds)["mAP"].mean() > 0.98


def test_both_runs_of_one_seed_are_equal(paired: PairedProfiles) -> None:
    runs = [
        paired.match({"RGCCA": GRID}, folds=3, inner=2, rng=np.random.default_rng(5))
        for _ in range(2)
    ]
    for one, other in zip(*(run["RGCCA"].forward for run in runs), strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


def test_grids_fit_the_data() -> None:
    first, second = (
        Profiles(np.zeros((1, size)), pd.DataFrame(index=["a"]), pd.RangeIndex(size))
        for size in (454, 4)
    )
    few = PairedProfiles(first, second).methods()
    assert {setting.name for setting in few["PLS"]} == {"tau 1, 4 variates"}
    assert any("80 principal" in setting.name for setting in few["CCA"])


def test_mechanisms_are_told_from_both_assays_better_than_by_chance(paired: PairedProfiles) -> None:
    found = mechanism_table(
        paired, GRID[:1], folds=3, inner=2, draws=200, rng=np.random.default_rng(0)
    )
    found = found.set_index("features")
    assert list(found.index) == ["images", "L1000", "concatenated", "RGCCA", "averaged"]
    assert (found["low"] > found["largest"]).all()
    assert (found["low"] < found["accuracy"]).all()
    torn = relabelled(paired, moa=exchanged_mechanisms(paired.meta))
    chance = mechanism_table(
        torn, GRID[:1], folds=3, inner=2, draws=200, rng=np.random.default_rng(0)
    )
    assert chance["accuracy"].mean() == pytest.approx(1 / 16, abs=0.04)


def relabelled(pairs: PairedProfiles, **labels: object) -> PairedProfiles:
    return replace(pairs, first=replace(pairs.first, meta=pairs.meta.assign(**labels)))


def exchanged_mechanisms(meta: pd.DataFrame) -> pd.Series:
    first = meta.drop_duplicates("compound").set_index("compound")["moa"]
    return meta["compound"].map(pd.Series(np.random.default_rng(0).permutation(first), first.index))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda p: _compound_folds(["a", "b", "c"], 2, rng=np.random.default_rng(0)),
            SchemaError,
            "3 compounds for 2",
        ),
        (
            lambda p: _compound_folds(["a", "b", "c"], 1, rng=np.random.default_rng(0)),
            ConfigError,
            "1 folds",
        ),
        (
            lambda p: mechanism_table(
                relabelled(p, moa=None),
                GRID,
                folds=3,
                inner=2,
                draws=10,
                rng=np.random.default_rng(0),
            ),
            SchemaError,
            "fewer than two mechanisms",
        ),
    ],
)
def test_mistakes(call: object, error: type[Exception], words: str, paired: PairedProfiles) -> None:
    with pytest.raises(error, match=words):
        call(paired)
