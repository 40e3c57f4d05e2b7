"""What was not calibrated: do methods score in the simulated world as they were published to?

    python experiments/calibration/check.py --seed 7                 # a few minutes

In the benchmark's form boosted trees stand at .867 of zeros with a Pearson of .46, and the low-rank
network with pseudo-labels at .824; in the competition's form boosted trees out of the box stood at
.69 of zeros on the public rows. No setting of the simulation was chosen by these numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parent))
from run import simulated, simulation_settings
from statistics_of import TARGETS, benchmark_rows, public_of, scores

from perturbgen.baselines import make
from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table, track
from perturbgen.simulation import build_world

if TYPE_CHECKING:
    from forms import Forms

METHODS = ("compound_mean", "cell_type_mean", "kernel_ridge", "xgboost", "network", "transfer")
# (benchmark's RMSE over zeros', Pearson) as published; of boosted trees and network as pyboost and
# nn_retraining_with_pseudolabels.
PUBLISHED = {
    "compound_mean": (1.027, 0.259),
    "cell_type_mean": (0.972, 0.297),
    "xgboost": (0.867, 0.461),
    "network": (0.824, 0.491),
}


def main(
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 7,
    preset: Annotated[str, typer.Option(help="op3 or op3_2025.")] = "op3",
    genes: Annotated[int, typer.Option(min=500)] = 5000,
    methods: Annotated[str, typer.Option(help="Of the baselines, by comma.")] = ",".join(METHODS),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fit baselines in both forms of one simulated experiment; ratios are to zeros."""
    forms = simulated(build_world(simulation_settings(preset, genes=genes), seed=seed))
    tasks = {"benchmark": benchmark_rows(forms), "public": public_rows(forms)}
    rows = []
    for name in track(methods.split(","), "methods"):
        row: dict[str, Any] = {"method": name}
        for form, (train, truth) in tasks.items():
            found = scored(name, train, truth, seed=seed)
            row |= {f"{form}: ratio": found["ratio"], f"{form}: Pearson": found["Pearson"]}
        row["published ratio"], row["published Pearson"] = PUBLISHED.get(name, (None, None))
        rows.append(row)
    title = f"{preset}, seed {seed}: {genes:,} genes; published numbers are the benchmark's"
    show_table(rows, title=title, as_json=as_json)


def public_rows(forms: Forms) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The competition's rows to learn from, and those that its public board scored."""
    table = forms.competition.signed_log10_p.rename_axis(["cell_type", "compound"])
    kind, compound = table.index.get_level_values(0), table.index.get_level_values(1)
    public = kind.isin(TARGETS) & compound.isin(public_of(forms))
    train = table.reindex(forms.trained.set_names(table.index.names)).dropna(how="all")
    return train, table[public]


def scored(name: str, train: pd.DataFrame, truth: pd.DataFrame, *, seed: int) -> dict[str, float]:
    """Of a baseline: its mean row RMSE over that of zeros, and its mean row Pearson."""
    predicted = make(name).fit(train, rng=np.random.default_rng(seed)).predict(truth.index)
    own, zeros = scores("", predicted, truth), scores("zeros", truth * 0, truth)
    return {"ratio": own[": RMSE"] / zeros["zeros: RMSE"], "Pearson": own[": Pearson"]}


if __name__ == "__main__":
    run_experiment(main)
