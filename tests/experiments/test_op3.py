"""Both forms of the competition, from files to a submission that is checked, on simulated files."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import pandas as pd
import pytest

from perturbgen import cli, submission

# Trained for a moment: the road is tested, not the score.
QUICK = (
    "--set",
    "train.training.epochs=2",
    "--set",
    "train.annealing.warmup=0",
    "--set",
    "replicates=2",
    "--set",
    "accelerator=cpu",
    "--json",
)


@pytest.mark.slow  # simulates 5,000 cells, fits the samplers' forests and trains two runs
def test_a_kaggle_folder_becomes_a_submission(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = experiment("op3")
    assert run("--simulated", "tiny", "--out", out, *QUICK) == 0
    shown = capsys.readouterr()
    rows = {
        row["prediction"]: row["ratio"] for row in json.loads(shown.out[shown.out.index("[") :])
    }
    assert rows["zeros"] == 1
    assert {"gene_mean", "cNB-VAE: shrunk"} <= set(rows)
    folder = out / "competition-tiny-s0"
    ids, like = str(folder / "id_map.csv"), str(folder / "sample_submission.csv")
    assert (
        cli._run(["check-submission", str(out / "submission.csv"), "--id-map", ids, "--like", like])
        == 0
    )
    again = pd.read_parquet(out / "predictions.parquet")
    assert run(folder, "--out", out, *QUICK) == 0
    assert len(list((out / "runs").iterdir())) == 2, "what was trained is taken"
    pd.testing.assert_frame_equal(pd.read_parquet(out / "predictions.parquet"), again)
    assert run(folder, "--out", out, *QUICK, "--set", "calibration=0.3") == 0
    assert len(list((out / "runs").iterdir())) == 3, (
        "more compounds hidden: the calibration run is trained anew"
    )


@pytest.mark.slow  # as above
def test_open_problems_files_become_a_prediction(
    experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert experiment("op3_openproblems")("--simulated", "tiny", "--out", out, *QUICK) == 0
    shown = capsys.readouterr()
    rows = {
        row["prediction"]: row["ratio"] for row in json.loads(shown.out[shown.out.index("[") :])
    }
    assert {"zeros", "cNB-VAE: shrunk"} <= set(rows)
    folder = out / "openproblems-tiny-s0"
    prediction = anndata.read_h5ad(out / "prediction.h5ad")
    test = anndata.read_h5ad(folder / "de_test.h5ad")
    assert prediction.var_names.tolist() == test.var_names.tolist()
    assert (
        prediction.obs["sm_name"].astype(str).tolist() == test.obs["sm_name"].astype(str).tolist()
    )
    assert dict(prediction.uns) == {"dataset_id": "neurips-2023-data", "method_id": "perturbgen"}
    assert (
        submission.check(out / "prediction.h5ad", folder / "id_map.csv", folder / "de_train.h5ad")
        == []
    )
    cells = anndata.read_h5ad(next(out.glob("counts-*.h5ad"))).obs
    for run in (out / "runs").iterdir():
        trained = cells.loc[pd.read_parquet(run / "cells.parquet").index]
        rows = pd.MultiIndex.from_frame(trained[["cell_type", "sm_name"]].astype(str))
        assert len(rows)
        assert not rows.isin(
            pd.MultiIndex.from_frame(test.obs[["cell_type", "sm_name"]].astype(str))
        ).any()


@pytest.mark.parametrize("name", ["op3", "op3_openproblems"])
def test_what_is_missing_is_said_with_where_to_get_it(
    experiment, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = experiment(name)
    (tmp_path / "id_map.csv").write_text("id,cell_type,sm_name\n")
    wanted = {
        "op3": ("adata_train.parquet", "kaggle competitions download"),
        "op3_openproblems": ("de_train.h5ad", "perturbgen data get op3-cells"),
    }[name]
    for arguments in ([], [tmp_path], [tmp_path / "nowhere"]):
        assert run(*arguments, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert wanted[1] in error
        assert "Traceback" not in error
        assert not arguments or wanted[0] in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["op3", "op3_openproblems", "kang"])
def test_the_configuration_is_shown_and_unknown_keys_are_refused(
    experiment, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = experiment(name)
    assert run("--dry-run", "--set", "replicates=7") == 0
    assert "replicates = 7" in capsys.readouterr().out
    assert run("--dry-run", "--set", "replicate=7") == 2
    assert "did you mean 'replicates'" in capsys.readouterr().err
