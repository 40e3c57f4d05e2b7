"""The README's first command, on its smallest settings."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from perturbgen import submission

ROOT = Path(__file__).parents[1]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "experiments/demo/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_demo_writes_what_it_says(tmp_path: Path) -> None:
    result = demo(
        "--runs",
        str(tmp_path),
        "--set",
        "preset=tiny",
        "--set",
        "epochs=3",
        "--set",
        "replicates=2",
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
        "de.parquet",
        "submission.csv",
        "projector_config.pbtxt",
        "generated/replicate-0001.h5ad",
        "generated/wells.csv",
    ):
        assert (run / name).stat().st_size > 0, name
    assert str(run / "report.html") in result.stdout
    assert 'href="summary.html"' in (run / "report.html").read_text()
    assert 'href="report.html"' in (run / "summary.html").read_text()
    ranking = pd.read_parquet(run / "comparison" / "scorecard.parquet").query(
        "metric == 'headline' and stratum == ''"
    )
    headline = ranking.set_index("method")["value"]
    assert headline["replicate"] == pytest.approx(1), "the positive control is the top of the range"
    assert headline["zeros"] == 0
    assert {"additive", "bilinear_ridge", "xgboost", "cNB-VAE", "cDGD"} <= set(headline.index)
    assert "positive control" in result.stdout, "the scorecard is printed"
    folder = run / "competition"
    assert (pd.read_csv(run / "submission.csv", index_col=0) != 0).to_numpy().any(), (
        "a model's predictions, not zeros"
    )
    assert (
        submission.check(
            run / "submission.csv", folder / "id_map.csv", folder / "sample_submission.csv"
        )
        == []
    )


def test_the_demo_shows_its_configuration_and_refuses_unknown_keys() -> None:
    shown = demo("--dry-run", "--set", "seed=5").stdout.splitlines()
    assert shown == ['preset = "small"', "seed = 5", "epochs = 12", "replicates = 6", ""]
    refused = demo("--set", "sed=5")
    assert refused.returncode == 2
    assert "did you mean 'seed'" in refused.stderr
    assert "Traceback" not in refused.stderr
