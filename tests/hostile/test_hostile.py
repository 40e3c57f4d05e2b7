"""A thousand hostile commands: no traceback, no crash, no hang, nothing lost, the right exit code.

``python -m pytest tests/hostile`` runs them all and prints how many there were of each verdict.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.hostile.attacks import Case, cases
from tests.hostile.conftest import Server

pytestmark = pytest.mark.slow


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
    if found["code"] == 0 and re.search(r"^\w*Error\b", found["err"], re.MULTILINE):
        return "an error, and exit 0"
    if found["code"] == 0 and case.written and case.written not in after:
        return f"exit 0, but there is no {case.written}"
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


def test_every_attack_fails_well(world: Path, servers: SimpleQueue[Server], tmp_path: Path) -> None:
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
