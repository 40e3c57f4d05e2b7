"""Matching by hand, folds that lose no mechanism, and a choice of settings that does not look."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.images import read_bbbc021
from perturbgen.images.evaluate import Matching, mechanism_folds, treatment_profiles
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import tvn


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
    one = Matching.nsc(found)
    # never one's own compound
    assert one.table["neighbour"].tolist() == ["b", "b", "c", "b", "e", "d"]
    assert str(one) == "2/6"
    two = Matching.nscb(found)
    # b may not take a: the same week
    assert two.table["neighbour"].tolist() == ["c", "c", "c", "b", "e", "d"]
    assert str(two) == "4/6"


def test_without_an_admissible_neighbour_nothing_matches() -> None:
    found = Matching.nscb(profiled([0, 1], [("a", "X", ("w1",)), ("b", "X", ("w1", "w2"))]))
    assert str(found) == "0/2"
    assert found.table["neighbour"].isna().all()
    assert Matching.nearest(np.eye(2), np.array([[True, False], [False, False]])).tolist() == [
        0,
        -1,
    ]


def test_mechanisms_of_one_batch_are_neither_asked_nor_neighbours() -> None:
    rows = [("a", "Kinase inhibitors", ("w1",)), ("b", "X", ("w1",)), ("c", "X", ("w2",))]
    assert str(Matching.nscb(profiled([0, 1, 40], rows))) == "2/2"


def test_scale_and_rotation_change_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"c{i // 2}", f"m{i // 6}", (f"w{i % 5}",)) for i in range(24)]
    base = profiled([0.0] * 24, rows)
    values = rng.normal(size=(24, 7))
    turned = values @ np.linalg.qr(rng.normal(size=(7, 7)))[0] * 3
    one, other = (
        Matching.nscb(Profiles(v, base.meta, pd.RangeIndex(7))).table for v in (values, turned)
    )
    pd.testing.assert_frame_equal(one, other)


def test_the_fixture_has_a_batch_effect_that_nscb_sees(fixtures: dict[str, Path]) -> None:
    wells = read_bbbc021(fixtures["bbbc021"])
    values = tvn().fit_transform(wells.values, wells.meta, control=wells.meta["compound"] == "DMSO")
    found = treatment_profiles(wells.with_values(values), vehicle="DMSO")
    assert len(found) == 24  # no vehicle, no unknown, no compound without mechanism
    assert Matching.nsc(found).correct > Matching.nscb(found).correct


def test_a_profile_of_zeros_or_no_mechanism_is_an_error(fixtures: dict[str, Path]) -> None:
    wells = read_bbbc021(fixtures["bbbc021"])
    with pytest.raises(SchemaError, match="zero or not finite"):
        Matching.nsc(
            treatment_profiles(wells.with_values(np.zeros_like(wells.values)), vehicle="DMSO")
        )
    lost = Profiles(wells.values, wells.meta.assign(moa=None), wells.features)
    with pytest.raises(SchemaError, match="no treated well has a mechanism"):
        treatment_profiles(lost, vehicle="DMSO")


def test_folds_keep_compounds_together_and_lose_no_mechanism(fixtures: dict[str, Path]) -> None:
    found = treatment_profiles(read_bbbc021(fixtures["bbbc021"]), vehicle="DMSO")
    folds = mechanism_folds(found.meta, 3, rng=np.random.default_rng(0))
    assert (pd.Series(folds).groupby(found.meta["compound"]).nunique() == 1).all()
    for fold in range(3):
        assert set(found.meta["moa"][folds != fold]) == set(found.meta["moa"])
    again = mechanism_folds(found.meta, 3, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(folds, again)
    matching = Matching.by("k-fold", found, folds[:, None] != folds[None])
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
