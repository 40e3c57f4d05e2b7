"""The written folder has the competition's files; they agree with the truth and with memory."""

from __future__ import annotations

import filecmp
import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from perturbgen.core.errors import InputError, StorageError
from perturbgen.core.tables import VEHICLE
from perturbgen.simulation import SimulatedExperiment, load_world, simulate
from perturbgen.simulation.op3 import experiment as experiment_module
from perturbgen.simulation.op3.cells import cell_ids
from perturbgen.simulation.op3.world import _OBS_COLUMNS

FILES = {
    "adata_train.parquet",
    "adata_obs_meta.csv",
    "adata_excluded_ids.csv",
    "de_train.parquet",
    "id_map.csv",
    "sample_submission.csv",
    "multiome_train.parquet",
    "multiome_obs_meta.csv",
    "multiome_var_meta.csv",
    "truth.h5ad",
    "truth_cells.h5ad",
    "truth_pseudobulk.h5ad",
    "truth_states.parquet",
    "de_truth.parquet",
    "conditions.csv",
    "simulation.toml",
    "README.txt",
}

# Enough for what does not depend on the numbers: that files are equal, or are there.
SMALLER = ["expression.genes=40", "cells.per_well=12", "plate.rows=2", "files.multiome_cells=30"]


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smaller") / "tiny"
    return simulate("tiny", seed=0, out=out, overrides=SMALLER)


def released_matrix(folder: Path, genes: list[str], cells: list[str]) -> sparse.csr_matrix:
    """The long file without the excluded pairs, as cells x genes in the given orders."""
    long = pd.read_parquet(folder / "adata_train.parquet")
    excluded = pd.read_csv(folder / "adata_excluded_ids.csv").assign(excluded=True)
    long = long.merge(excluded, on=["obs_id", "gene"], how="left")
    long = long[long["excluded"].isna()]
    row, column = (
        pd.Index(cells).get_indexer(long["obs_id"]),
        pd.Index(genes).get_indexer(long["gene"]),
    )
    assert min(row.min(), column.min()) >= 0
    return sparse.coo_matrix((long["count"], (row, column)), shape=(len(cells), len(genes))).tocsr()


def test_the_folder_holds_exactly_these_files(tiny_folder: Path) -> None:
    assert {path.name for path in tiny_folder.iterdir()} == FILES
    assert "SIMULATED" in (tiny_folder / "README.txt").read_text()


def test_the_long_file_has_the_real_columns_and_row_groups(tiny_folder: Path) -> None:
    file = pq.ParquetFile(tiny_folder / "adata_train.parquet")
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    assert kinds == {
        "obs_id": "string",
        "gene": "string",
        "count": "int64",
        "normalized_count": "double",
    }
    assert file.num_row_groups > 1
    counts = file.read(["count"]).column("count").to_numpy()
    assert counts.min() >= 1


