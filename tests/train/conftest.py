from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from perturbgen.train import RunSettings, train

N_CELLS, N_GENES = 90, 15


def make_cells() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "cell_type": rng.choice(["B", "NK", "T"], N_CELLS),
            "compound": rng.choice(["DMSO", "X"], N_CELLS),
        },
        index=[f"c{i}" for i in range(N_CELLS)],
    )
    level = rng.gamma(1, 2, N_GENES) * (
        1 + 3 * np.eye(3, N_GENES)[pd.factorize(obs["cell_type"], sort=True)[0]]
    )
    counts = sparse.csr_matrix(rng.poisson(level + 0.1))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


@pytest.fixture
def cells() -> AnnData:
    return make_cells()


@pytest.fixture
def cells_file(tmp_path: Path, cells: AnnData) -> Path:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def make_settings(path: Path, *overrides: str) -> RunSettings:
    """The settings of a tiny run."""
    base = {
        "name": "tiny",
        "data": {"path": str(path)},
        "conditions": {"cell_type": {}, "compound": {}},
        "model": {"latent": 2, "decoder": {"hidden": [8]}},
        "annealing": {"warmup": 1},
        "training": {"epochs": 3, "batch_size": 16},
    }
    if "model.kind=dgd" in overrides:
        del base["annealing"]
    return RunSettings.load(base=base, overrides=overrides)


@pytest.fixture
def settings(cells_file: Path):
    """A function from overrides to settings."""
    return partial(make_settings, cells_file)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cells.h5ad`` and a finished run on it; a test that damages it copies it."""
    folder = tmp_path_factory.mktemp("finished")
    make_cells().write_h5ad(folder / "cells.h5ad")
    train(make_settings(folder / "cells.h5ad"), runs=folder / "runs", accelerator="cpu")
    return folder
