"""Readers: exact formats, keys instead of row numbers, and what broken input says."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.images import bbbc021
from perturbgen.images.fields import _missing_sites
from perturbgen.images.readers import (
    RXRX1_COLUMNS,
    kind_of_source,
    opened,
    read_rxrx1_metadata,
    stream_embeddings,
)
from perturbgen.profiles import Profiles, read_profiles
from perturbgen.simulation.images import WRITERS, write_rxrx1

GUID = "43CD51CB-2370-471F-BA01-EE250B14B3C8"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"G10_s1_w1{GUID}.tif", ("G10", 1, 1)),
        (f"G10_s1_w4{GUID}.tif", ("G10", 1, 4)),  # w4 and then 43CD...: the channel is one digit
        (f"Week2_180607_F09_s3_w2{GUID}.tif", ("F09", 3, 2)),
        (f"Week8_4sites_B02_s4_w1{GUID}.tif", ("B02", 4, 1)),
    ],
)
def test_both_file_name_conventions(name: str, expected: tuple[str, int, int]) -> None:
    found = bbbc021._parse_file_name(name)
    assert (found.well, found.site, found.channel) == expected
    assert found.guid == GUID


@pytest.mark.parametrize(
    "name", ["G10_s1_w3" + GUID + ".tif", "G10_s5_w1" + GUID + ".tif", "G10_s1_w1.tif", "notes.txt"]
)
def test_a_strange_file_name_is_said(name: str) -> None:
    with pytest.raises(InputError, match="no BBBC021 image name"):
        bbbc021._parse_file_name(name)


def test_concentrations_are_joined_as_text() -> None:
    same = ["3", "3.000000", "3.0", "3e0", " 3 "]
    assert {bbbc021._concentration(text) for text in same} == {"3"}
    assert bbbc021._concentration("3e-4") == "0.0003"
    assert bbbc021._concentration("100") == "100"
    assert bbbc021._concentration("0.0") == "0"
    with pytest.raises(SchemaError, match="no number"):
        bbbc021._concentration("high")


def test_float16_concentrations_are_refused(fixtures: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(
        fixtures["bbbc021"], tmp_path / "copy", ignore=shutil.ignore_patterns("Week*")
    )
    table = pd.read_csv(folder / bbbc021.MECHANISMS)
    table["concentration"] = table["concentration"].astype(np.float16).astype(float)
    table.to_csv(folder / bbbc021.MECHANISMS, index=False)
    with pytest.raises(SchemaError, match="float16"):
        bbbc021._read_wells(folder)


def test_bbbc021_is_keyed_by_plate_well_and_site(fixtures: dict[str, Path]) -> None:
    images = bbbc021.read_images(fixtures["bbbc021"])
    assert not images.duplicated(["plate", "well", "site"]).any()
    assert all(
        (fixtures["bbbc021"] / path).exists() for name in bbbc021.CHANNELS for path in images[name]
    )
    wells = bbbc021._read_wells(fixtures["bbbc021"])
    assert wells.loc[wells["compound"] == "nobody knows", "moa"].isna().all()
    assert wells.loc[wells["compound"] == "UNKNOWN", "moa"].isna().all()
    assert (wells.loc[wells["compound"] == "DMSO", "moa"] == "DMSO").all()


def test_the_order_of_the_image_table_changes_nothing(
    fixtures: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(
        fixtures["bbbc021"], tmp_path / "copy", ignore=shutil.ignore_patterns("Week*")
    )
    path = folder / f"{bbbc021.IMAGES}.gz"
    pd.read_csv(path, dtype=str).sample(frac=1, random_state=0).to_csv(path, index=False)
    one, other = bbbc021.read_bbbc021(fixtures["bbbc021"]), bbbc021.read_bbbc021(folder)
    pd.testing.assert_frame_equal(one.meta, other.meta)
    np.testing.assert_array_equal(one.values, other.values)


def test_files_of_another_well_in_a_row_are_found(
    fixtures: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(
        fixtures["bbbc021"], tmp_path / "copy", ignore=shutil.ignore_patterns("Week*")
    )
    path = folder / f"{bbbc021.IMAGES}.gz"
    table = pd.read_csv(path, dtype=str)
    table["Image_FileName_Actin"] = (
        table["Image_FileName_Actin"].shift(-4).fillna(table["Image_FileName_Actin"])
    )
    table.to_csv(path, index=False)
    with pytest.raises(SchemaError, match="is not the Actin image of well"):
        bbbc021.read_images(folder)


@pytest.mark.data
def test_the_real_tables(real_data: Path) -> None:
    images = bbbc021.read_images(real_data / "imaging" / "bbbc021")
    assert len(images) == 13_200
    assert images["plate"].nunique() == 55
    wells = bbbc021._read_wells(real_data / "imaging" / "bbbc021")
    assert wells["moa"].notna().sum() == 962
    assert (wells["compound"] == "DMSO").sum() == 330
    weeks = (
        wells[wells["moa"].notna() & (wells["compound"] != "DMSO")]
        .groupby("compound")["week"]
        .nunique()
    )
    assert (weeks == 1).sum() == 37
    assert len(weeks) == 38


def test_rxrx1_in_both_layouts_is_one_plate_map(tmp_path: Path) -> None:
    new = read_rxrx1_metadata(write_rxrx1(tmp_path / "2020", seed=3, images=False))
    old = read_rxrx1_metadata(
        write_rxrx1(tmp_path / "kaggle", seed=3, images=False, layout="kaggle")
    )
    assert list(new.columns) == list(RXRX1_COLUMNS)
    both = new.drop_duplicates("well_id").merge(
        old, on="well_id", suffixes=("", "_old"), validate="1:1"
    )
    known = both["sirna_id_old"].notna()
    assert (both.loc[known, "sirna_id"] == both.loc[known, "sirna_id_old"]).all()
    assert (both.loc[~known, "dataset"] == "test").all()
    assert (both["cell_type"] == both["cell_type_old"]).all()
    assert (both["well_type"] == both["well_type_old"]).all()


def test_missing_sites_are_named_and_shift_nothing(
    fixtures: dict[str, Path], tmp_path: Path
) -> None:
    profiles, orphans = stream_embeddings(fixtures["rxrx1"], tmp_path / "p")
    missing = _missing_sites(profiles.meta)
    assert missing[["experiment", "plate", "well"]].to_numpy().tolist() == [
        ["HUVEC-01", 2, "B03"],
        ["U2OS-02", 4, "B04"],
    ]
    assert orphans.without_labels == orphans.without_values == ()
    raw = pd.read_csv(fixtures["rxrx1"] / "embeddings.csv", index_col="site_id").loc[
        profiles.meta["site_id"]
    ]
    np.testing.assert_allclose(profiles.values, raw.to_numpy(np.float32))


def test_ids_that_contradict_their_labels(fixtures: dict[str, Path], tmp_path: Path) -> None:
    meta = pd.read_csv(fixtures["rxrx1"] / "metadata.csv")
    meta["well"] = meta["well"].to_numpy()[::-1]
    meta.to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(SchemaError, match="contradict their labels"):
        read_rxrx1_metadata(tmp_path)


def test_rxrx19a_keeps_null_conditions_and_reports_orphans(
    fixtures: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(fixtures["rxrx19a"], tmp_path / "copy")
    meta = pd.read_csv(folder / "metadata.csv", keep_default_na=False, na_values=[""])
    extra = meta.iloc[[0]].assign(
        site_id="HRCE-1_2_AF48_4", well_id="HRCE-1_2_AF48", plate=2, well="AF48", site=4
    )
    pd.concat([meta, extra]).to_csv(folder / "metadata.csv", index=False)
    profiles, orphans = stream_embeddings(folder, tmp_path / "p")
    assert orphans.without_labels == ("HRCE-1_9_A01_1",)
    assert orphans.without_values == ("HRCE-1_2_AF48_4",)
    assert profiles.meta["disease_condition"].isna().sum() == 4
    assert isinstance(profiles.values, np.memmap)
    assert profiles.values.dtype == np.float32
    assert list(profiles.features[:2]) == ["feature_0", "feature_1"]
    assert (profiles.meta["smiles"].dropna() == "CCO").all()


def test_the_order_of_the_embeddings_changes_only_the_order(
    fixtures: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(fixtures["rxrx19b"], tmp_path / "copy")
    lines = (folder / "embeddings.csv").read_text().splitlines(keepends=True)
    (folder / "embeddings.csv").write_text("".join([lines[0], *reversed(lines[1:])]))
    one = stream_embeddings(fixtures["rxrx19b"], tmp_path / "a")[0]
    other = stream_embeddings(folder, tmp_path / "b")[0]
    rows = pd.Index(other.meta["site_id"]).get_indexer(one.meta["site_id"])
    np.testing.assert_array_equal(one.values, other.values[rows])


def test_rxrx3_guides_compounds_and_orphans(fixtures: dict[str, Path], tmp_path: Path) -> None:
    profiles, orphans = stream_embeddings(fixtures["rxrx3"], tmp_path / "p")
    assert profiles.values.shape[1] == 384
    assert len(orphans.without_labels) == len(orphans.without_values) == 1
    genes = profiles.meta["perturbation_type"] == "CRISPR"
    assert set(profiles.meta.loc[genes, "guide"].dropna()) == {1, 2}
    assert profiles.meta.loc[~genes, "guide"].isna().all()
    source = (
        pq.read_table(next(fixtures["rxrx3"].glob("*.parquet"))).to_pandas().set_index("well_id")
    )
    np.testing.assert_array_equal(profiles.values, source.loc[profiles.meta["well_id"]].to_numpy())


def test_generic_tables_in_csv_and_parquet_are_equal(
    fixtures: dict[str, Path], tmp_path: Path
) -> None:
    path = fixtures["cellpainting"] / "profiles.csv.gz"
    pd.read_csv(path).to_parquet(tmp_path / "profiles.parquet")
    one, other = (read_profiles(path), read_profiles(tmp_path / "profiles.parquet"))
    np.testing.assert_array_equal(one.values, other.values)
    assert one.meta["plate"].nunique() == 2
    assert not any(name.startswith("Metadata_") for name in one.features)


@pytest.mark.data
def test_the_real_cell_painting_plate(real_data: Path) -> None:
    profiles = read_profiles(
        real_data / "imaging" / "cellpainting" / "SQ00015054_normalized_feature_select.csv.gz"
    )
    assert profiles.values.shape == (384, 454)
    assert (profiles.meta["Metadata_broad_sample"] == "DMSO").sum() == 24


def test_a_table_without_labels_or_with_words_is_said(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1.0]}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(SchemaError, match="no column of labels"):
        read_profiles(tmp_path / "a.csv")
    pd.DataFrame({"Metadata_Well": ["A01"], "a": [1.0], "batch": ["x"]}).to_csv(
        tmp_path / "b.csv", index=False
    )
    with pytest.raises(SchemaError, match="'batch' is not a number"):
        read_profiles(tmp_path / "b.csv")


def test_sources_are_recognised(fixtures: dict[str, Path], tmp_path: Path) -> None:
    kinds = {name: kind_of_source(fixtures[name]) for name in WRITERS if name != "cellpainting"}
    assert kinds == {
        "bbbc021": "bbbc021",
        "rxrx1": "rxrx1",
        "rxrx19a": "rxrx19",
        "rxrx19b": "rxrx19",
        "rxrx3": "rxrx3",
    }
    with pytest.raises(InputError, match="holds no profiles"):
        kind_of_source(tmp_path)
    with opened(fixtures["rxrx19b"]) as profiles:
        folder = profiles.write(tmp_path / "kept")
        values = np.array(profiles.values)
    again = read_profiles(folder)
    np.testing.assert_array_equal(again.values, values)
    assert kind_of_source(folder) == "folder"


def small(values: np.ndarray, **labels: object) -> Profiles:
    return Profiles(
        values, pd.DataFrame(labels), pd.Index([f"f{i}" for i in range(values.shape[1])])
    )


def test_nan_is_an_error_or_dropped_as_asked() -> None:
    values = np.arange(12.0).reshape(4, 3)
    values[2, 1] = np.nan
    profiles = small(values, well=list("abcd"))
    with pytest.raises(SchemaError, match=r"1 rows hold NaN.*'f1'"):
        profiles.tidy()
    assert profiles.tidy(nan="drop-rows").meta["well"].tolist() == ["a", "b", "d"]
    assert list(profiles.tidy(nan="drop-features").features) == ["f0", "f2"]
    assert len(profiles.tidy(nan="drop-features")) == 4


def test_averages_go_by_label_and_keep_what_is_constant() -> None:
    profiles = small(
        np.array([[1.0], [5.0], [3.0], [9.0]]),
        well=["b", "a", "b", "a"],
        site=[1, 1, 2, 2],
        drug=["x", "y", "x", None],
    )
    found = profiles.averaged(["well"])
    assert found.meta.to_dict("list") == {"well": ["a", "b"], "drug": ["y", "x"]}
    assert found.values.ravel().tolist() == [7.0, 2.0]
    assert profiles.averaged(["well"], how="median").values.ravel().tolist() == [7.0, 2.0]


def test_conditions_choose_rows() -> None:
    profiles = small(np.zeros((4, 1)), drug=["x", None, "y", "x"], dose=[1, 1, 2, 2])
    assert profiles.chosen("drug=x|y & dose=2").tolist() == [False, False, True, True]
    assert profiles.chosen("drug=").tolist() == [False, True, False, False]
    with pytest.raises(SchemaError, match="no row"):
        profiles.chosen("drug=z")
    with pytest.raises(SchemaError, match="no column 'dos'"):
        profiles.chosen("dos=1")
    with pytest.raises(SchemaError, match="has no '='"):
        profiles.chosen("drug")
