"""Numbered run directories, and what repeats a run: settings, versions, revision, data hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perturbgen.core.config import Settings
from perturbgen.core.errors import InputError, suggest
from perturbgen.core.files import disk_errors, require_file, require_writable, slug


def create_run(
    root: str | Path,
    name: str,
    settings: Settings,
    *,
    seed: int,
    data: Mapping[str, str] | None = None,
) -> Path:
    """A new numbered run directory ``root/0007-name-s1`` holding ``config.toml`` and ``env.json``.

    ``data`` names what was read, each with its hash (see :func:`file_hash`).
    """
    root = Path(root)
    require_writable(root / name)
    root.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed when it is whole, so that a number is never taken by half a run.
    with disk_errors(root), TemporaryDirectory(prefix=".new-", dir=root) as made:
        part = Path(made) / "run"
        part.mkdir()
        (part / "config.toml").write_text(settings.to_toml(), encoding="utf-8")
        (part / "env.json").write_text(json.dumps(environment(seed, data), indent=1))
        return _claim(part, root, f"{slug(name)}-s{seed}")


def _claim(part: Path, root: Path, name: str) -> Path:
    """Move a new run to the next free number."""
    while True:
        run = root / f"{max(_numbered(root), default=0) + 1:04d}-{name}"
        try:
            # Fails on a folder that holds something, as every run does: a process that took the
            # same number meanwhile is never replaced.
            return part.rename(run)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _numbered(root: Path) -> dict[int, Path]:
    """Run directories and whatever else took a number."""
    return {int(m[0]): p for p in root.iterdir() if (m := re.match(r"\d{4,}", p.name))}


def find_run(path: str | Path) -> Path:
    """The run directory that a path names; ``runs/latest`` is the one of the highest number.

    ``runs/latest-NAME`` is the newest called NAME, whatever its seed: with two trainings at once
    each is found by its name. A word and no symbolic link, which Windows lacks and the second
    training would turn away from the first; a folder that is really called so is itself.
    """
    path = Path(path)
    word, dash, name = path.name.partition("-")
    if word != "latest" or bool(dash) != bool(name) or path.exists():
        return path
    numbered = _numbered(path.parent) if path.parent.is_dir() else {}
    # what a killed training left under a number, or a file, is no run
    runs = {number: run for number, run in numbered.items() if (run / "config.toml").is_file()}
    called = {number: run.name.partition("-")[2] for number, run in runs.items()}
    fits = [n for n in runs if not name or re.fullmatch(rf"{re.escape(name)}(-s\d+)?", called[n])]
    if not fits:
        other = "perturbgen train, or another folder: RUNS/latest"
        names = sorted({re.sub(r"-s\d+$", "", called[number]) for number in runs})
        raise InputError(
            f"no run {f'called {name!r} ' if name else ''}in {path.parent}",
            expected="one that perturbgen train made",
            fix=suggest(name, names) if names else other,
        )
    return runs[max(fits)]


def environment(seed: int, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, git revision, seed, data hashes, command."""
    names = ("perturbgen", "numpy", "scipy", "pandas", "anndata", "torch", "scikit-learn")
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in names},
        "git": _git_revision(),
        "seed": seed,
        "data": dict(data or {}),
    }


def package_version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The commit of the source, with ``+changes`` if it is not clean; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        revision = git("rev-parse", "HEAD").strip()
        return revision + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def file_hash(path: str | Path, what: str = "file") -> str:
    """``sha256:...`` of a file, or of the names and hashes of all files of a folder."""
    path = Path(path)
    if not path.is_dir():
        with open(require_file(path, what), "rb") as handle:
            return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()
    files = sorted(part for part in path.rglob("*") if part.is_file())
    listing = "\n".join(f"{part.relative_to(path)} {file_hash(part)}" for part in files)
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
