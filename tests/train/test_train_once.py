"""A run that is there is not trained again; one of other settings or data is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.data import Split
from perturbgen.train import train_once

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_finished_run_of_the_same_settings_is_taken(settings, tmp_path: Path) -> None:
    first = train_once(settings(), runs=tmp_path / "runs", accelerator="cpu")
    before = (first / "metrics.jsonl").read_text()
    assert train_once(settings(), runs=tmp_path / "runs", accelerator="cpu") == first
    assert (first / "metrics.jsonl").read_text() == before
    assert len(list((tmp_path / "runs").glob("0*"))) == 1


def test_other_settings_or_other_data_are_trained_anew(
    settings, cells, cells_file: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    first = train_once(settings(), runs=runs, accelerator="cpu")
    second = train_once(settings("model.latent=3"), runs=runs, accelerator="cpu")
    cells[:80].copy().write_h5ad(cells_file)
    third = train_once(settings(), runs=runs, accelerator="cpu")
    assert len({first, second, third}) == 3


def test_another_split_in_the_same_file_is_trained_anew(settings, cells, tmp_path: Path) -> None:
    runs, path = tmp_path / "runs", tmp_path / "split.csv"
    asked = settings(f"data.split={str(path)!r}")
    made = []
    for seed in (0, 1, 0):
        split = Split.random_cells(cells.obs, rng=np.random.default_rng(seed), fraction=0.2)
        split.write(path)
        made.append(train_once(asked, runs=runs, accelerator="cpu"))
        parts = pd.read_parquet(made[-1] / "cells.parquet")["part"]
        assert set(parts.index[parts == "validation"]) == set(split.members("validation"))
    assert made[0] != made[1]
    assert made[0] == made[2], "the first split is back, and its run is taken"


def test_other_descriptors_in_the_same_file_are_trained_anew(settings, tmp_path: Path) -> None:
    path = tmp_path / "compounds.csv"
    asked = settings(
        "conditions.compound.encoding='descriptors'",
        f"conditions.compound.descriptors={str(path)!r}",
    )
    made = []
    for value in (1.0, 2.0):
        pd.DataFrame({"compound": ["DMSO", "X"], "size": [0.0, value]}).to_csv(path, index=False)
        made.append(train_once(asked, runs=tmp_path / "runs", accelerator="cpu"))
    assert made[0] != made[1]


def test_a_folder_without_a_checkpoint_is_left_alone(settings, tmp_path: Path) -> None:
    (tmp_path / "runs" / "0001-other").mkdir(parents=True)
    run = train_once(settings(), runs=tmp_path / "runs", accelerator="cpu")
    assert run.name.startswith("0002-")
