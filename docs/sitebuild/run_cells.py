"""Runs the cells of one tutorial in this folder, each with a file of its own for what it says.

Everything is caught at the level of the process, so that what commands and libraries print is
there, too: ``python run_cells.py SCRIPT FOLDER``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sitebuild.scripts import Tutorial


def _run_python(tutorial: Tutorial, said: Path) -> int:
    import __main__

    names = {"__name__": "__main__", "__file__": str(tutorial.path)}
    # classes of a tutorial are found again by name, in other processes as well
    __main__.__dict__.update(names)
    for number, cell in enumerate(tutorial.cells):
        _speak_into(said / f"{number:03}")
        try:
            exec(compile(cell.code, tutorial.path.name, "exec"), __main__.__dict__)
        except BaseException:  # noqa: BLE001 - SystemExit of a cell is a failure, too
            traceback.print_exc()
            sys.stderr.flush()
            return 1
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _speak_into(path: Path) -> None:
    """Standard output and errors go into this file, in the order in which they come."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _run_bash(tutorial: Tutorial, said: Path) -> int:
    lines = ["set -euo pipefail"]
    for number, cell in enumerate(tutorial.cells):
        lines += [f"exec >>'{said}/{number:03}' 2>&1", cell.code]
    return subprocess.run(["bash", "-c", "\n".join(lines)], check=False).returncode


if __name__ == "__main__":
    asked = Tutorial(Path(sys.argv[1]).resolve())
    runs = {"python": _run_python, "bash": _run_bash}
    sys.exit(runs[asked.language](asked, Path(sys.argv[2])))
