"""The two experiments on small presets: the pattern is there, and so is every row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def experiment(name: str, *arguments: str) -> list[dict[str, Any]]:
    tiny = ("--preset", "tiny", "--seeds", "0", "--json")
    command = [sys.executable, f"experiments/{name}/run.py", *tiny, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_the_oracle_ladder_has_its_pattern() -> None:
    rows = {row["prediction"]: row["ratio"] for row in experiment("oracle_ladder")}
    assert rows["zeros"] == 1
    assert rows["noise-free means"] > 1.1
    averages = [rows[f"t averaged, K = {k}"] for k in (2, 6, 20)]
    assert sorted(averages, reverse=True) == averages
    assert averages[0] < rows["one draw"]
    assert averages[-1] < 0.85
    assert rows["t averaged, K = 20"] < rows["p averaged, K = 20"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_the_samplers_beat_their_rivals_over_three_seeds(preset: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = ("--preset", preset, "--seeds", "0,1,2", "--no-tune")
    rows = experiment("samplers", *asked, "--page", str(page))
    means = {(row["quantity"], row["method"]): row["CRPS"] for row in rows if row["seed"] == "mean"}
    for quantity in ("cells", "depth"):
        ours = means[(quantity, "leaf residuals (ours)")]
        assert ours < means[(quantity, "the seed's median forest")]
        assert ours < means[(quantity, "wells of the plate")]
    assert len(means) == 8
    assert page.stat().st_size > 1_000_000
