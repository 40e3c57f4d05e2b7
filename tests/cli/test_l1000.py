"""The verbs of ``l1000``: simulate, check, extract."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from perturbgen.cli import _run


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny simulated screen in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("l1000") / "a screen"
    options = ["--preset", "tiny", "--set", "genes=30", "--json"]
    assert _run(["-q", "l1000", "simulate", str(folder), *options]) == 0
    return folder


def test_a_simulated_screen_is_checked_and_extracted(
    screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    (matrix,) = screen.glob("*.gctx")
    genes = ["--landmarks", str(screen / "gene_info.txt")]
    assert _run(["l1000", "check", str(matrix), *genes, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["format"], row["samples"], row["genes"], row["ids of"]) == (
        "gctx",
        312,
        30,
        "samples",
    )
    assert (row["wanted genes"], row["last at"]) == ("30 of 30", 29)
    assert (row["not finite"], row["repeated ids"]) == (0, 0)

    command = ["l1000", "extract", str(matrix), "--meta", str(screen / "inst_info.txt"), *genes]
    assert (
        _run(
            [
                *command,
                "--out",
                str(tmp_path / "out"),
                "--dtype",
                "float16",
                "--clip",
                "5",
                "--json",
            ]
        )
        == 0
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["samples"], row["genes"], row["controls"], row["perturbagens"]) == (
        312,
        30,
        104,
        26,
    )
    values = np.load(tmp_path / "out" / "profiles.npy")
    assert values.dtype == np.float16
    assert np.abs(values).max() <= 5


def test_a_dry_run_prints_the_settings_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("genes = 50\n")
    arguments = [
        "--preset",
        "nonlinear",
        "--config",
        str(config),
        "--set",
        "design.replicates=7",
        "--dry-run",
    ]
    assert _run(["l1000", "simulate", str(tmp_path / "out"), *arguments]) == 0
    values = tomllib.loads(capsys.readouterr().out)
    assert (values["genes"], values["design"]["replicates"], values["biology"]["gated_share"]) == (
        50,
        7,
        1.0,
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "nowhere.gctx"], "no GCTX or GCT file at"),
        (["extract", "nowhere.gctx", "--out", "OUT"], "no GCTX or GCT file at"),
        (["extract", "MATRIX", "--out", "OUT", "--dtype", "float61"], "did you mean 'float16'"),
        (["extract", "MATRIX", "--out", "OUT"], "not every file has all 978 wanted genes"),
        (["extract", "MATRIX", "--out", "OUT", "--landmarks", "no.grp"], "no list of genes at"),
        (
            ["extract", "MATRIX", "--out", "OUT", "--common-genes", "--meta", "no.txt"],
            "no metadata table at",
        ),
        (
            ["extract", "MATRIX", "--out", "OUT", "--common-genes", "--meta", "PERTS"],
            "describes perturbagens",
        ),
        (["extract", "MATRIX", "--out", "OUT", "--common-genes", "--transposed"], "sample"),
        (["simulate", "OUT", "--preset", "huge"], "no preset 'huge'"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing(
    arguments: list[str],
    says: str,
    screen: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "MATRIX": next(screen.glob("*.gctx")),
        "OUT": tmp_path / "out",
        "PERTS": screen / "pert_info.txt",
    }
    assert _run(["l1000", *(str(names.get(part, part)) for part in arguments)]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
