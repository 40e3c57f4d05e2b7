"""Builds the site: runs the tutorials, writes the reference, calls Sphinx, follows the links.

``python docs/build.py`` (or ``make docs``) writes ``docs/_build/html``. Tutorials are run again
only when they, or the package, have changed. Whatever fails ends the build with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from sitebuild import api, commands, scripts, settings, tables
from sitebuild.links import broken_links

_SHELVED = ("_build", "__pycache__", "*.py", "*.sh")  # of the copy that Sphinx reads


def main() -> int:
    """The exit code of the build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "_build", help="where all of it lies")
    parser.add_argument("--no-run", action="store_true", help="leave out what tutorials say")
    asked = parser.parse_args()
    begun = time.monotonic()
    source, site = asked.out / "source", asked.out / "html"
    try:
        ran = _run_all(asked.out / "tutorials", leave_out=asked.no_run)
    except scripts.TutorialError as error:
        print(error, file=sys.stderr)
        return 1
    _stage(source, ran)
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(asked.out / "doctrees"), str(source), str(site)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    if subprocess.run(command, env=environment, check=False).returncode:
        return 1
    broken = broken_links(site)
    for line in broken:
        print(f"broken link: {line}", file=sys.stderr)
    if not broken:
        print(f"{site / 'index.html'} ({time.monotonic() - begun:.0f} s)")
    return int(bool(broken))


_Ran = list[tuple[scripts.Tutorial, Path | None]]


def _run_all(cache: Path, *, leave_out: bool) -> _Ran:
    """Every tutorial with the folder of what it said; two run at a time, one core each."""
    found = scripts.tutorials()
    if leave_out:
        return [(tutorial, None) for tutorial in found]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return list(zip(found, pool.map(lambda one: scripts.run(one, cache), found), strict=True))


def _stage(source: Path, ran: _Ran) -> None:
    """A copy of this folder with the pages that are written: what Sphinx reads."""
    kept = source.with_name("source.new")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(HERE, kept, ignore=shutil.ignore_patterns(*_SHELVED, "sitebuild"))
    shutil.copy(HERE / "conf.py", kept)
    shutil.copytree(HERE / "sitebuild", kept / "sitebuild")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, kept / name)
    (kept / "_extra").mkdir()
    written = {f"reference/commands/{name}": text for name, text in commands.pages().items()}
    written |= {f"reference/python/{name}": text for name, text in api.pages().items()}
    plain = tables.pages() | settings.pages()
    written |= {f"reference/{name}": text for name, text in plain.items()}
    written |= {f"tutorials/{one.name}.md": scripts.page(one, said) for one, said in ran}
    for name, text in written.items():
        path = kept / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for one, said in ran:
        if said:
            _stage_files(one, said / "files", kept)
    _replace(kept, source)


def _stage_files(tutorial: scripts.Tutorial, files: Path, kept: Path) -> None:
    for name in tutorial.shown:
        # pictures are Sphinx' own; pages go to the same place of the site as they are
        folder = kept if name.endswith(".png") else kept / "_extra"
        place = folder / "tutorials" / tutorial.name / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files / name, place)


def _replace(kept: Path, source: Path) -> None:
    """Pages that are the same keep their times, so that Sphinx reads only the others again."""
    for path in kept.rglob("*"):
        old = source / path.relative_to(kept)
        if path.is_file() and old.is_file() and old.read_bytes() == path.read_bytes():
            shutil.copystat(old, path)
    shutil.rmtree(source, ignore_errors=True)
    kept.rename(source)


if __name__ == "__main__":
    sys.exit(main())
