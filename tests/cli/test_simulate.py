"""The verb ``simulate``: what it writes, prints and refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from perturbgen.cli import _run


def test_it_writes_the_folder_and_lists_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "with a space" / "tiny"
    smaller = ["--set", "cells.per_well=12", "--set", "plate.rows=2"]
    assert _run(["simulate", str(out), "--seed", "3", *smaller, "--json"]) == 0
    rows = {row["file"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {path.name for path in out.iterdir()}
    assert rows["de_train.parquet"]["holds"].endswith("x 305 columns")
    values = tomllib.loads((out / "simulation.toml").read_text())
    assert values["seed"] == 3
    assert values["settings"]["cells"]["per_well"] == 12


def test_a_dry_run_prints_the_settings_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[cells]\nper_well = 21\n[expression]\ngenes = 99\n")
    arguments = [
        "--preset",
        "small",
        "--config",
        str(config),
        "--set",
        "expression.genes=77",
        "--dry-run",
    ]
    assert _run(["simulate", str(tmp_path / "out"), *arguments]) == 0
    values = tomllib.loads(capsys.readouterr().out)
    assert values["cells"]["per_well"] == 21
    assert values["expression"]["genes"] == 77
    assert values["plate"]["compound_columns"] == 4
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_json_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "simulate",
        str(tmp_path / "out"),
        "--preset",
        "small",
        "--set",
        "cells.per_well=21",
        "--dry-run",
    ]
    assert _run([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert _run(arguments) == 0
    assert printed == tomllib.loads(capsys.readouterr().out)
    assert printed["cells"]["per_well"] == 21


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset", "smal"], "did you mean 'small'?"),
        (["--set", "cells.perwell=3"], "did you mean 'per_well'?"),
        (["--set", "cells.per_well=-1"], "greater than 0"),
        (
            ["--set", "plate.known_compounds=25"],
            "plate.known_compounds is 25, but the plates hold 24 compounds",
        ),
        (
            ["--set", "plate.lost_wells=25"],
            "fix          --set plate.lost_wells=24, or more plate.rows",
        ),
        (["--means", "nowhere.csv"], "no baseline CSV at"),
        (["--signatures", "nowhere.npz"], "no signatures NPZ at"),
        (["--plan", "nowhere"], "no layout folder at"),
        (["--config", "nowhere.toml"], "no configuration at"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["simulate", str(tmp_path / "out"), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert _run(["simulate", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    smaller = ["--set", "plate.rows=2", "--set", "expression.genes=40"]
    assert _run(["simulate", str(out), "--force", *smaller]) == 0
    assert (out / "truth.h5ad").exists()
