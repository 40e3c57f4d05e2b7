"""The road from a simulated competition to scored predictions, on its smallest settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["preset=tiny", "seeds=[0]", "replicates=2", 'models=["nbvae"]', "train.training.epochs=4"]


def experiment(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "experiments/op3_semireal/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def rows(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return {row["prediction"]: row for row in json.loads(result.stdout)}


@pytest.mark.slow
def test_every_row_is_there_and_what_was_done_is_kept(tmp_path: Path) -> None:
    settings = [word for key in SMALL for word in ("--set", key)]
    first = rows(experiment("--runs", str(tmp_path), "--json", *settings))
    assert first["zeros"]["ratio"] == 1
    assert first["cNB-VAE: the seed's way"]["ratio"] > 1.1, (
        "worse than zeros, as the seed's author found"
    )
    assert first["cNB-VAE: t averaged, K = 2"]["ratio"] < first["cNB-VAE: one draw"]["ratio"]
    assert first["true effects"]["ratio"] < 1
    assert {
        "ensemble",
        "transfer",
        "cNB-VAE: anchored t, shrunk",
        "cNB-VAE: plug-in t, shrunk",
    } <= set(first)
    run = tmp_path / "0001-op3-semireal-s0"
    folder = run / "seed-0"
    assert (folder / "report.html").stat().st_size > 100_000
    assert (folder / "submission.csv").exists()
    (folder / "nbvae.parquet").unlink()
    again = experiment("--resume", str(run), "--json")
    assert rows(again) == first, "the predictions are made anew, to the last digit"
    assert "is finished" in again.stderr, "and the training is not"
    changed = experiment("--resume", str(run), "--set", "replicates=3")
    assert changed.returncode == 2
    assert "--set does not go with --resume" in changed.stderr
