"""``init`` at a terminal: what it asks, under a pseudo-terminal as a person types."""

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from perturbgen.core.config import merge


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A file whose perturbations can only be hoped for, and whose control by none of its names."""
    rng, n = np.random.default_rng(0), 120
    names = {"CellLine": ["A", "B"], "Agent": ["zeta", "eta", "theta"], "Tube": ["t1", "t2", "t3"]}
    obs = pd.DataFrame({name: rng.choice(values, n) for name, values in names.items()})
    counts = rng.poisson(1.0, (n, 20)).astype(np.float32)
    AnnData(counts, obs=obs.set_axis([f"c{i}" for i in range(n)])).write_h5ad(
        tmp_path / "mine.h5ad"
    )
    return tmp_path / "mine.h5ad"


def typed(folder: Path, answers: list[str]) -> tuple[int, str]:
    """The exit code and all that is seen where each question gets its answer."""
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "perturbgen", "init", "mine.h5ad"]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    child = subprocess.Popen(
        command, cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    seen, waiting = "", list(answers)
    while chunk := _read(main):
        seen += chunk
        if waiting and seen.endswith(("its column: ", "its value: ")):
            os.write(main, waiting.pop(0).encode())
    os.close(main)
    assert not waiting, seen
    return child.wait(timeout=60), seen


def _read(main: int) -> str:
    # what is never asked would be waited for without end
    assert select.select([main], [], [], 60)[0], "nothing was said for a minute"
    try:
        return os.read(main, 4096).decode(errors="replace").replace("\r\n", "\n")
    except OSError:  # the other side has closed
        return ""


def test_guesses_that_are_not_sure_are_asked(cells: Path) -> None:
    code, seen = typed(cells.parent, ["\n", "zeta\n"])
    assert code == 0, seen
    assert "compound may be Agent: 3 values" in seen
    columns = merge(cells.parent / "mine" / "columns.toml")
    assert columns["vehicle"] == "zeta"
    assert columns["columns"]["compound"] == "Agent"


def test_an_answer_changes_what_is_asked_next(cells: Path) -> None:
    code, seen = typed(cells.parent, ["Tube\n", "\n"])
    assert code == 0, seen
    assert "vehicle may be t" in seen
    assert merge(cells.parent / "mine" / "columns.toml")["vehicle"].startswith("t")


def test_an_answer_that_fits_nothing_is_asked_again(cells: Path) -> None:
    code, seen = typed(cells.parent, ["Agnet\n", "Agent\n", "etta\n", "eta\n"])
    assert code == 0, seen
    assert "did you mean 'Agent'" in seen
    assert "did you mean 'eta'" in seen
    assert merge(cells.parent / "mine" / "columns.toml")["vehicle"] == "eta"


def test_who_leaves_at_a_question_leaves_nothing(cells: Path) -> None:
    code, seen = typed(cells.parent, ["\x04"])  # Ctrl-D
    assert code == 130  # as after Ctrl-C anywhere else
    assert "Traceback" not in seen
    assert [path.name for path in cells.parent.iterdir()] == ["mine.h5ad"]
