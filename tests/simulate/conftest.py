"""One tiny experiment in memory and one on disk, shared by the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from perturbgen.simulate import SimulatedExperiment, simulate


@pytest.fixture(scope="session")
def tiny() -> SimulatedExperiment:
    return simulate("tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate("tiny", seed=0, out=tmp_path_factory.mktemp("simulate") / "tiny")
