"""Experiment scripts as functions of their arguments, run in this process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer

from perturbgen import cli
from perturbgen.profiles.crossmodal import PairedProfiles

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
Run = Callable[..., int]

# Where the modules beside an experiment's run.py are found, which have tests of their own.
sys.path += [
    str(EXPERIMENTS / name)
    for name in (
        "bbbc021",
        "calibration",
        "cell_painting",
        "cross_modal",
        "op3_openproblems",
        "paired",
        "rxrx19a",
        "samplers",
        "states",
    )
]


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """By an experiment's name, a function that runs it with some arguments and returns its exit
    code.
    """

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


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up tables of images and L1000, written once."""
    from paired_fixture import write_paired

    return write_paired(tmp_path_factory.mktemp("cross") / "paired", compounds=96)


@pytest.fixture(scope="session")
def paired(folder: Path) -> PairedProfiles:
    """The made-up pairs."""
    from paired_fixture import IMAGES, L1000
    from pairs import pair, read_wells

    wells = read_wells(folder / "images.csv.gz", IMAGES), read_wells(folder / "l1000.csv.gz", L1000)
    return pair(*wells, null_groups=200, rng=np.random.default_rng(0))
