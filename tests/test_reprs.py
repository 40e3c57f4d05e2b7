"""What an object of the package's face shows of itself fits on a screen, and says what it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import perturbgen as pg
from perturbgen.baselines import make

LINES, COLUMNS = 24, 100  # a terminal; longer lines are folded
SMALL = ["expression.genes=60", "cells.per_well=30", "plate.rows=2"]


@pytest.fixture(scope="module")
def world() -> pg.SimulatedExperiment:
    return pg.simulate("tiny", overrides=SMALL)


def _de_table(world: pg.SimulatedExperiment, folder: Path) -> Any:
    bulk = pg.pseudobulk(world.cells(), by=["plate", "well", "cell_type"])
    how = {"group": "compound", "control": world.cells().uns["vehicle"], "by": "cell_type"}
    return pg.limma_table(bulk, design="~0 + {group} + plate", **how)


def _model(kind: str) -> Callable[[pg.SimulatedExperiment, Path], Any]:
    return lambda world, folder: getattr(pg, kind)(world.cells(), latent=3)


def _scores(world: pg.SimulatedExperiment, folder: Path) -> pg.Scores:
    return pg.score(world.de, {"half": world.de / 2}, resamples=5)


def _gctx(world: pg.SimulatedExperiment, folder: Path) -> pg.GctxFile:
    from perturbgen.l1000 import write_gctx

    values = pd.DataFrame(np.ones((3, 2)), list("abc"), list("xy"))
    write_gctx(AnnData(values), folder / "some.gctx")
    return pg.GctxFile(folder / "some.gctx")


def _predictor(world: pg.SimulatedExperiment, folder: Path) -> pg.GenerativePredictor:
    return pg.GenerativePredictor(lambda cells, seed: None, world.cells())  # type: ignore[arg-type]


# An object of each public class, and words that say what is in it.
MADE: dict[str, tuple[Callable[[pg.SimulatedExperiment, Path], Any], tuple[str, ...]]] = {
    "Baseline": (
        lambda w, f: make("additive").fit(w.de, rng=np.random.default_rng(0)),
        ("Additive", "83 conditions x 60 genes"),
    ),
    "CellModel": (_model("NBVAE"), ("cell_type", "cells", "60 genes")),
    "NBVAE": (_model("NBVAE"), ("NBVAE", "not trained yet")),
    "DGD": (_model("DGD"), ("DGD", "not trained yet")),
    "GaussianVAE": (_model("GaussianVAE"), ("GaussianVAE", "not trained yet")),
    "CellSampler": (lambda w, f: pg.CellSampler.of(w.cells(), seed=0), ("groups", "6 cell types")),
    "CompareSettings": (
        lambda w, f: pg.CompareSettings.load(base={"seeds": [1, 2]}),
        ("seeds=(1, 2)",),
    ),
    "CountStore": (
        lambda w, f: pg.CountStore.from_adata(w.cells()),
        ("cells x 60 genes", "memory"),
    ),
    "DETable": (_de_table, ("conditions x 60 genes", "adjusted p", "signed_log10_p")),
    "GctxFile": (_gctx, ("some.gctx", "3 samples x 2 genes")),
    "GenerativePredictor": (_predictor, ("shrunk", "cells")),
    "PredictSettings": (lambda w, f: pg.PredictSettings(replicates=3), ("replicates=3",)),
    "Predictor": (lambda w, f: make("zeros"), ("Zeros()", "not fitted yet")),
    "Profiles": (
        lambda w, f: pg.Profiles.from_anndata(w.cells(), "mine"),
        ("x 60 of mine", "labels"),
    ),
    "RunSettings": (
        lambda w, f: pg.RunSettings.load(base={"data": {"path": "x"}, "model": {"kind": "dgd"}}),
        ("path=PosixPath('x')", "kind='dgd'"),
    ),
    "Scorecard": (lambda w, f: _scores(w, f).card, ("2 methods", "half", "zeros")),
    "Scores": (_scores, ("2 methods", "half", "x 60 genes")),
    "SimulatedExperiment": (lambda w, f: w, ("seed 0", "60 genes", "16 conditions")),
    "SimulationSettings": (lambda w, f: w.world.settings, ("rows=2",)),
    "Split": (
        lambda w, f: pg.Split(pd.Series(["train", "test"], ["a", "b"]), "cells"),
        ("train 1",),
    ),
}


def test_every_public_class_is_tried() -> None:
    classes = {name for name in dir(pg) if inspect.isclass(getattr(pg, name))}
    assert classes == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_it_fits_on_a_screen_and_says_what_it_holds(
    world: pg.SimulatedExperiment, tmp_path: Path, name: str
) -> None:
    build, words = MADE[name]
    made = build(world, tmp_path)
    if name != "Predictor":
        assert isinstance(made, getattr(pg, name))
    text = repr(made)
    assert sum(-(-len(line) // COLUMNS) for line in text.splitlines()) <= LINES
    assert " object at 0x" not in text
    for word in words:
        assert word in text


def test_so_do_the_metrics() -> None:
    assert f"{len(pg.METRICS)} metrics" in repr(pg.METRICS)
    assert len(repr(pg.METRICS).splitlines()) < LINES
    assert "less is better" in repr(pg.METRICS["mean_rowwise_rmse"])
