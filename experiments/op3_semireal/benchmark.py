"""The generative models in the benchmark's form, beside baselines, on the folders of run.py.

    python experiments/op3_semireal/benchmark.py runs/latest-op3-semireal

The benchmark merges the T cells, drops what its authors removed, fits all cell types jointly on the
genes that pass its filter, limits values to +-4, learns from the public compounds, too, and scores
the private ones.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))
sys.path.insert(0, str(Path(__file__).parent))
from forms import Forms, merged_types
from generative import Generative, Predictions, is_wanted, kept
from run import Experiment, baseline_predictions, read_de, simulated, train
from statistics_of import benchmark_rows
from tables import score_rows

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table, track
from perturbgen.core.export import write_table
from perturbgen.core.files import require_folder
from perturbgen.data import read_competition, read_h5ad, write_h5ad
from perturbgen.evaluate import score
from perturbgen.generate import CellSampler

if TYPE_CHECKING:
    from anndata import AnnData

# Of the compounds known in B and Myeloid cells, here some sixty: a dozen calibrate.
WITHHELD = 0.2
METRICS = ["mean_rowwise_rmse", "mean_rowwise_pearson", "perturbation_discrimination"]
log = logging.getLogger("perturbgen.experiments.op3_semireal")


def main(
    run: Annotated[Path, typer.Argument(help="A run directory of run.py, finished or not.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train and predict in the benchmark's form of every seed's experiment; ratios are to zeros."""
    settings = Experiment.load(require_folder(run, "run directory") / "config.toml")
    parts = {}
    for seed in track(settings.seeds, "seeds"):
        truth, found = one_seed(settings, run / f"seed-{seed}", seed)
        everything = {"zeros": truth * 0} | found
        own = {name: score(truth, p, metrics=METRICS) for name, p in everything.items()}
        parts[seed] = pd.DataFrame({name: table.mean(axis=1) for name, table in own.items()})
    table = pd.concat(parts, names=["seed"])
    write_table(table.T.rename_axis("prediction"), run / "benchmark_scores.csv", index=True)
    rows = score_rows(table.xs(METRICS[0], level="metric").T)
    for row in rows:
        row |= table[row["prediction"]].groupby(level="metric").mean()[METRICS[1:]].to_dict()
    title = f"RMSE on the private conditions in the benchmark's form, preset {settings.preset}"
    show_table(rows, title=title, as_json=as_json)


def one_seed(
    settings: Experiment, folder: Path, seed: int
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The truth of the private conditions and all predictions of it."""
    competition, own = simulated(settings, folder, seed), folder / "benchmark"
    own.mkdir(exist_ok=True)
    bulk = read_h5ad(competition / "truth_pseudobulk.h5ad")
    trained = read_de(competition / "de_train.parquet").index.set_names(["cell_type", "sm_name"])
    measured, truth = benchmark_rows(Forms(bulk, trained))
    cells = released(competition, measured.index)
    if not (own / "counts.h5ad").exists():
        write_h5ad(cells, own / "counts.h5ad")
    hidden = hidden_known(measured.index, truth, seed)
    found = dict(baseline_predictions(settings, measured, truth.index, hidden, seed))
    sampler = CellSampler.of(cells, seed=seed)
    wanted = truth.index.to_frame(index=False)
    for kind in settings.models:
        model = train(settings, own, cells, hidden, kind, seed)
        options = {"latent": settings.latent, "replicates": settings.replicates, "seed": seed}
        make = _Joint(model, cells, wanted, sampler, flavour="op3", **options)
        found |= kept(own / f"{kind}.parquet", make)
    log.info("seed %d: %d rows to learn from, %d private", seed, len(measured), len(truth))
    return truth, {
        name: values.loc[truth.index, truth.columns]
        for name, values in found.items()
        if is_wanted(name)
    }


def released(competition: Path, measured: pd.MultiIndex) -> AnnData:
    """The cells of the rows to learn from and of the vehicle, T cells merged."""
    from anndata import concat

    cells = concat(
        [read_competition(competition), read_h5ad(competition / "truth_cells.h5ad")],
        merge="same",
        uns_merge="first",
    )
    cells.obs["cell_type"] = merged_types(cells.obs["cell_type"]).astype("category")
    keys = pd.MultiIndex.from_frame(cells.obs[["cell_type", "compound"]].astype(str))
    vehicle = (cells.obs["compound"] == cells.uns["vehicle"]).to_numpy()
    return cells[keys.isin(measured) | vehicle].copy()


def hidden_known(measured: pd.MultiIndex, truth: pd.DataFrame, seed: int) -> pd.MultiIndex:
    """Some of the compounds known in the cell types to predict, which calibrate."""
    kinds = truth.index.get_level_values(0).unique()
    controls = ("Belinostat", "Dabrafenib")
    known = sorted({c for kind, c in measured if kind in kinds and c not in controls})
    rng = np.random.default_rng([seed, 6])
    chosen = set(rng.permutation(known)[: max(2, round(WITHHELD * len(known)))])
    return measured[[kind in kinds and c in chosen for kind, c in measured]]


class _Joint(Generative):
    """All estimators in the benchmark's joint fit; the seed's way and the routes are not asked."""

    def __call__(self) -> Predictions:
        """Predictions by name."""
        return self.named(self.estimators())


if __name__ == "__main__":
    run_experiment(main)
