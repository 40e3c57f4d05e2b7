"""README's shell lines, pasted one after the other as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
# of a file of the reader's own, or more than a reader's quarter of an hour
OTHERS = ("init my.h5ad", "ingest kang.h5ad", "compare experiments/", "images --help")
SECTIONS = ("In Python", "Train a generative model", "Compare, and beat the baselines first")


def _section(title: str) -> str:
    text = README.read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _lines(title: str) -> list[str]:
    """The lines of a section that a shell is given."""
    found = re.findall(r"^    (perturbgen .*)$", _section(title), flags=re.MULTILINE)
    return [line for line in found if not any(other in line for other in OTHERS)]


def _pasted(lines: list[str], folder: Path) -> str:
    """What a shell that stops at the first failure says of the lines."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "perturbgen").write_text(f'#!/bin/sh\nexec {sys.executable} -m perturbgen "$@"\n')
    (tools / "perturbgen").chmod(0o755)
    paths = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(README.parent)}
    done = subprocess.run(
        ["sh", "-e"],
        input="\n".join(lines),
        cwd=folder,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_the_lines_for_cells_run_one_after_the_other(tmp_path: Path) -> None:
    [config] = re.findall(r"```toml\n(.*?)```", _section(SECTIONS[1]), flags=re.DOTALL)
    (tmp_path / "config.toml").write_text(config)
    lines = [line for title in SECTIONS for line in _lines(title)]
    assert len(lines) >= 16
    said = _pasted(lines, tmp_path)
    assert "factors fitted on them are too large" not in said
    made = {"page.html", "de.html", "predictions.parquet", "latents.h5ad", "submission.csv"}
    assert made <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_lines_for_profiles_run_one_after_the_other(tmp_path: Path) -> None:
    lines = _lines("Profiles and images")
    assert len(lines) == 5
    _pasted(lines, tmp_path)
    assert (tmp_path / "evaluation" / "report.html").is_file()


def test_no_line_guesses_the_number_of_a_run() -> None:
    guessed = re.findall(r"runs/\d+\S*", README.read_text(encoding="utf-8"))
    assert not guessed, "runs/latest-NAME is the newest of that name"
