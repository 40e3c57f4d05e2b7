"""Two tables become pairs: joined by compound and dose, controls out, replicates averaged, strata
told.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import published
import pytest
from paired_fixture import IMAGES, L1000, read_truth
from pairs import Columns, nearest_doses, pair, read_wells, strata

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.profiles.crossmodal import PairedProfiles

PLAIN = Columns("name", "dose")


def table(names: list[str], doses: list[float], seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(len(names), 3)).round(3)
    return pd.DataFrame({"name": names, "dose": doses, **dict(zip("abc", values.T, strict=True))})


def test_the_fixtures_tables_join_though_their_doses_are_rounded_differently(
    paired: PairedProfiles,
) -> None:
    assert len(paired) == 96 * 3
    assert paired.first.values.shape[1] == 120
    assert paired.second.values.shape[1] == 160, "x_bead_count is a number but no feature"
    assert paired.first.meta.index.equals(paired.second.meta.index)
    assert set(paired.meta["moa"]) == {f"mechanism {i}" for i in range(16)}
    assert not paired.meta["compound"].str.contains("DMSO").any()


def test_strata_are_the_planted_groups_at_the_full_dose(
    paired: PairedProfiles, folder: Path
) -> None:
    full = paired.meta[paired.meta["dose"] > 3]
    planted = full["compound"].map(read_truth(folder).groups)
    expected = planted.map({"both": "both", "images": "one", "L1000": "one", "neither": "neither"})
    assert (expected == full["stratum"]).mean() > 0.9


def test_averages_are_by_label_whatever_the_order(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(12)]
    first, second = table(names * 2, [1.0, 3.3333] * 12), table(names * 2, [1.0, 3.33] * 12, seed=1)
    first.to_csv(tmp_path / "a.csv", index=False)
    second.sample(frac=1, random_state=0).to_parquet(tmp_path / "b.parquet", index=False)
    pairs = pair(
        *(read_wells(tmp_path / name, PLAIN) for name in ("a.csv", "b.parquet")),
        null_groups=20,
        rng=np.random.default_rng(0),
    )
    row = first[(first["name"] == "c3") & (first["dose"] > 3)][["a", "b", "c"]].mean()
    np.testing.assert_allclose(pairs.first.values[pairs.meta.index.get_loc("c3 @ 3.33")], row)
    np.testing.assert_allclose(
        pairs.second.values[pairs.meta.index.get_loc("c3 @ 3.33")],
        second[second["name"] == "c3"][["a", "b", "c"]].mean(),
    )
    assert len(pairs) == 12


def test_nearest_doses() -> None:
    found = nearest_doses(np.array([3.33, 0.04, 5.0, 10.0]), np.array([0.0412, 3.3333, 10.0]))
    assert found.tolist() == [3.3333, 0.0412, 5.0, 10.0]
    # no ratio to zero
    assert nearest_doses(np.array([0.0, 1.0]), np.array([1.1])).tolist() == [0.0, 1.0]


def test_strata_by_hand() -> None:
    yes, no = (
        pd.Series({"a": True, "b": True, "c": False}),
        pd.Series({"a": True, "b": False, "c": False, "d": True}),
    )
    found = strata(yes, no, pd.Index(["a", "b", "c", "d"]))
    assert found.tolist() == ["both", "one", "neither", "unknown"]


def test_a_row_of_each_has_no_stratum(tmp_path: Path) -> None:
    table([f"c{i}" for i in range(12)], [1.0] * 12).to_csv(tmp_path / "a.csv", index=False)
    wells = read_wells(tmp_path / "a.csv", PLAIN)
    pairs = pair(wells, wells, null_groups=20, rng=np.random.default_rng(0))
    assert set(pairs.meta["stratum"]) == {"unknown"}


@pytest.mark.parametrize(
    ("change", "columns", "error", "words"),
    [
        (lambda t: t, Columns("nam", "dose"), SchemaError, "did you mean 'name'?"),
        (lambda t: t, replace(PLAIN, dose="a dose"), SchemaError, "no column 'a dose'"),
        (lambda t: t, replace(PLAIN, features="("), InputError, "regular expression"),
        (lambda t: t, replace(PLAIN, features="^Cells"), SchemaError, "0 columns of features"),
        (lambda t: t, replace(PLAIN, control="name=DMSO"), SchemaError, "no row of"),
        (
            lambda t: t.assign(name=[None, *t["name"][1:]]),
            PLAIN,
            SchemaError,
            "'name' is missing in 1 rows",
        ),
        (lambda t: t.assign(dose="high"), PLAIN, SchemaError, "no number in some rows"),
        (lambda t: t[["name", "dose"]], PLAIN, SchemaError, "0 columns of features"),
        (lambda t: t.iloc[:0], PLAIN, InputError, "no rows"),
        (lambda t: t.assign(a=np.nan, b=np.nan, c=np.nan), PLAIN, SchemaError, "nothing is left"),
        (
            lambda t: t.assign(a=[np.nan, *t["a"][1:]]),
            replace(PLAIN, features="[abc]"),
            SchemaError,
            "1 rows hold NaN",
        ),
        (lambda t: t.assign(name=t["name"] + "x"), PLAIN, SchemaError, "share 0 perturbations"),
    ],
)
def test_mistakes_are_explained(
    change: object, columns: Columns, error: type[Exception], words: str, tmp_path: Path
) -> None:
    good = table([f"c{i}" for i in range(12)], [1.0] * 12)
    good.to_csv(tmp_path / "good.csv", index=False)
    change(good).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(error, match=words):
        pair(
            read_wells(tmp_path / "bad.csv", columns),
            read_wells(tmp_path / "good.csv", PLAIN),
            null_groups=20,
            rng=np.random.default_rng(0),
        )


def test_a_feature_with_nan_is_left_out_where_features_were_not_named(tmp_path: Path) -> None:
    good = table([f"c{i}" for i in range(12)], [1.0] * 12)
    good.assign(a=[np.nan, *good["a"][1:]]).to_csv(tmp_path / "t.csv", index=False)
    assert read_wells(tmp_path / "t.csv", PLAIN).features.tolist() == ["b", "c"]
    assert L1000.features, "the fixture's L1000 names its features"
    assert IMAGES.features == ""


@pytest.mark.data
def test_what_is_published_of_both_assays(real_data: Path) -> None:
    folder = real_data / "imaging"
    lincs = published.reproducible_together(folder / "paired" / "RepCorrDF.xlsx", "lincs")
    assert (lincs["both"], round(lincs["Spearman of replicate correlations"], 3)) == (1140, 0.288)
    images, l1000 = published.overexpressed_genes(folder / "paired")
    assert (images.shape, l1000.shape) == ((17, 15), (17, 978))
    assert images.index.equals(l1000.index)
    assert "KRAS" in images.index
    pairs = published.plate_and_maps(folder)
    assert len(pairs) == 336
    assert pairs.first.values.shape[1] == 454
    assert pairs.meta["compound"].nunique() == 58
    assert pairs.meta["stratum"].value_counts().to_dict() == {
        "neither": 219,
        "one": 61,
        "both": 38,
        "unknown": 18,
    }
