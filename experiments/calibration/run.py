"""Does the simulated experiment behave like the real one? Everything that is known of the real one,
computed of simulated pseudobulk in the same way.

    python experiments/calibration/run.py --seeds 301,302,303              # 5,000 genes, semi-real
    python experiments/calibration/run.py --seeds 201 --genes 18211 --page calibration.html
    python experiments/calibration/run.py --preset op3_2025                # the world of 2025
    python experiments/calibration/run.py --invented                       # no real data go in

It needs the real data (see perturbgen doctor): the real column is computed from them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parent))
from calibration_page import calibration_page
from forms import GENES, Forms
from real import real_ranks, real_statistics
from statistics_of import every_statistic
from tolerance import judged, loss

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.core.console import show_table, track
from perturbgen.simulation import CONDITION_KEY, build_world, preset_settings

if TYPE_CHECKING:
    from perturbgen.simulation import SimulationSettings, World

log = logging.getLogger("perturbgen.experiments.calibration")


def main(
    seeds: Annotated[
        str, typer.Option(help="Of the simulation; settings were chosen on seeds 101 and 102.")
    ] = "7",
    preset: Annotated[str, typer.Option(help="op3, op3_2025, or a smaller one.")] = "op3",
    genes: Annotated[
        int, typer.Option(min=500, help="A random subset over the range of expression.")
    ] = 5000,
    invented: Annotated[
        bool, typer.Option("--invented", help="No real baselines, signatures, effects or layout.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting: effects.scale=0.9")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate the pseudobulk, fit it in both forms, and compare every known statistic."""
    settings = simulation_settings(preset, genes=genes, invented=invented, overrides=overrides)
    folder = data_folder() / "op3"
    real, drugs = real_statistics(folder), real_ranks(folder)[1]
    numbers = [int(text) for text in seeds.split(",")]
    found = {
        seed: every_statistic(simulated(build_world(settings, seed=seed)), drugs)
        for seed in track(numbers, "worlds")
    }
    table = pd.DataFrame(found)
    rows = judged(real, table)
    title = f"{preset}, {'invented' if invented else 'semi-real'}, seeds {seeds}: {genes:,} genes"
    show_table(rows, title=f"{title}; loss {loss(real, table):.2f}", as_json=as_json)
    if page is not None:
        calibration_page(real, table, rows, title=title).write(page)


def simulation_settings(
    preset: str, *, genes: int = GENES, invented: bool = False, overrides: list[str] | None = None
) -> SimulationSettings:
    """A preset with every real source there is, and some of the genes."""
    sources = {}
    if not invented:
        op3 = data_folder() / "op3"
        sources = {
            "baseline": op3 / "celltype_baseline_means.csv",
            "signatures": op3 / "de_ranks_4x135x6349.npz",
            "layout": op3,
        }
        if preset != "op3_2025":
            sources["effects"] = op3 / "compound_effects.csv"
    # a subset has to be of unexpressed genes, too: they fill half of the competition's table
    subset = [f"expression.genes={genes}", 'expression.subset="random"']
    return preset_settings(
        preset, sources=sources, overrides=[*(subset if genes < GENES else []), *(overrides or [])]
    )


def simulated(world: World) -> Forms:
    """Pseudobulk of every well with cells, drawn without its cells."""
    alive = np.flatnonzero(world.groups["n_cells"] > 0)
    bulk = world.samples({int(group): world.draw_total(int(group)) for group in alive})
    trained = pd.MultiIndex.from_frame(world.train_rows()[CONDITION_KEY])
    return Forms(bulk, trained)


if __name__ == "__main__":
    run_experiment(main)
