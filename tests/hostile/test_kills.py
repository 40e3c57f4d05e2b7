"""Runs, comparisons and generations, stopped at random moments, half of them with a rival.

Whatever the moment: nothing is lost or half-written, no process stays behind, and what is finished
afterwards is what was never stopped. Three times each, and printed for more by::

    HOSTILE_KILLS=50 python -m pytest -s tests/hostile/test_kills.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hostile.conftest import FIXED

KILLS = int(os.environ.get("HOSTILE_KILLS", "3"))
MARK = "HOSTILE_TRIAL"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Work:
    """A command, how it is gone on with, and what it leaves in the end."""

    command: str
    seconds: float  # about as long as it takes

    def again(self, folder: Path) -> str:
        """What finishes the work in a folder where it was stopped."""
        runs = sorted(folder.glob("new/[0-9]*/checkpoint/last.pt"))
        if self.command.startswith("train") and runs:
            return f"train --resume {runs[0].parents[1].relative_to(folder)} --device cpu"
        return self.command

    def result(self, folder: Path) -> list[object]:
        """The numbers in what was left."""
        if self.command.startswith("train"):
            path = sorted(folder.glob("new/[0-9]*/checkpoint/best.pt"))[0]
            state = torch.load(path, weights_only=True)["model"]
            return [value.numpy().tobytes() for value in state.values()]
        if self.command.startswith("compare"):
            return [json.loads((folder / "new" / "scorecard.json").read_text())["rows"]]
        import anndata

        found = []
        for path in sorted(folder.glob("new/replicate-*.h5ad")):
            cells = anndata.read_h5ad(path)
            found += [path.name, cells.X.sum(), cells.X.data.tobytes(), list(cells.obs_names)]
        return found


WORKS = {
    "train": Work(
        "train nbvae.toml --device cpu --runs new --set training.epochs=60 --set board.every=1000",
        7,
    ),
    "compare": Work("compare compare.toml --no-report --workers 2 --out new", 8),
    "generate": Work(
        "generate runs/0001-nbvae-s0 --cells counts.h5ad --conditions sim/id_map.csv"
        " --samplers samplers --replicates 12 --out new",
        6,
    ),
}
COMPARE = """seeds = [0, 1]
[data]
folder = "sim"
truth = "de_truth.parquet"
[splits.compounds]
folds = 3
[methods.zeros]
[methods.gene_mean]
[methods.random_forest]
settings = { trees = 60, components = 10 }
"""


def start(command: str, folder: Path, mark: str) -> subprocess.Popen[str]:
    """A process of its own session, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "perturbgen", *command.split()],
        cwd=folder,
        env=os.environ | FIXED | {MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def alive(mark: str) -> list[int]:
    """Processes of a trial that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def prepared(world: Path, place: Path) -> Path:
    """A folder with all that the works read."""
    shutil.copytree(world, place)
    (place / "compare.toml").write_text(COMPARE)
    return place


def stop(process: subprocess.Popen[str], number: int) -> None:
    """Ctrl-C reaches the whole group, other signals the process alone."""
    if process.poll() is None:
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)


def trial(name: str, folder: Path, rng: np.random.Generator, mark: str, rivals: int) -> str:
    """Stop a work at a random moment and finish it: what went wrong, or nothing."""
    work = WORKS[name]
    number = int(rng.choice(SIGNALS))
    processes = [start(work.command, folder, mark) for _ in range(1 + rivals)]
    time.sleep(float(rng.uniform(0.2, work.seconds)))
    stop(processes[0], number)
    said = [process.communicate(timeout=120)[0] for process in processes]
    codes = [process.returncode for process in processes]
    deadline = time.monotonic() + 5
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    if orphans := alive(mark):
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        return f"orphans after {number}: {len(orphans)}"
    if any("Traceback" in text for text in said):
        return f"traceback after {number}: {said}"
    allowed = {0, 1, 128 + number, -number}
    if codes[0] not in allowed or any(code not in (0, 1) for code in codes[1:]):
        return f"exit {codes} after {number}: {said}"
    done = subprocess.run(
        [sys.executable, "-m", "perturbgen", *work.again(folder).split()],
        cwd=folder,
        env=os.environ | FIXED,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return f"cannot be finished: {done.stderr[-600:]}" if done.returncode else ""


@pytest.fixture(scope="module")
def expected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """What every work leaves if nothing stops it."""
    folder = prepared(world, tmp_path_factory.mktemp("whole") / "world")
    found = {}
    for name, work in WORKS.items():
        process = start(work.command, folder, "whole")
        said = process.communicate(timeout=180)[0]
        assert process.returncode == 0, said
        found[name] = work.result(folder)
        shutil.rmtree(folder / "new")
    return found


@pytest.mark.parametrize("name", WORKS)
def test_what_is_stopped_is_finished_as_if_it_never_was(
    name: str, world: Path, expected: dict[str, list[object]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(list(WORKS).index(name))
    verdicts: Counter[str] = Counter()
    for number in range(KILLS):
        folder = prepared(world, tmp_path / str(number))
        # two trainings make two runs, which is no conflict
        wrong = trial(name, folder, rng, f"{os.getpid()}-{name}-{number}", number % 2)
        if not wrong and WORKS[name].result(folder) != expected[name]:
            wrong = "another result"
        if not wrong:
            left = [path.name for path in (folder / "new").rglob("*") if ".part" in path.name]
            wrong = f"visible leftovers: {left}" if any(n[0] != "." for n in left) else ""
        verdicts[wrong or "well"] += 1
        shutil.rmtree(folder)
    print(f"{name} stopped {KILLS} times: {dict(verdicts)}")  # noqa: T201
    assert set(verdicts) == {"well"}
