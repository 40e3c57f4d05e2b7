"""What the simulator drew is what the readers read: counts, labels, order, excluded pairs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from perturbgen import cli
from perturbgen.data import read_competition
from perturbgen.simulation import SimulatedExperiment, simulate


@pytest.fixture(scope="module")
def drawn() -> SimulatedExperiment:
    return simulate("tiny", seed=11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate("tiny", seed=11, out=tmp_path_factory.mktemp("simulated") / "competition")


def assert_same_cells(read: AnnData, drawn: AnnData) -> None:
    assert read.var_names.tolist() == drawn.var_names.tolist()
    assert sorted(read.obs_names) == sorted(drawn.obs_names)
    assert (read.X != drawn[read.obs_names].X).nnz == 0
    for name in (
        "cell_type",
        "compound",
        "donor",
        "plate",
        "well",
        "row",
        "library",
        "control",
        "dose",
        "SMILES",
    ):
        pd.testing.assert_series_equal(
            read.obs[name].astype(str),
            drawn.obs.loc[read.obs_names, name].astype(str),
            check_names=False,
        )


def test_every_count_label_and_gene_comes_back(folder: Path, drawn: SimulatedExperiment) -> None:
    read = read_competition(folder)
    assert read.obs_names.tolist() == pd.read_csv(folder / "adata_obs_meta.csv")["obs_id"].tolist()
    assert_same_cells(read, drawn.released)


def test_the_anti_join_removes_exactly_the_listed_pairs(folder: Path) -> None:
    kept, all_counts = read_competition(folder), read_competition(folder, excluded=False)
    gone = (all_counts.X - kept.X).tocoo()
    assert (gone.data > 0).all()
    pairs = set(zip(kept.obs_names[gone.row], kept.var_names[gone.col], strict=True))
    assert pairs == set(
        pd.read_csv(folder / "adata_excluded_ids.csv").itertuples(index=False, name=None)
    )
    assert len(pairs) > 100
    assert kept.shape == all_counts.shape


def test_the_command_line_gives_the_same_file(
    folder: Path, drawn: SimulatedExperiment, tmp_path: Path
) -> None:
    assert cli._run(["-q", "ingest", str(folder), "--out", str(tmp_path / "counts.h5ad")]) == 0
    read = read_h5ad(tmp_path / "counts.h5ad")
    assert_same_cells(read, drawn.released)
    assert read.X.dtype == np.int32
    assert read.uns["vehicle"] == "Dimethyl Sulfoxide"


def test_withheld_conditions_are_in_the_id_map_and_nowhere_in_the_released_cells(
    folder: Path,
) -> None:
    id_map = pd.read_csv(folder / "id_map.csv")
    released = pd.read_csv(folder / "adata_obs_meta.csv")[["cell_type", "sm_name"]]
    assert not set(id_map[["cell_type", "sm_name"]].itertuples(index=False, name=None)) & set(
        released.itertuples(index=False, name=None)
    )
