"""images train, embed and evaluate from the command line: a run, its embedding, and what both are
worth."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from perturbgen.cli import _run

pytestmark = pytest.mark.usefixtures("no_pictures")


def table(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return json.loads(capsys.readouterr().out)


def test_a_run_is_trained_asked_embedded_and_its_embedding_measured(
    plates: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--set", "model.widths=[4]", "--set", "training.epochs=1", "--set", "board.every=9"]
    where = ["--runs", str(tmp_path), "--device", "cpu"]
    assert _run(["images", "train", "--data", str(plates), *small, *where, "--json"]) == 0
    assert table(capsys)[0]["measure"] == "validation/objective"
    page = tmp_path / "page.html"
    assert _run(["images", "evaluate", str(trained), "--json", "--plots", str(page)]) == 0
    assert "know which siRNAs share a plate" in page.read_text()
    assert {row["decoding"] for row in table(capsys)} == {
        "independent",
        "plate_group",
        "assignment",
    }
    out = tmp_path / "all.profiles"
    assert _run(["images", "embed", str(trained), "--out", str(out), "--json"]) == 0
    rows = table(capsys)[0]["rows"]
    assert rows == len(pd.read_parquet(out / "meta.parquet"))
    pairs = tmp_path / "pairs.csv"
    pd.DataFrame(
        [(a, b) for a in range(8) for b in range(a)], columns=["entity1", "entity2"]
    ).to_csv(pairs, index=False)
    options = [
        "--same",
        "sirna_id",
        "--controls",
        "sirna_id=9|8",
        "--batch",
        "experiment",
        "--draws",
        "99",
    ]
    assert (
        _run(["images", "evaluate", str(out), *options, "--relations", str(pairs), "--json"]) == 0
    )
    found = {str(row["measure"]).split(" (")[0]: row for row in table(capsys)}
    assert found["mAP among all wells"]["n"] == 8
    assert found["recall of known relations"]["n"] == 28
    # all pairs are known: chance
    assert found["recall of known relations"]["value"] == pytest.approx(0.1, abs=0.05)
    assert {
        "percent replicating",
        "consistency",
        "magnitude",
        "mAP against controls",
        "iLISI of experiment",
    } <= set(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "nothing to train on"),
        (["train", "--resume", "RUN", "--dry-run"], "do not go with --resume"),
        (["train", "--data", "DATA", "--set", "model.hed=arcface"], "unknown key 'model.hed'"),
        (["evaluate", "RUN", "--same", "sirna_id"], "--same has no effect"),
        (["evaluate", "RUN", "--norm", "bach"], "--norm 'bach'"),
        (["evaluate", "RUN", "--part", "tets"], "no part 'tets'"),
        (["evaluate", "RUN", "--plots", "page.csv"], "--plots"),
        (["embed", "RUN", "--out", "DATA"], "exists and is no profile folder"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str],
    message: str,
    plates: Path,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"RUN": str(trained), "DATA": str(plates)}
    assert _run(["images", *(places.get(argument, argument) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_profiles_need_a_column_to_be_measured_by(
    plates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["images", "evaluate", str(plates)]) == 2
    assert "evaluated by a column" in capsys.readouterr().err


def test_a_dry_run_prints_every_setting(plates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["images", "train", "--data", str(plates), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["one_experiment"] is True
