from pathlib import Path

import pytest

from perturbgen.simulation.images import WRITERS

SMALLER = {"rxrx19a": {"features": 256}}


class Written(dict[str, Path]):
    """Every tiny data set, written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, name: str) -> Path:
        self[name] = WRITERS[name](self.root / name, **SMALLER.get(name, {}))
        return self[name]


@pytest.fixture(scope="session")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A test that changes one copies it first."""
    return Written(tmp_path_factory.mktemp("imaging"))
