"""Every verb on disks that are too small: it says so, and leaves nothing that looks finished."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.hostile.attacks import Verb
from tests.hostile.conftest import Server
from tests.hostile.verbs import VERBS, joined

SIZES = (8, 40, 120, 400, 1500)  # kB
WRITING = [verb for verb in map(Verb.read, joined(VERBS)) if verb.out is not None]
pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A function that gives a small disk of a size."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no small disk can be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=False)


@pytest.mark.parametrize("verb", WRITING, ids=lambda verb: f"{verb.name} {verb.inputs[0]}")
def test_a_full_disk_is_said_and_leaves_nothing(
    verb: Verb, disk: Path, world: Path, servers: SimpleQueue[Server], tmp_path: Path
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(world, folder)
    server = servers.get()
    wrong = []
    for size in SIZES:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        command = verb.command(out=str(disk / str(verb.out)))
        found = server.run(command, folder, tmp_path / "said")
        names = sorted(
            str(path.relative_to(disk)) for path in disk.rglob("[!.]*") if path.is_file()
        )
        if found["code"] == 0:
            break
        # a training that began is gone on with, and so is an extraction
        kept = [name for name in names if ".part/" not in name]
        begun = verb.name.endswith("train") or verb.name in ("compare", "generate")
        if found["code"] != 1 or "Traceback" in found["err"]:
            wrong.append(f"{size} kB: exit {found['code']}: {found['err'][-400:]}")
        elif "space" not in found["err"]:
            wrong.append(f"{size} kB does not say why: {found['err'][-300:]}")
        elif kept and not begun:
            wrong.append(f"{size} kB leaves {kept}")
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    servers.put(server)
    assert not wrong, "\n".join(wrong)
