"""A small world of files, and servers that run commands on copies of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.hostile.verbs import MADE, TEXTS, joined

ROOT = Path(__file__).parents[2]
SECONDS = 60.0  # a command that is not done by then hangs; on an idle machine none takes five
FIXED = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")} | {
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "120",
    "NO_COLOR": "1",
    "TERM": "dumb",
}


class Server:
    """A process that runs commands in its children."""

    def __init__(self, kernels: Path) -> None:
        # compiled anew with checks: a kernel that reads out of bounds must fail, not be lucky
        checks = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(kernels)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | FIXED | checks,
        )

    def run(self, command: tuple[str, ...], folder: Path, said: Path) -> dict[str, Any]:
        """What became of a command."""
        said.mkdir(parents=True, exist_ok=True)
        job = {"command": command, "folder": str(folder), "said": str(said), "seconds": SECONDS}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        for name in ("out", "err"):
            path = said / name
            found[name] = path.read_text(errors="replace") if path.exists() else ""
        return found

    def close(self) -> None:
        """End it."""
        self.process.communicate()


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleQueue[Server]]:
    """Two of them, for two cores."""
    kernels = tmp_path_factory.mktemp("kernels")
    started = [Server(kernels), Server(kernels)]
    queue: SimpleQueue[Server] = SimpleQueue()
    for server in started:
        queue.put(server)
    yield queue
    for server in started:
        server.close()


@pytest.fixture(scope="package")
def world(servers: SimpleQueue[Server], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of every kind that a verb reads."""
    folder = tmp_path_factory.mktemp("world")
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    server = servers.get()
    for line in joined(MADE):
        found = server.run(tuple(line.split()), folder, folder / "said")
        assert found["code"] == 0, f"{line}\n{found['err']}"
    servers.put(server)
    shutil.rmtree(folder / "said")
    for events in folder.rglob("events.out.*"):
        events.unlink()  # large, and read by no verb
    return folder
