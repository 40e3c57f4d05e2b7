"""The verbs: list, fit and write; mistakes are told, never traced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.baselines import REGISTRY
from perturbgen.cli import _run
from perturbgen.data.kaggle import read_de

Task = tuple[pd.DataFrame, pd.DataFrame]


@pytest.fixture
def files(task: Task, tmp_path: Path) -> Path:
    train, test = task
    train.rename_axis(["cell_type", "sm_name"]).reset_index().to_parquet(
        tmp_path / "de_train.parquet", index=False
    )
    keys = test.index.to_frame(index=False).rename(columns={"compound": "sm_name"})
    keys.rename_axis("id").reset_index().to_csv(tmp_path / "id_map.csv", index=False)
    keys.rename(columns={"sm_name": "compound"}).to_csv(tmp_path / "plain.csv", index=False)
    return tmp_path


def fit(files: Path, *more: str, conditions: str = "id_map.csv", out: str = "p.parquet") -> int:
    name, *rest = more
    paths = [
        "--train",
        str(files),
        "--conditions",
        str(files / conditions),
        "--out",
        str(files / out),
    ]
    return _run(["-q", "baseline", name, *paths, *rest])


def test_list_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["baseline", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(REGISTRY)
    assert (
        next(row for row in rows if row["name"] == "cell_type_mean")["Open Problems"]
        == "mean_across_celltypes"
    )
    assert _run(["baseline", "kernel_ridge", "--json"]) == 0
    assert {"ridge", "width", "components"} <= {
        row["setting"] for row in json.loads(capsys.readouterr().out)
    }
    assert _run(["baseline"]) == 0
    assert "transductive" in capsys.readouterr().out
    assert _run(["baseline", "zeros"]) == 0
    assert "nothing to set" in capsys.readouterr().out


def test_half_of_what_a_prediction_needs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["baseline", "zeros", "--train", "t.parquet", "--out", "o.parquet"]) == 2
    said = capsys.readouterr().err
    assert "no --conditions\n" in said
    assert "perturbgen baseline zeros alone shows its settings" in said
    assert _run(["baseline", "--train", "t.parquet"]) == 2
    assert "which baseline?" in capsys.readouterr().err


def test_predictions_read_as_a_de_table(files: Path, task: Task) -> None:
    train, test = task
    assert fit(files, "shrunken_additive", conditions="plain.csv", out="a.parquet") == 0
    assert fit(files, "shrunken_additive") == 0
    found = read_de(files / "p.parquet")
    assert found.index.tolist() == test.index.tolist()
    assert found.columns.tolist() == train.columns.tolist()
    pd.testing.assert_frame_equal(found, read_de(files / "a.parquet"))


def test_settings_seeds_and_intervals(files: Path) -> None:
    quick = [
        "random_forest",
        "--set",
        "trees=20",
        "--set",
        "transform=none",
        "--set",
        "components=8",
    ]
    assert fit(files, *quick, "--seed", "3", "--interval", "0.9") == 0
    assert fit(files, *quick, "--seed", "3", out="again.parquet") == 0
    assert fit(files, *quick, "--seed", "4", out="other.parquet") == 0
    first, again, other = (read_de(files / f"{name}.parquet") for name in ("p", "again", "other"))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.equals(other)
    lower, upper = read_de(files / "p.lower.parquet"), read_de(files / "p.upper.parquet")
    assert ((lower < first) & (first < upper)).to_numpy().all()


def test_truth_smiles_and_nested(
    files: Path, task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pd.concat(task)
    whole.rename_axis(["cell_type", "sm_name"]).reset_index().to_parquet(
        files / "truth.parquet", index=False
    )
    assert fit(files, "ground_truth", "--truth", str(files / "truth.parquet")) == 0
    pd.testing.assert_frame_equal(read_de(files / "p.parquet"), task[1], check_names=False)
    smiles = pd.DataFrame(
        {"sm_name": [f"c{i:02d}" for i in range(30)], "SMILES": ["C" * (i + 1) for i in range(30)]}
    )
    smiles.to_csv(files / "smiles.csv", index=False)
    few = ["--set", "trees=3", "--set", "fingerprints=32", "--smiles", str(files / "smiles.csv")]
    assert fit(files, "xgboost", *few) == 0
    capsys.readouterr()
    chosen = ["--set", "base=neighbours", "--set", "grid={own=[0.0, 0.5]}", "--set", "folds=2"]
    assert fit(files, "nested", *chosen) == 0
    assert "settings chosen out of fold: own=" in capsys.readouterr().out


def test_mistakes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["kernal_ridge"], "did you mean 'kernel_ridge'"),
        (["kernel_ridge", "--set", "rigde=1"], "did you mean 'ridge'"),
        (["ground_truth"], "needs truth"),
        (["compound_median", "--interval", "0.9"], "no prediction intervals"),
        (["zeros", "--smiles", str(files / "id_map.csv")], "no column 'smiles'"),
    ):
        assert fit(files, *arguments) == 2
        assert told in capsys.readouterr().err.replace("\n", " ")
        assert not (files / "p.parquet").exists()
    assert fit(files, "zeros", out="p.csv") == 2
    assert "is not a .parquet file" in capsys.readouterr().err
    (files / "bad.csv").write_text("cell,drug\nA,x\n")
    assert fit(files, "zeros", conditions="bad.csv") == 2
    assert "no column 'cell_type', 'compound'" in capsys.readouterr().err


def test_end_to_end_on_the_tiny_simulation(tmp_path: Path) -> None:
    """Simulate, fit, predict what is withheld: what is said has to do with the truth, and zeros say
    nothing.
    """
    from perturbgen.simulation import simulate

    folder = simulate("tiny", seed=0, out=tmp_path / "tiny")
    truth = read_de(folder / "de_truth.parquet")
    found = {}
    for name in ("zeros", "compound_mean", "shrunken_additive"):
        arguments = [
            "--train",
            str(folder),
            "--conditions",
            str(folder),
            "--out",
            str(tmp_path / f"{name}.parquet"),
        ]
        assert _run(["-q", "baseline", name, *arguments]) == 0
        found[name] = read_de(tmp_path / f"{name}.parquet")
    common = truth.loc[list(found["zeros"].index), list(found["zeros"].columns)].to_numpy().ravel()
    assert not found["zeros"].to_numpy().any()
    for name in ("compound_mean", "shrunken_additive"):
        assert np.corrcoef(common, found[name].to_numpy().ravel())[0, 1] > 0.2
