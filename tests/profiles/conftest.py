from pathlib import Path

import numpy as np
import pytest

from perturbgen.profiles.pairs import Paired, pair, read_wells
from perturbgen.simulate.paired import IMAGES, L1000, write_paired


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up tables, written once."""
    return write_paired(tmp_path_factory.mktemp("cross") / "paired", compounds=96)


@pytest.fixture(scope="session")
def paired(folder: Path) -> Paired:
    """The made-up pairs."""
    wells = read_wells(folder / "images.csv.gz", IMAGES), read_wells(folder / "l1000.csv.gz", L1000)
    return pair(*wells, null_groups=200, rng=np.random.default_rng(0))
