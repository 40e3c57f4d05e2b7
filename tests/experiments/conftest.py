"""Experiment scripts as functions of their arguments, run in this process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from perturbgen import cli

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
Run = Callable[..., int]


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """By an experiment's name, a function that runs it with some arguments and returns its exit code."""

    def load(name: str) -> Run:
        monkeypatch.syspath_prepend(str(EXPERIMENTS / name))
        spec = importlib.util.spec_from_file_location(f"{name}_run", EXPERIMENTS / name / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        program.command()(module.main)
        return lambda *arguments: cli._run(
            [str(argument) for argument in arguments], program=program
        )

    return load
