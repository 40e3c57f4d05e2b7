"""The generative models of the demo: trained without what they are to predict, and cells drawn from
one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from perturbgen.core.config import merge

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

NAMES: Final = {"nbvae": "cNB-VAE", "dgd": "cDGD"}
CONDITIONS: Final = ("cell_type", "compound", "plate")


def train_models(
    cells: AnnData, wanted: pd.DataFrame, run: Path, *, epochs: int, replicates: int, seed: int
) -> dict[str, Any]:
    """Both models, half of the known compounds withheld from them to calibrate on; as methods of a
    comparison.
    """
    from perturbgen.data import Split
    from perturbgen.train import train

    split = Split.for_calibration(
        cells.obs, wanted, rng=np.random.default_rng([seed, 6]), share=0.5, validation=0.05
    )
    split.write(run / "split.csv")
    return {
        name: {
            "run": str(
                train(
                    model_settings(kind, run, epochs=epochs, seed=seed), runs=run / "models"
                ).absolute()
            ),
            "cells": str((run / "counts.h5ad").absolute()),
            "settings": {"replicates": replicates},
        }
        for kind, name in NAMES.items()
    }


def model_settings(kind: str, run: Path, *, epochs: int, seed: int) -> Any:
    """A small model of either kind: what ``perturbgen train`` takes."""
    from perturbgen.train import RunSettings

    base: dict[str, Any] = {
        "name": kind,
        "seed": seed,
        "data": {"path": str(run / "counts.h5ad"), "split": str(run / "split.csv")},
        "conditions": {name: {} for name in CONDITIONS},
        "model": {"kind": kind, "latent": 10, "decoder": {"hidden": [64, 128], "additive": True}},
        "training": {
            "epochs": epochs,
            "batch_size": 256,
            "learning_rate": 2e-3,
            "precision": "auto",
        },
        "board": {"every": epochs},
    }
    annealing = {"annealing": {"warmup": max(1, epochs // 4)}} if kind == "nbvae" else {}
    return RunSettings.load(base=merge(base, annealing))


def generate(run: Path, cells: AnnData, wanted: pd.DataFrame, out: Path, *, seed: int) -> Path:
    """The cells of one experiment that nobody made: every wanted condition in each of its
    compound's wells.
    """
    from perturbgen.generate import CellSampler, ReplicateFolder
    from perturbgen.predict import Wells, read_wanted
    from perturbgen.train import load_run

    trained = load_run(run)
    sampler = CellSampler.of(cells, seed=seed)
    made = Wells.of(trained, cells, sampler, read_wanted(wanted), latent="control", seed=seed)
    about = {"run": str(run), "seed": seed}
    paths = ReplicateFolder(out, about).write(made.generator, made.plan, made.wells, replicates=1)
    return paths[0]
