"""Tutorials: scripts of Python or bash whose cells are text and code, run when the site is built.

A cell begins at a line ``# %%``. The comment right below it is its text, in Markdown; what follows
is its code. Both are one file that anybody can run: ``python start.py``, ``bash own_h5ad.sh``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
_LANGUAGES = {".py": "python", ".sh": "bash"}
_RUNNER = Path(__file__).with_name("run_cells.py")
# a page that the run wrote, shown where the text has this line
_PAGE = re.compile(r"^\{page\} (?P<file>\S+)(?: (?P<title>.+))?$", re.M)
_IMAGE = re.compile(r"!\[[^\]]*\]\((?P<file>[\w./-]+\.png)\)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SLOW = 900  # seconds after which a tutorial is stopped: it is no tutorial any more


class TutorialError(Exception):
    """A tutorial that did not run to its end."""


@dataclass(frozen=True)
class Cell:
    """A piece of a tutorial: its text in Markdown, its code, either perhaps empty."""

    text: str
    code: str


@dataclass(frozen=True)
class Tutorial:
    """A script: its path and its cells."""

    path: Path

    @property
    def name(self) -> str:
        """What its page is called."""
        return self.path.stem

    @property
    def language(self) -> str:
        """Python or bash."""
        return _LANGUAGES[self.path.suffix]

    @property
    def cells(self) -> list[Cell]:
        """The cells; what stands before the first one is not shown."""
        return read_cells(self.path.read_text())

    @property
    def shown(self) -> list[str]:
        """The files that its text shows, which its run has to write."""
        text = "\n".join(cell.text for cell in self.cells)
        found = [*_PAGE.finditer(text), *_IMAGE.finditer(text)]
        return sorted({match["file"] for match in found})


def tutorials(folder: Path = TUTORIALS) -> list[Tutorial]:
    """All tutorials, by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in _LANGUAGES)
    return [Tutorial(path) for path in paths]


def read_cells(source: str) -> list[Cell]:
    """The cells of a script."""
    found = []
    for part in re.split(r"^# %%.*\n", source, flags=re.M)[1:]:
        lines = part.splitlines()
        length = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        text = "\n".join(line[1:].removeprefix(" ") for line in lines[:length])
        found.append(Cell(text, "\n".join(lines[length:]).strip("\n")))
    return found


def fingerprint(tutorial: Tutorial) -> str:
    """Changes when the script, the package or what runs it does: then it is run again."""
    digest = hashlib.sha256(sys.version.encode())
    sources = [tutorial.path, Path(__file__), _RUNNER, ROOT / "constraints.txt"]
    for folder in (ROOT / "perturbgen", ROOT / "docs" / "example_package"):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sources += [path for path in files if "__pycache__" not in path.parts]
    for path in sources:
        # a cache may move with its folder
        own = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
        digest.update(str(own).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run(tutorial: Tutorial, cache: Path) -> Path:
    """The folder of what the tutorial said and showed, of an earlier run if nothing changed."""
    kept = cache / f"{tutorial.name}-{fingerprint(tutorial)}"
    if kept.exists():
        return kept
    for old in cache.glob(f"{tutorial.name}-*"):
        shutil.rmtree(old)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tutorial-") as scratch:
        where = Path(scratch) / "work"
        where.mkdir()
        said = _execute(tutorial, where)
        absent = [name for name in tutorial.shown if not (where / name).exists()]
        if absent:
            raise TutorialError(f"{tutorial.path.name} shows {absent[0]}, which it never wrote")
        part = Path(tempfile.mkdtemp(dir=cache))
        (part / "said.json").write_text(json.dumps(said))
        for name in tutorial.shown:
            (part / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(where / name, part / "files" / name)
    try:
        part.rename(kept)
    except OSError:  # another build was quicker
        if not kept.exists():
            raise
        shutil.rmtree(part)
    return kept


def _execute(tutorial: Tutorial, where: Path) -> dict[str, object]:
    """Runs the cells one after the other in one process: what each said, and the seconds of all."""
    said, temporary = where.parent / "said", where.parent / "tmp"
    said.mkdir()
    temporary.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "96",
        "NO_COLOR": "1",
        "TMPDIR": str(temporary),
        "PERTURBGEN_DATA": "",
        "REPOSITORY": str(ROOT),  # for the few tutorials that use files of it
        # two tutorials run at a time, so that each may use one core
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(_RUNNER), str(tutorial.path), str(said)]
    begun = time.monotonic()
    try:
        ended = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, timeout=_SLOW
        )
        trouble = f"exit code {ended.returncode}\n{ended.stderr}" if ended.returncode else ""
    except subprocess.TimeoutExpired:
        trouble = f"it took more than {_SLOW} s"
    outputs = [_tidy(path.read_text(), where) for path in sorted(said.iterdir())]
    if trouble:
        last = outputs[-1] if outputs else ""
        raise TutorialError(f"{tutorial.path.name} failed:\n{last[-4000:]}\n{trouble[-4000:]}")
    return {"outputs": outputs, "seconds": round(time.monotonic() - begun)}


def _tidy(text: str, where: Path) -> str:
    """Without colours and the names of this machine's folders."""
    names = {where: ".", where.parent: "", ROOT: "perturbgen-repository", Path.home(): "~"}
    for folder, name in names.items():
        text = text.replace(str(folder.resolve()), name).replace(str(folder), name)
    return _COLOURS.sub("", text).rstrip()


def page(tutorial: Tutorial, kept: Path | None) -> str:
    """The tutorial as a page of MyST: its text, its code, what that said if it was run."""
    said = json.loads((kept / "said.json").read_text()) if kept else {}
    cells = tutorial.cells
    parts = []
    for cell, output in zip(cells, said.get("outputs", [""] * len(cells)), strict=True):
        text = _PAGE.sub(lambda found: _frame(tutorial, found), cell.text)
        parts.append(_IMAGE.sub(lambda found: _picture(tutorial, found), text))
        if not kept:
            parts[-1] = _PAGE.sub("", _IMAGE.sub("", cell.text))
        if cell.code:
            parts.append(_fence("{code-block} " + tutorial.language, cell.code, "tutorial-code"))
        if output:
            parts.append(_fence("{code-block} text", output, "tutorial-output"))
    how = f"{tutorial.language} docs/tutorials/{tutorial.path.name}"
    when = f"when the site was built ({said['seconds']} s, one core)" if kept else "(left out)"
    parts.append(
        f"---\n\n*This page is a script, and what it says was said {when}. "
        f"Run it yourself: `{how}`.*\n"
    )
    return "\n\n".join(parts)


def _picture(tutorial: Tutorial, found: re.Match[str]) -> str:
    return found[0].replace(f"({found['file']})", f"({tutorial.name}/{found['file']})")


def _fence(directive: str, content: str, style: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", content)), default=0))
    return f"{ticks}{directive}\n:class: {style}\n\n{content}\n{ticks}"


def _frame(tutorial: Tutorial, found: re.Match[str]) -> str:
    """A page in the page, and a link that opens it alone."""
    where = f"{tutorial.name}/{found['file']}"
    title = found["title"] or found["file"]
    return (
        f'<div class="shown-page"><iframe src="{where}" title="{title}" loading="lazy"></iframe>\n'
        f'<p><a href="{where}" target="_blank">{title}</a></p></div>'
    )
