"""Experiments shared by the tests of this room: tiny ones, and the world of the real size."""

from __future__ import annotations

from pathlib import Path

import pytest

from perturbgen.simulation import SimulatedExperiment, World, build_world, preset_settings, simulate


@pytest.fixture(scope="session")
def tiny() -> SimulatedExperiment:
    return simulate("tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate("tiny", seed=0, out=tmp_path_factory.mktemp("simulate") / "tiny")


@pytest.fixture(scope="session")
def op3_world(real_data: Path) -> World:
    """The semi-real experiment at its full size, as it was calibrated."""
    op3 = real_data / "op3"
    sources = {
        "layout": op3,
        "baseline": op3 / "celltype_baseline_means.csv",
        "signatures": op3 / "de_ranks_4x135x6349.npz",
    }
    return build_world(preset_settings("op3", sources=sources), seed=7)
