"""``perturbgen score-cells``: what is printed, written and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from perturbgen.cli import _run
from perturbgen.evaluate import VCC2026
from tests.evaluate.cell_eval2.world import COLUMN, CONTROL, world


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("cells")
    truth, prediction = world()
    truth.write_h5ad(folder / "truth.h5ad")
    prediction.write_h5ad(folder / "prediction.h5ad")
    return [str(folder / "prediction.h5ad"), str(folder / "truth.h5ad")]


WHERE = ["--perturbation", COLUMN, "--control", CONTROL]


def test_the_six_are_written_and_shown_between_their_ends(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["score-cells", *files, *WHERE, "--out", str(tmp_path / "scores")]) == 0
    said = capsys.readouterr()
    assert "mean score" in said.out + said.err
    panel = pd.read_csv(tmp_path / "scores/panel.csv", index_col="metric")
    assert list(panel.index) == list(VCC2026)
    place = (panel["value"] - panel["baseline"]) / (panel["replicate"] - panel["baseline"])
    pd.testing.assert_series_equal(panel["score"], place, check_names=False)
    scores = pd.read_csv(tmp_path / "scores/scores.csv", keep_default_na=False)
    assert (scores["perturbation"] == "").sum() == 1


def test_json_has_the_metrics_by_name(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--metrics", "pds_cosine,de_wilcoxon_sig_jaccard", "--splits", "1", "--json"]
    assert _run(["score-cells", *files, *WHERE, *wanted]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["metric"] for row in found] == ["pds_cosine", "de_wilcoxon_sig_jaccard"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--perturbation", "target", "--control", CONTROL], "target_gene"),
        (["--perturbation", COLUMN, "--control", "nontargeting"], "non-targeting"),
        ([*WHERE, "--metrics", "pds"], "pds_cosine"),
    ],
)
def test_mistakes_are_told(
    files: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["score-cells", *files, *words]) == 2
    assert said in capsys.readouterr().err
