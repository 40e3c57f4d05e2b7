"""Where a decoder begins: dispersions read off the counts, which a short training hardly moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from perturbgen.train import RunSettings, load_run, train
from perturbgen.train.beginnings import moments
from tests.conftest import without_pictures

GENES = 200


def drawn(r: float, *, groups: int = 40, cells: int = 10, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Counts (cells, genes) of groups that differ, in cells that differ in depth; their groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), cells)
    level = rng.lognormal(1.5, 0.7, GENES) * np.exp(rng.normal(0, 0.5, (groups, GENES)))
    mean = level[group] * rng.lognormal(0, 0.4, len(group))[:, None]
    noise = rng.gamma(r, 1 / r, mean.shape) if np.isfinite(r) else 1.0
    return rng.poisson(mean * noise), group


@pytest.mark.parametrize("r", [0.5, 2.0, 20.0])
def test_dispersions_are_those_that_the_counts_were_drawn_with(r: float) -> None:
    counts, group = drawn(r)
    found = moments(sparse.csr_matrix(counts), group)
    assert np.median(found) == pytest.approx(1 / r, rel=0.3)
    one = moments(sparse.csr_matrix(counts), np.zeros(len(group)))
    assert np.median(one) > np.median(found), "differences between groups are not dispersion"


def test_counts_without_more_than_poisson_noise_begin_near_it() -> None:
    counts, group = drawn(np.inf)
    assert np.median(moments(sparse.csr_matrix(counts), group)) < 0.02


def test_what_counts_do_not_say_is_finite() -> None:
    for group in (np.arange(4), np.zeros(4)):
        found = moments(sparse.csr_matrix(np.diag([1, 2, 3, 0])), group)
        assert ((found >= 0.01) & (found <= 10)).all()


def test_samples_of_a_short_run_vary_as_much_as_the_real_ones(tmp_path: Path) -> None:
    """One profile a well, Poisson noise alone: from r = 2 on they varied six times as much."""
    counts, group = drawn(np.inf, groups=4, cells=40)
    obs = pd.DataFrame({"compound": [f"c{k}" for k in group], "cell_type": "x"})
    obs.index = pd.Index([f"w{i}" for i in range(len(obs))])
    names = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
    AnnData(sparse.csr_matrix(counts), obs=obs, var=names).write_h5ad(tmp_path / "bulk.h5ad")
    base = {
        "data": {"path": str(tmp_path / "bulk.h5ad")},
        "model": {"latent": 2, "decoder": {"hidden": [8]}},
        "conditions": {"compound": {}},
        "annealing": {"warmup": 0},
        "training": {"epochs": 3, "threads": 1},
    }
    with without_pictures():
        path = train(RunSettings.load(base=base), runs=tmp_path / "runs", accelerator="cpu")
    decoder = load_run(path).model.decoder
    assert float(decoder.dispersion().detach().exp().median()) > 20
