"""The import rules hold, importing the package is cheap, and README knows the rooms there are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_import_rules_hold() -> None:
    code = (
        "import sys; from importlinter.cli import lint_imports;"
        " sys.exit(lint_imports(no_cache=True))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_package_brings_no_heavy_library() -> None:
    code = (
        "import sys, perturbgen, perturbgen.cli;"
        " print({'torch', 'pandas', 'anndata'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_every_name_of_the_public_face_is_there() -> None:
    import perturbgen

    assert all(getattr(perturbgen, name) is not None for name in dir(perturbgen))
    assert 35 <= len(dir(perturbgen)) - len(perturbgen._FACE) <= 50
    with pytest.raises(AttributeError, match="no name 'nothing'"):
        _ = perturbgen.nothing


def _places() -> list[tuple[str, str]]:
    """What README's tables of rooms name in backticks, each with the rooms of its line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## The rooms")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (`.*?) \| (.*) \|$", section, flags=re.M)
    named = re.compile(r"`([^`]+)`")
    return [
        (rooms, name)
        for rooms, text in lines
        for name in named.findall(text)
        if not name.startswith("perturbgen ")  # a command
    ]


def _names_of(room: Path) -> set[str]:
    """The files of a room, what they define, and what their classes do."""
    found = set()
    for path in room.rglob("*.py") if room.is_dir() else [room.with_suffix(".py")]:
        found.add(path.stem)
        tops = ast.parse(path.read_text(encoding="utf-8")).body
        classes = [node.body for node in tops if isinstance(node, ast.ClassDef)]
        for node in (*tops, *chain.from_iterable(classes)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = (name for target in targets for name in ast.walk(target))
                found |= {name.id for name in names if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize(("rooms", "name"), _places())
def test_what_the_readme_names_is_in_its_room(rooms: str, name: str) -> None:
    package = ROOT / "perturbgen"
    homes = [package / room for room in re.findall(r"`([^`]+)`", rooms)]
    other, _, last = name.partition(".")
    if last.isidentifier() and (package / other).is_dir():  # of another room, named with it
        homes, name = [package / other], last
    if re.search(r"[/.]", name):
        places = [ROOT, package, *homes, *(ROOT / home.name for home in homes)]
        assert any((place / name).exists() for place in places), f"no {name} in {rooms}"
    else:
        assert any(name in _names_of(home) for home in homes), f"no {name} in {rooms}"


def test_the_readme_has_a_line_for_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The rooms")[2]
    lined = " ".join(line for line in text.splitlines() if line.startswith("| `"))
    rooms = {path.stem for path in (ROOT / "perturbgen").iterdir() if path.stem[0] != "_"}
    assert {room for room in rooms if f"`{room}`" not in lined} == set()
