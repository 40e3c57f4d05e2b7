"""A small experiment with every label of the real one, and runs trained on it for a moment."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from perturbgen.generate import SamplerSettings
from perturbgen.predict import PredictSettings
from perturbgen.train import RunSettings, TrainedRun, load_run
from perturbgen.train import train as train_model

COMPOUNDS = [f"drug {i}" for i in range(6)]
KNOWN = COMPOUNDS[:3]
GENES = [f"g{i:02d}" for i in range(24)]
FAST = PredictSettings(estimators=("mean_t",), replicates=1, levels=2)
FEW_TREES = SamplerSettings(trees=10)


def make_experiment(*, everything: bool = False, per_well: int = 5) -> AnnData:
    """T cells have all compounds; B cells the known ones, or all with ``everything``, the same
    cells in both.
    """
    rng = np.random.default_rng(0)
    level = rng.gamma(1, 3, len(GENES)) + 0.3
    effect = {name: np.exp(rng.normal(0, 0.7, len(GENES))) for name in COMPOUNDS} | {"DMSO": 1.0}
    rows, counts = [], []
    for p in range(3):
        for i, compound in enumerate([*COMPOUNDS, *["DMSO"] * 3]):
            well = f"{'ABC'[i % 3]}{i // 3 + 1}"
            for kind, shift in (("T", 0), ("B", 5)):
                n = per_well + int(rng.integers(3))
                here = rng.poisson(np.roll(level, shift) * effect[compound], (n, len(GENES)))
                if kind == "B" and compound not in [*KNOWN, "DMSO"] and not everything:
                    continue
                label = (
                    kind,
                    compound,
                    f"plate {p}",
                    well,
                    f"donor {p}",
                    well[0],
                    compound == "DMSO",
                )
                rows += [label] * n
                counts.append(here)
    names = ["cell_type", "compound", "plate", "well", "donor", "row", "control"]
    obs = pd.DataFrame(rows, columns=names)
    obs.index = pd.Index(
        obs[["plate", "well", "cell_type"]].agg(" ".join, axis=1)
        + [f" {i}" for i in range(len(obs))]
    )
    matrix = sparse.csr_matrix(np.vstack(counts))
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=GENES), uns={"vehicle": "DMSO"})


def wanted_table() -> pd.DataFrame:
    return pd.DataFrame({"cell_type": "B", "compound": COMPOUNDS[3:]})


@pytest.fixture(scope="session")
def experiment_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "cells.h5ad"
    make_experiment().write_h5ad(path)
    return path


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers fitted on the way have ten trees, not 200: nothing here is about their fit."""
    small = partial(SamplerSettings, trees=FEW_TREES.trees)
    monkeypatch.setattr("perturbgen.generate.sampler.SamplerSettings", small)


@pytest.fixture
def experiment() -> AnnData:
    return make_experiment()


def train(folder: Path, **sections: object) -> TrainedRun:
    base = {
        "name": "tiny",
        "conditions": {"cell_type": {}, "compound": {}, "plate": {}},
        "annealing": {"warmup": 0},
        "training": {"epochs": 2, "batch_size": 64, "threads": 1},
        **sections,
    }
    if base.get("model", {}).get("kind") == "dgd":
        del base["annealing"]
    settings = RunSettings.load(base=base)
    with pytest.MonkeyPatch.context() as patch:
        # The figures of the board take nine tenths of such a short training.
        patch.setattr("perturbgen.train.board.Board.epoch", lambda *_: None)
        return load_run(train_model(settings, runs=folder / "runs", accelerator="cpu"))


@pytest.fixture(scope="session")
def vae(experiment_file: Path) -> TrainedRun:
    model = {"latent": 2, "decoder": {"hidden": [8], "additive": True}}
    return train(experiment_file.parent, data={"path": str(experiment_file)}, model=model)


@pytest.fixture(scope="session")
def dgd(experiment_file: Path) -> TrainedRun:
    model = {
        "kind": "dgd",
        "latent": 2,
        "components_by": "cell_type",
        "decoder": {"hidden": [8], "scaling": "max"},
    }
    return train(experiment_file.parent, data={"path": str(experiment_file)}, model=model)
