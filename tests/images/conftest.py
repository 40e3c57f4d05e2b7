from pathlib import Path

import pytest

from perturbgen.simulate.images import WRITERS


@pytest.fixture(scope="session")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every tiny data set, written once; a test that changes one copies it first."""
    root = tmp_path_factory.mktemp("imaging")
    return {name: write(root / name) for name, write in WRITERS.items()}
