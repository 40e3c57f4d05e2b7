"""A thousand hostile commands: no traceback, no crash, no hang, nothing lost, the right exit code.

``python -m pytest tests/hostile`` runs them all and prints how many there were of each verdict.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.hostile.attacks import Case, cases
from tests.hostile.verbs import MADE, TEXTS, joined

ROOT = Path(__file__).parents[2]
SECONDS = 60.0  # a case that is not done by then hangs; on an idle machine none takes five
pytestmark = pytest.mark.slow


class Server:
    """A process that runs commands in its children."""

    def __init__(self) -> None:
        fixed = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        fixed |= {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | fixed,
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


@pytest.fixture(scope="module")
def servers() -> Iterator[SimpleQueue[Server]]:
    """Two of them, for two cores."""
    started = [Server(), Server()]
    queue: SimpleQueue[Server] = SimpleQueue()
    for server in started:
        queue.put(server)
    yield queue
    for server in started:
        server.close()


@pytest.fixture(scope="module")
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


def snapshot(folder: Path) -> dict[str, str]:
    """Every path and what it is: a hash, a link's target, a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "special"
    return found


def verdict(case: Case, found: dict[str, Any], before: dict[str, str], folder: Path) -> str:
    """What is wrong, or nothing."""
    after = snapshot(folder)
    ours = tuple(name for name in (case.written,) if name)
    lost = [name for name, what in before.items() if after.get(name) != what]
    new = [name for name in after if name not in before and not name.startswith(ours or ("\0",))]
    if found["code"] != 0:
        new = [name for name in after if name not in before]
    if found["hung"]:
        return "hang"
    if found["code"] < 0:
        return f"crash {found['code']}"
    if "Traceback" in found["err"] + found["out"]:
        return "traceback"
    if lost:
        return f"data lost: {lost[:3]}"
    if found["code"] not in case.codes:
        return f"wrong exit {found['code']}, not {sorted(case.codes)}"
    if new:
        return f"left behind: {new[:3]}"
    if not (found["err"] + found["out"]).strip():
        return "silent"
    return ""


def attack(case: Case, world: Path, place: Path, servers: SimpleQueue[Server]) -> tuple[str, str]:
    """Run a case in a copy of what it needs: the verdict, and what was said."""
    folder = place / "case"
    folder.mkdir(parents=True)
    for name in case.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source = world / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy2(source, folder / name)
    case.prepare(folder)
    before = snapshot(folder)
    command = tuple("" if word == "EMPTY" else word for word in case.command)
    server = servers.get()
    try:
        found = server.run(command, folder, place / "said")
    finally:
        servers.put(server)
    wrong = verdict(case, found, before, folder)
    shutil.rmtree(place, ignore_errors=True)
    return wrong, f"perturbgen {' '.join(case.command)}\n{found['out'][-300:]}{found['err'][-900:]}"


def test_every_attack_fails_well(
    world: Path,
    servers: SimpleQueue[Server],
    tmp_path: Path,
    record_property: Any,
    request: pytest.FixtureRequest,
) -> None:
    wanted = cases()
    if only := os.environ.get("HOSTILE"):
        wanted = [case for case in wanted if only in case.name]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(attack, case, world, tmp_path / str(number), servers)
            for number, case in enumerate(wanted)
        ]
        results = [job.result() for job in jobs]
    counts = Counter(wrong.partition(":")[0].partition(",")[0] or "well" for wrong, _ in results)
    print(f"{len(wanted)} hostile cases:", dict(counts.most_common()))  # noqa: T201
    bad = [
        f"{case.name}\n    {wrong}\n    {said.strip().replace(chr(10), chr(10) + '    ')}"
        for case, (wrong, said) in zip(wanted, results, strict=True)
        if wrong
    ]
    if log := os.environ.get("HOSTILE_LOG"):
        Path(log).write_text("\n\n".join(bad))
    assert not bad, f"{len(bad)} of {len(wanted)}:\n" + "\n\n".join(bad[:20])
