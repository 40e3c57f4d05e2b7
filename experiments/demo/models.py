"""The generative models of the demo: trained without what they are to predict, and cells drawn from
one of them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from perturbgen.core.config import merge
from perturbgen.core.system import STOP, cores, limit_threads

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

NAMES: Final = {"nbvae": "cNB-VAE", "dgd": "cDGD"}
CONDITIONS: Final = ("cell_type", "compound", "plate")


def split_cells(cells: AnnData, wanted: pd.DataFrame, run: Path, *, seed: int) -> None:
    """Half of the known compounds are withheld from the models, to calibrate on."""
    from perturbgen.data import Split

    split = Split.for_calibration(
        cells.obs, wanted, rng=np.random.default_rng([seed, 6]), share=0.5, validation=0.05
    )
    split.write(run / "split.csv")


def train_model(kind: str, run: Path, *, epochs: int, seed: int) -> Path:
    """One of the models; returns its run directory."""
    from perturbgen.train import train

    settings = model_settings(kind, run, epochs=epochs, seed=seed)
    return train(settings, runs=run / "models").absolute()


@contextmanager
def training_aside(kind: str, run: Path, *, epochs: int, seed: int) -> Iterator[Callable[[], Path]]:
    """Train a model in a process of its own meanwhile, if there is a core for it.

    What is yielded waits for the run directory. Two models with one thread each take less time than
    one after the other with two.
    """
    job = partial(train_model, kind, run, epochs=epochs, seed=seed)
    if cores(as_omp=True) < 2:
        yield job
        return
    before = cores(as_omp=True)
    limit_threads(max(1, before // 2))  # each of the two processes its share
    pool = ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_begin_aside, initargs=(os.getpid(),)
    )
    try:
        with STOP.withheld_from_children():
            waiting = pool.submit(job)
        yield waiting.result
    except BaseException:
        # one that fails or is stopped does not wait for the other
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        limit_threads(before)


def _begin_aside(parent: int) -> None:
    """Silent but for what is wrong, and ended with the demo."""
    STOP.follow(parent)
    warnings.simplefilter("ignore")
    logging.getLogger("perturbgen").setLevel(logging.WARNING)


def as_method(trained: Path, run: Path, *, replicates: int) -> dict[str, Any]:
    """A trained model as a method of a comparison."""
    return {
        "run": str(trained),
        "cells": str((run / "counts.h5ad").absolute()),
        "settings": {"replicates": replicates},
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
        # a UMAP for TensorBoard takes half as long as these trainings; cells.html has a map
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
