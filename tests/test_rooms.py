"""The import rules of pyproject.toml hold; importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys
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
