"""Thirty perturbations, of which 25 are called as a gene is: the cells that the goldens are of.

``python -m tests.evaluate.cell_eval2.world FOLDER``, in an environment with cell-eval2 0.20.0 and
pdex 0.3.0, writes ``scores.csv`` and ``anchors.csv`` anew.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

COLUMN, CONTROL = "target_gene", "non-targeting"


def world(seed: int = 5) -> tuple[AnnData, AnnData]:
    """Measured and predicted cells; the predicted effects are weaker, the cells others."""
    rng = np.random.default_rng(seed)
    genes = [f"g{k:03d}" for k in range(250)]
    rng.shuffle(genes)
    base = rng.lognormal(0, 1.3, len(genes))
    names = [f"p{k:02d}" for k in range(5)] + genes[:25]
    effects = {}
    for name in names:
        spread = rng.choice([0.05, 0.5, 1.0])
        effects[name] = rng.normal(0, spread, len(genes)) * (rng.random(len(genes)) < 0.3)
        if name in genes:
            effects[name][genes.index(name)] = -2

    def draw(sizes: dict[str, int], scale: float) -> AnnData:
        counts, labels = [], []
        for name, size in sizes.items():
            mean = base * np.exp(scale * effects.get(name, 0))
            depth = rng.lognormal(6.2, 0.35, size)
            rate = depth[:, None] * mean / mean.sum() * rng.gamma(4, 1 / 4, (size, len(genes)))
            counts.append(rng.poisson(rate))
            labels += [name] * size
        obs = pd.DataFrame({COLUMN: labels}, index=[f"c{k}" for k in range(len(labels))])
        matrix = sparse.csr_matrix(np.vstack(counts).astype(np.float32))
        return AnnData(matrix, obs=obs, var=pd.DataFrame(index=genes))

    sizes = {name: int(rng.integers(15, 60)) for name in names}
    truth = draw(sizes | {CONTROL: 120}, 1.0)
    others = {name: int(rng.integers(15, 60)) for name in names}
    return truth, draw(others | {CONTROL: 30}, 0.7)


def write_goldens(folder: Path) -> None:
    """What cell-eval2 says, by its own preset."""
    from cell_eval2 import EvalConfig, compute_metrics
    from cell_eval2.anchor import compute_replicate_anchor
    from cell_eval2.baseline import build_baseline_prediction, generic_response_profile

    config = replace(EvalConfig.from_preset("vcc2026"), pert_col=COLUMN)
    truth, prediction = world()
    compute_metrics(prediction, truth, config=config).to_pandas().to_csv(
        folder / "scores.csv", index=False
    )
    _, ends, *_ = compute_replicate_anchor(truth, config=config)
    ends = ends.to_pandas().set_index("metric")[["replicate", "replicate_sd"]]
    where = {"pert_col": COLUMN, "control": CONTROL}
    profile = generic_response_profile(truth, exclude_target_gene=True, **where)
    mean = build_baseline_prediction(profile, truth, seed=0, **where)
    loose = replace(config, allow_fractional_counts=True)
    found = compute_metrics(mean, truth, config=loose).to_pandas().groupby("metric")["value"]
    ends["baseline"] = found.mean()
    error, distance = (
        found.sum()[f"expr_{name}"] for name in ("mse_unbiased_capped", "distance_unbiased")
    )
    ends.loc["expr_mse_unbiased_capped_norm", "baseline"] = error / distance
    ends.to_csv(folder / "anchors.csv")


if __name__ == "__main__":
    write_goldens(Path(sys.argv[1]))
