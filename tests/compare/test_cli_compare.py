"""``perturbgen compare``: from a file to a scorecard, a report, a row of the leaderboard and an
exit code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.cli import _run
from perturbgen.core.files import only_writer

from .conftest import write_flat

CONFIG = """
[data]
folder = "{folder}"
truth = "de_truth.parquet"

[splits.kaggle]

[methods.zeros]
[methods.additive]
[methods.random_draw]

[score]
resamples = 20
intervals = [0.8]
"""


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG.format(folder=folder))
    return path


def test_from_a_file_to_everything(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "experiments" / "LEADERBOARD.md"
    board.parent.mkdir()
    names = "| date | experiment | method | score | zeros | ratio | commit | command |"
    head = f"{names}\n|---|---|---|---|---|---|---|---|"
    board.write_text(head)
    arguments = ["compare", str(config), "--workers", "1", "--leaderboard", "--set", "seeds=[0, 1]"]
    assert _run(arguments) == 0
    out = tmp_path / "runs" / "compare-mine"
    text = (out / "scorecard.md").read_text()
    assert "## Headline" in text
    assert "## Seeds" in text, "random_draw ran with two"
    assert "| kaggle | all | 22 | 10 |" in text
    table = pd.read_parquet(out / "scorecard.parquet")
    assert set(table["method"]) == {"zeros", "additive", "random_draw"}
    assert pd.read_csv(out / "cells.csv")["state"].tolist() == ["done"] * 4
    report = (out / "report.html").read_text()
    assert "Calibration" in report
    assert "80" in report
    assert not (out / "failures.txt").exists()
    row = board.read_text().splitlines()[-1]
    assert "| additive (headline" in row
    assert "perturbgen" in row or "compare" in row
    score, zeros, ratio = (float(cell) for cell in row.split(" | ")[3:6])
    assert ratio == pytest.approx(score / zeros, abs=1e-3)
    printed = capsys.readouterr().out
    assert "jobs: 4 done" in printed
    assert _run([*arguments, "--no-report", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert {cell["state"] for cell in record["cells"]} == {"cached"}


def test_a_failed_method_is_told_at_the_end_with_exit_code_1(
    config: Path,
    folder: Path,
    full: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_flat(full.drop(columns="g3"), folder / "narrow.parquet")
    method = '[methods."=narrow"]\npredictions = "narrow.parquet"\n'
    arguments, whole = ["compare", str(config), "--workers", "1"], config.read_text()
    config.write_text(whole + method)
    assert _run(arguments) == 1
    shown = capsys.readouterr()
    assert "1 of 4 jobs failed, of =narrow; the rest is scored" in shown.err
    assert "Traceback" not in shown.err
    out = tmp_path / "runs" / "compare-mine"
    assert "lacks 1 of 30 genes: 'g3'" in (out / "failures.txt").read_text()
    # for people: no spreadsheet computes what begins with =
    assert "'=narrow" in set(pd.read_csv(out / "cells.csv")["method"])
    assert "## Failed" in (out / "scorecard.md").read_text()
    assert "lacks 1 of 30 genes" in (out / "report.html").read_text()
    config.write_text(whole)
    assert _run([*arguments, "--no-report"]) == 0
    assert not (out / "failures.txt").exists(), "no failure of an earlier run is left"


def test_mistakes_are_told_before_anything_runs(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (["--set", "methods.ridgge.baseline='ridgge'"], "no baseline 'ridgge'"),
        (["--set", "splits.kagle.folds=2"], "no split 'kagle': did you mean 'kaggle'"),
        (["--leaderboard"], "no leaderboard at experiments/LEADERBOARD.md"),
        (["--data", "nowhere"], "no data folder at nowhere"),
        (["--scheduler", "dask"], "no scheduler 'dask'"),
    ):
        assert _run(["compare", str(config), *arguments]) == 2, arguments
        shown = capsys.readouterr()
        assert words in shown.err
        assert "Traceback" not in shown.err
    assert not (tmp_path / "runs").exists()


def test_the_resolved_settings_are_a_configuration(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["compare", str(config), "--dry-run"]) == 0
    config.write_text(capsys.readouterr().out)
    assert _run(["compare", str(config), "--dry-run"]) == 0
    assert 'baseline = "additive"' in capsys.readouterr().out


def test_a_de_table_of_ours_can_be_compared_on(
    folder: Path, full: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perturbgen.de import DETable

    monkeypatch.chdir(tmp_path)
    p = -np.abs(full)
    table = DETable(
        logfc=np.sign(full),
        ave_expr=full * 0,
        t=full,
        se=full * 0 + 1,
        df=full * 0 + 3,
        log10_p=p,
        adj_p=full * 0 + 1,
        conditions=pd.DataFrame({"samples": 3}, index=full.index),
    )
    table.write(folder / "de.parquet")
    config = tmp_path / "de.toml"
    config.write_text(
        f'[data]\nfolder = "{folder}"\ntrain = "de.parquet"\n'
        "[splits.cell_types]\n[methods.additive]\n"
    )
    assert _run(["compare", str(config), "--workers", "1", "--no-report"]) == 0
    scores = pd.read_parquet(tmp_path / "runs" / "compare-de" / "scores.parquet")
    assert len(scores) == 2 * len(full), (
        "every condition is predicted once, by zeros and by additive"
    )


def test_a_second_comparison_in_the_same_folder_is_told_of_the_first(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(config), "--workers", "1", "--no-report", "--out", "out"]
    with only_writer(tmp_path / "out"):
        assert _run(arguments) == 1
    assert "is being written by process" in capsys.readouterr().err
    assert _run(arguments) == 0
    assert not (tmp_path / "out" / ".lock").exists()


def test_compounds_are_told_apart_within_their_layout(
    folder: Path, full: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = full.index.to_frame(index=False)
    told["layout"] = np.resize(["1A", "2B"], len(told))
    told.to_csv(folder / "conditions.csv", index=False)
    config = tmp_path / "places.toml"
    text = f'[data]\nfolder = "{folder}"\n{{}}[splits.cell_types]\n[methods.additive]\n'
    config.write_text(text.format('conditions = "conditions.csv"\n[score]\nlayout = "layout"\n'))
    arguments = ["compare", str(config), "--workers", "1", "--no-report", "--out", "out"]
    assert _run(arguments) == 0
    assert "discrimination_same_layout" in (tmp_path / "out" / "scorecard.json").read_text()
    # results without a layout are others
    config.write_text(text.format(""))
    assert _run(arguments) == 0
    assert "discrimination_same_layout" not in (tmp_path / "out" / "scorecard.json").read_text()