def test_every_true_count_survives_the_anti_join_and_nothing_else(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    matrix = released_matrix(
        tiny_folder, list(tiny.released.var_names), list(tiny.released.obs_names)
    )
    assert (matrix != tiny.released.X).nnz == 0


def test_every_excluded_pair_was_planted_where_the_truth_is_zero(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    excluded = pd.read_csv(tiny_folder / "adata_excluded_ids.csv")
    long = pd.read_parquet(tiny_folder / "adata_train.parquet", columns=["obs_id", "gene"])
    assert len(excluded) > 100
    assert not excluded.duplicated().any()
    assert not long.duplicated().any()
    assert len(long.merge(excluded)) == len(excluded)
    assert len(long) - len(excluded) == tiny.released.X.nnz
    row = tiny.released.obs_names.get_indexer(excluded["obs_id"])
    column = tiny.released.var_names.get_indexer(excluded["gene"])
    assert np.asarray(tiny.released.X[row, column]).sum() == 0


def test_normalized_count_is_log1p_of_counts_per_million_of_the_true_total(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    long = pd.read_parquet(tiny_folder / "adata_train.parquet").head(2000)
    total = pd.Series(
        np.asarray(tiny.released.X.sum(axis=1)).ravel(), index=tiny.released.obs_names
    )
    expected = np.log1p(long["count"] * 1e6 / total[long["obs_id"]].to_numpy())
    assert np.allclose(long["normalized_count"], expected, rtol=1e-12)


def test_obs_has_the_real_columns_and_unique_sorted_hexadecimal_ids(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    obs = pd.read_csv(tiny_folder / "adata_obs_meta.csv", dtype={"obs_id": str})
    assert list(obs.columns) == _OBS_COLUMNS
    assert obs["obs_id"].is_unique
    assert obs["obs_id"].is_monotonic_increasing
    assert obs["obs_id"].str.fullmatch("[0-9a-f]{16}").all()
    ours = tiny.released.obs.loc[obs["obs_id"]].reset_index()
    pd.testing.assert_frame_equal(obs, ours[list(_OBS_COLUMNS)], check_dtype=False)


def test_ids_say_nothing_of_the_order_and_never_collide(tiny: SimulatedExperiment) -> None:
    world, other = tiny.world, replace(tiny.world, seed=2)
    ids = cell_ids(world.seed, 0, 50_000)
    assert len(set(ids)) == 50_000
    rank = pd.Series(ids).rank()
    assert abs(np.corrcoef(rank, np.arange(len(rank)))[0, 1]) < 0.02
    assert cell_ids(world.seed, 100, 5) == ids[100:105]
    assert not set(cell_ids(other.seed, 0, 1000)) & set(ids)


def test_withheld_cells_are_the_other_b_and_myeloid_cells(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    withheld = ad.read_h5ad(tiny_folder / "truth_cells.h5ad")
    assert (withheld.X != tiny.withheld.X).nnz == 0
    assert list(withheld.obs_names) == list(tiny.withheld.obs_names)
    assert set(withheld.obs["cell_type"]) == {"B cells", "Myeloid cells"}
    assert not set(withheld.obs_names) & set(tiny.released.obs_names)
    known = {*tiny.world.layout.known, VEHICLE}
    assert not set(withheld.obs["sm_name"]) & known
    measured = tiny.released.obs[tiny.released.obs["cell_type"].isin(["B cells", "Myeloid cells"])]
    assert set(measured["sm_name"]) <= known


def test_rows_to_predict_are_the_withheld_conditions_in_order(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    rows = pd.read_csv(tiny_folder / "id_map.csv")
    assert list(rows.columns) == ["id", "cell_type", "sm_name"]
    assert rows["id"].tolist() == list(range(len(rows)))
    assert rows.equals(rows.sort_values(["cell_type", "sm_name"]))
    withheld = tiny.withheld.obs.groupby(["cell_type", "sm_name"], observed=True).size().index
    assert set(withheld) == set(zip(rows["cell_type"], rows["sm_name"], strict=True))
    submission = pd.read_csv(tiny_folder / "sample_submission.csv")
    assert submission["id"].tolist() == rows["id"].tolist()
    assert submission.columns[1:].tolist() == tiny.world.genes
    assert (submission.iloc[:, 1:] == 0).all(axis=None)


def test_de_tables_cover_measured_and_withheld_conditions_without_gaps(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    train, truth = (
        pd.read_parquet(tiny_folder / f"de_{name}.parquet") for name in ("train", "truth")
    )
    assert train.columns[:5].tolist() == [
        "cell_type",
        "sm_name",
        "sm_lincs_id",
        "SMILES",
        "control",
    ]
    assert train.columns[5:].tolist() == tiny.world.genes
    measured = (
        tiny.released.obs.groupby(["cell_type", "sm_name"], observed=True)
        .size()
        .drop(VEHICLE, level=1)
        .index
    )
    assert set(measured) == set(zip(train["cell_type"], train["sm_name"], strict=True))
    assert set(train.loc[train["control"], "sm_name"]) == {"Belinostat", "Dabrafenib"}
    rows = pd.read_csv(tiny_folder / "id_map.csv")
    pd.testing.assert_frame_equal(truth[["id", "cell_type", "sm_name"]], rows)
    assert np.isfinite(train[tiny.world.genes].to_numpy()).all()
    assert np.isfinite(truth[tiny.world.genes].to_numpy()).all()


def test_pseudobulk_of_the_truth_adds_up_to_the_cells(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    sums = ad.read_h5ad(tiny_folder / "truth_pseudobulk.h5ad")
    measured = sums[~sums.obs["withheld"].to_numpy()]
    assert measured.X.sum() == tiny.released.X.sum()
    assert sums.X.sum() == tiny.released.X.sum() + tiny.withheld.X.sum()
    key = measured.obs_names[7]
    obs = tiny.released.obs
    here = (
        obs["plate_name"] + "_" + obs["well"] + "_" + obs["cell_type"].astype(str) == key
    ).to_numpy()
    assert here.sum() == measured.obs["n_cells"].iloc[7]
    assert np.array_equal(
        measured.X[7].toarray().ravel(), np.asarray(tiny.released.X[here].sum(axis=0)).ravel()
    )


def test_multiome_cells_are_others_and_untreated(
    tiny_folder: Path, tiny: SimulatedExperiment
) -> None:
    obs = pd.read_csv(tiny_folder / "multiome_obs_meta.csv", dtype={"obs_id": str})
    long = pd.read_parquet(tiny_folder / "multiome_train.parquet")
    var = pd.read_csv(tiny_folder / "multiome_var_meta.csv")
    assert list(long.columns) == ["obs_id", "location", "count", "normalized_count"]
    assert list(obs.columns) == ["obs_id", "cell_type", "donor_id"]
    assert len(obs) == tiny.world.settings.files.multiome_cells
    assert set(long["obs_id"]) == set(obs["obs_id"])
    assert set(long["location"]) <= set(var["location"])
    assert not set(obs["obs_id"]) & {*tiny.released.obs_names, *tiny.withheld.obs_names}


def test_one_seed_gives_identical_files_and_another_seed_others(
    smaller: Path, tmp_path: Path
) -> None:
    again = simulate("tiny", seed=0, out=tmp_path / "again", overrides=SMALLER)
    names = sorted(path.name for path in smaller.iterdir() if path.suffix != ".h5ad")
    assert filecmp.cmpfiles(smaller, again, names, shallow=False) == (names, [], [])
    for name in ("truth", "truth_cells", "truth_pseudobulk"):
        one, two = (ad.read_h5ad(folder / f"{name}.h5ad") for folder in (smaller, again))
        pd.testing.assert_frame_equal(one.obs, two.obs)
        assert one.X is None or (one.X != two.X).nnz == 0
        assert all(np.array_equal(one.layers[key], two.layers[key]) for key in one.layers)
    other = simulate("tiny", seed=1, out=tmp_path / "other", overrides=SMALLER)
    assert not filecmp.cmp(
        smaller / "adata_train.parquet", other / "adata_train.parquet", shallow=False
    )


def test_row_groups_change_no_content(smaller: Path, tmp_path: Path) -> None:
    overrides = [*SMALLER, "files.row_group=1000"]
    small = simulate("tiny", seed=0, out=tmp_path / "small", overrides=overrides)
    files = [folder / "adata_train.parquet" for folder in (smaller, small)]
    assert [pq.ParquetFile(file).num_row_groups > 1 for file in files] == [False, True]
    one, two = (pd.read_parquet(file) for file in files)
    pd.testing.assert_frame_equal(one, two)


def test_the_world_is_rebuilt_from_its_folder(tiny_folder: Path, tiny: SimulatedExperiment) -> None:
    world = load_world(tiny_folder)
    pd.testing.assert_frame_equal(world.groups, tiny.world.groups)
    assert np.array_equal(world.effects.log2_fold_change, tiny.world.effects.log2_fold_change)
    assert (world.draw(5) != tiny.world.draw(5)).nnz == 0


def test_an_existing_folder_is_refused_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="already exists"):
        simulate("tiny", seed=0, out=out)
    with pytest.raises(InputError, match=r"no simulation\.toml"):
        simulate("tiny", seed=0, out=out, force=True)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "simulation.toml").touch()
    simulate("tiny", seed=0, out=out, force=True, overrides=SMALLER)
    assert {path.name for path in out.iterdir()} == FILES


def test_a_failure_part_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(world: object, folder: Path) -> None:
        (folder / "adata_train.parquet").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment_module, "_write_competition", full_disk)
    with pytest.raises(StorageError, match="no space left"):
        simulate("tiny", seed=0, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_metadata_says_simulated(tiny_folder: Path) -> None:
    truth = ad.read_h5ad(tiny_folder / "truth.h5ad")
    assert truth.uns["kind"] == "simulated"
    assert truth.uns["vehicle"] == VEHICLE
    assert json.dumps(str(truth.uns["settings"])).count("zero_fraction") == 1
