"""Matching by hand, folds that lose no mechanism, and a choice of settings that does not look."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.images import bbbc021
from perturbgen.images.choose import _recipes, hits, nested_matching
from perturbgen.images.nsc import (
    admissible,
    fold_matching,
    mechanism_folds,
    nearest,
    nsc,
    nscb,
    treatments,
)
from perturbgen.profiles.correct import tvn
from perturbgen.profiles.table import Profiles


def profiled(angles: list[float], rows: list[tuple[str, str, tuple[str, ...]]]) -> Profiles:
    """Treatments at angles on the unit circle."""
    meta = pd.DataFrame(rows, columns=["compound", "moa", "batches"]).assign(concentration="1")
    values = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)
    return Profiles(values, meta, pd.Index(["x", "y"]))


def test_matching_by_hand() -> None:
    found = profiled(
        [0, 1, 10, 12, 90, 95],
        [
            ("a", "X", ("w1",)),
            ("a", "X", ("w1",)),
            ("b", "Y", ("w1",)),
            ("c", "X", ("w2",)),
            ("d", "Y", ("w2",)),
            ("e", "Y", ("w3",)),
        ],
    )
    one = nsc(found)
    assert one.table["neighbour"].tolist() == [
        "b",
        "b",
        "c",
        "b",
        "e",
        "d",
    ]  # never one's own compound
    assert str(one) == "2/6"
    two = nscb(found)
    assert two.table["neighbour"].tolist() == [
        "c",
        "c",
        "c",
        "b",
        "e",
        "d",
    ]  # b may not take a: the same week
    assert str(two) == "4/6"


def test_without_an_admissible_neighbour_nothing_matches() -> None:
    found = nscb(profiled([0, 1], [("a", "X", ("w1",)), ("b", "X", ("w1", "w2"))]))
    assert str(found) == "0/2"
    assert found.table["neighbour"].isna().all()
    assert nearest(np.eye(2), np.array([[True, False], [False, False]])).tolist() == [0, -1]


def test_mechanisms_of_one_batch_are_neither_asked_nor_neighbours() -> None:
    rows = [("a", "Kinase inhibitors", ("w1",)), ("b", "X", ("w1",)), ("c", "X", ("w2",))]
    assert str(nscb(profiled([0, 1, 40], rows))) == "2/2"


def test_scale_and_rotation_change_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"c{i // 2}", f"m{i // 6}", (f"w{i % 5}",)) for i in range(24)]
    base = profiled([0.0] * 24, rows)
    values = rng.normal(size=(24, 7))
    turned = values @ np.linalg.qr(rng.normal(size=(7, 7)))[0] * 3
    one, other = (nscb(Profiles(v, base.meta, pd.RangeIndex(7))).table for v in (values, turned))
    pd.testing.assert_frame_equal(one, other)


def test_the_fixture_has_a_batch_effect_that_nscb_sees(fixtures: dict[str, Path]) -> None:
    wells = bbbc021.read_bbbc021(fixtures["bbbc021"])
    values = tvn().fit_transform(wells.values, wells.meta, control=wells.meta["compound"] == "DMSO")
    found = treatments(wells.with_values(values), vehicle="DMSO")
    assert len(found) == 24  # no vehicle, no unknown, no compound without mechanism
    assert nsc(found).correct > nscb(found).correct


def test_a_profile_of_zeros_or_no_mechanism_is_an_error(fixtures: dict[str, Path]) -> None:
    wells = bbbc021.read_bbbc021(fixtures["bbbc021"])
    with pytest.raises(SchemaError, match="zero or not finite"):
        nsc(treatments(wells.with_values(np.zeros_like(wells.values)), vehicle="DMSO"))
    lost = Profiles(wells.values, wells.meta.assign(moa=None), wells.features)
    with pytest.raises(SchemaError, match="no treated well has a mechanism"):
        treatments(lost, vehicle="DMSO")


def test_folds_keep_compounds_together_and_lose_no_mechanism(fixtures: dict[str, Path]) -> None:
    found = treatments(bbbc021.read_bbbc021(fixtures["bbbc021"]), vehicle="DMSO")
    folds = mechanism_folds(found.meta, 3, rng=np.random.default_rng(0))
    assert (pd.Series(folds).groupby(found.meta["compound"]).nunique() == 1).all()
    for fold in range(3):
        assert set(found.meta["moa"][folds != fold]) == set(found.meta["moa"])
    again = mechanism_folds(found.meta, 3, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(folds, again)
    matching = fold_matching(found, folds)
    assert matching.total == len(found)
    neighbours = matching.table["neighbour"].map(
        dict(zip(found.meta["compound"], folds, strict=True))
    )
    assert (neighbours.to_numpy() != folds).all()
    with pytest.raises(SchemaError, match="have one compound"):
        mechanism_folds(
            found.meta[found.meta["compound"] != "compound A1"].query(
                "compound not in ['compound A2', 'compound A3']"
            ),
            3,
            rng=np.random.default_rng(0),
        )


def test_nested_choice_never_looks_at_the_compound_it_answers_for() -> None:
    rng = np.random.default_rng(1)
    meta = pd.DataFrame(
        {
            "compound": [f"c{i // 2}" for i in range(20)],
            "moa": [f"m{i // 10}" for i in range(20)],
            "concentration": "1",
            "batches": [(f"w{i // 2}",) for i in range(20)],
        }
    )
    random = {f"r{i}": rng.normal(size=(20, 20)) for i in range(60)}
    allowed, moa = admissible(meta, other_batch=True), meta["moa"].to_numpy()
    best = max(hits(value, allowed, moa).sum() for value in random.values())
    matching, choices = nested_matching(random, meta, other_batch=True)
    assert (
        matching.correct < best
    )  # the best of sixty random recipes is luck, and luck does not carry over
    assert len(choices) == 10
    held = choices.iloc[0]
    out = (meta["compound"] == held["compound"]).to_numpy()
    inner = {
        name: hits(value, allowed & ~out[None], moa)[~out].sum() for name, value in random.items()
    }
    assert inner[held["recipe"]] == max(inner.values()) == held["others matched"]


def test_recipes_are_distinct() -> None:
    names = [str(recipe) for recipe in _recipes()]
    assert len(set(names)) == len(names) == 96
    assert "z + whiten (1), median" in names
