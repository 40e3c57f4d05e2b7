"""The README's first command, on its smallest settings."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from perturbgen import submission

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # simulates, trains two models and compares them: the whole of make demo
def test_the_demo_writes_what_it_says(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/demo/run.py", "--runs", str(tmp_path)]
    small = ["--set", "preset=tiny", "--set", "epochs=3", "--set", "replicates=2"]
    result = subprocess.run(
        [*command, *small], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "0001-demo-s0"
    for name in (
        "config.toml",
        "env.json",
        "counts.h5ad",
        "report.html",
        "summary.html",
        "comparison/scorecard.md",
        "comparison/scorecard.parquet",
        "de.html",
        "cells.html",
        "de.parquet",
        "submission.csv",
        "projector_config.pbtxt",
        "generated/replicate-0001.h5ad",
        "generated/wells.csv",
    ):
        assert (run / name).stat().st_size > 0, name
    assert str(run / "report.html") in result.stdout
    first, last = (line for line in result.stdout.splitlines() if line.startswith("after "))
    assert str(run / "summary.html") in first
    assert int(first.split()[1]) < int(last.split()[1])
    assert 'href="summary.html"' in (run / "report.html").read_text()
    assert 'href="report.html"' in (run / "summary.html").read_text()
    card = pd.read_parquet(run / "comparison" / "scorecard.parquet")
    ranking = card.query("metric == 'headline' and stratum == ''")
    headline = ranking.set_index("method")["value"]
    assert headline["replicate"] == pytest.approx(1), "the positive control is the top of the range"
    assert headline["zeros"] == 0
    assert {"additive", "bilinear_ridge", "xgboost", "cNB-VAE", "cDGD"} <= set(headline.index)
    assert "positive control" in result.stdout, "the scorecard is printed"
    folder = run / "competition"
    assert (pd.read_csv(run / "submission.csv", index_col=0) != 0).to_numpy().any(), (
        "a model's predictions, not zeros"
    )
    like = folder / "id_map.csv", folder / "sample_submission.csv"
    assert submission.check(run / "submission.csv", *like) == []


def test_the_demo_shows_its_configuration_and_refuses_unknown_keys(
    experiment: Callable[[str], Callable[..., int]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = experiment("demo")
    assert run("--dry-run", "--set", "seed=5") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ['preset = "small"', "seed = 5", "epochs = 12", "replicates = 6", ""]
    assert run("--set", "sed=5") == 2
    refused = capsys.readouterr().err
    assert "did you mean 'seed'" in refused
    assert "Traceback" not in refused
