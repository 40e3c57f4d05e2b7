"""Packages of somebody else, on the path for the time of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perturbgen.baselines import REGISTRY
from perturbgen.core import extensions
from perturbgen.evaluate import METRICS
from perturbgen.evaluate.catalogue import _can_be_used
from perturbgen.models import MODELS

Install = Callable[..., Path]


@pytest.fixture
def fresh() -> Iterator[Callable[[], None]]:
    """Nothing that was found before is remembered, neither before nor after the test."""
    before, path = set(sys.modules), list(sys.path)

    def forget() -> None:
        for name in set(sys.modules) - before:
            if name.startswith(("brought", "perturbgen_example")):
                del sys.modules[name]
        extensions._named_in.cache_clear()
        extensions._load.cache_clear()
        _can_be_used.cache_clear()
        for catalogue in (METRICS, REGISTRY, MODELS):
            catalogue._adopted.clear()
            catalogue._told.clear()

    forget()
    yield forget
    sys.path[:] = path
    forget()


@pytest.fixture
def install(fresh: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Write a module and its distribution, as an installer does, and put them on the path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(name: str, code: str, **points: str) -> Path:
        (site / f"{name}.py").write_text(code)
        about = site / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups: dict[str, list[str]] = {}
        for point, place in points.items():
            kind, _, called = point.partition("_")
            groups.setdefault(f"perturbgen.{kind}s", []).append(f"{called} = {place}")
        text = "".join(f"[{group}]\n" + "\n".join(lines) + "\n" for group, lines in groups.items())
        (about / "entry_points.txt").write_text(text)
        extensions._named_in.cache_clear()
        return site / f"{name}.py"

    return installed
