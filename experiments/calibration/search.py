"""Search the settings of the simulated world on development seeds, by damped Gauss-Newton steps.

    python experiments/calibration/search.py search.csv --minutes 60

The loss (tolerance.py) is a mean of squares of smooth statistics: every setting is moved a little
to see what it moves, a step is solved for, and tried at several dampings. The seeds stay the same,
so that a difference between settings is not chance. Every evaluation is a line of the CSV; a search
that is started again goes on from its best line.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parent))
from real import real_ranks, real_statistics
from run import simulated, simulation_settings
from statistics_of import every_statistic
from tolerance import loss, residuals

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.simulation import build_world

log = logging.getLogger("perturbgen.experiments.calibration")

# What is searched, and by which factor a setting is moved to see what it does.
SETTINGS = {
    "effects.scale": 1.15,
    "effects.strength_cap": 0.7,
    "effects.well_log_sd": 1.25,
    "effects.cell_types.NK cells": 0.88,
    "effects.cell_types.B cells": 1.12,
    "effects.cell_types.Myeloid cells": 1.12,
    "effects.toxicity": 0.85,
    "effects.frailty.NK cells": 0.85,
    "expression.baseline_power": 1.05,
    "expression.tube_log_sd": 1.15,
    "expression.well_log_sd": 1.15,
    "expression.vehicle_log_sd": 1.25,
}
# Settings are not moved by more than this factor in one step.
_FARTHEST = 1.6
_DAMPINGS = (0.3, 0.03)


def main(
    out: Annotated[Path, typer.Argument(help="CSV of every evaluation.")],
    seeds: Annotated[str, typer.Option(help="Development seeds.")] = "101,102",
    genes: Annotated[int, typer.Option(min=500)] = 5000,
    minutes: Annotated[float, typer.Option(help="Start no evaluation after these.")] = 60,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Start from these.")] = None,
) -> None:
    """Minimise the loss, and say the best settings."""
    search = Search(out, [int(text) for text in seeds.split(",")], genes, overrides or [])
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        before = search.best_loss
        slopes = {}
        for name, factor in SETTINGS.items():
            if time.monotonic() > end:
                return
            slopes[name] = search.slope(name, factor)
        for damping in _DAMPINGS:
            if time.monotonic() < end:
                search.evaluate(search.step(slopes, damping))
        log.info("loss %.3f: %s", search.best_loss, search.best)
        if search.best_loss > 0.99 * before:
            return


class Search:
    """The best settings so far, and what every tried one gave."""

    def __init__(self, out: Path, seeds: list[int], genes: int, overrides: list[str]) -> None:
        self.out, self.seeds, self.genes, self.overrides = out, seeds, genes, overrides
        folder = data_folder() / "op3"
        self.real, self.drugs = real_statistics(folder), real_ranks(folder)[1]
        start = simulation_settings("op3", genes=genes, overrides=overrides).model_dump()
        self.best = {name: _get(start, name) for name in SETTINGS}
        self.lines: list[dict[str, Any]] = []
        if out.exists():
            tried = pd.read_csv(out)
            self.lines = tried.to_dict("records")
            self.best = tried.sort_values("loss").iloc[0][list(SETTINGS)].to_dict()
        self.best_loss, self.found = float("inf"), pd.DataFrame()
        self.evaluate(self.best)

    def evaluate(self, values: dict[str, float]) -> pd.DataFrame:
        """The statistics of settings, by seed; written down, and kept if they are the best."""
        overrides = [*self.overrides, *(f"{name}={value}" for name, value in values.items())]
        begun = time.monotonic()
        settings = simulation_settings("op3", genes=self.genes, overrides=overrides)
        found = pd.DataFrame(
            {
                seed: every_statistic(simulated(build_world(settings, seed=seed)), self.drugs)
                for seed in self.seeds
            }
        )
        value = loss(self.real, found)
        took = {"loss": value, "seconds": time.monotonic() - begun}
        self.lines.append(values | took | found.mean(axis=1).to_dict())
        pd.DataFrame(self.lines).to_csv(self.out, index=False)
        if value < self.best_loss:
            self.best, self.best_loss, self.found = values, value, found
        return found

    def slope(self, name: str, factor: float) -> np.ndarray:
        """How the residuals change with the log of a setting, at the best settings so far."""
        here, base = residuals(self.real, self.found), self.best[name]
        moved = self.evaluate(self.best | {name: round(base * factor, 5)})
        return (residuals(self.real, moved) - here) / np.log(factor)

    def step(self, slopes: dict[str, np.ndarray], damping: float) -> dict[str, float]:
        """Settings that a linear model of the residuals thinks best (Levenberg-Marquardt)."""
        jacobian, r = np.column_stack(list(slopes.values())), residuals(self.real, self.found)
        normal = jacobian.T @ jacobian
        scale = damping * np.diag(np.diag(normal) + 1e-3 * np.trace(normal) / len(normal))
        move = -np.linalg.solve(normal + scale, jacobian.T @ r)
        move = np.clip(move, -np.log(_FARTHEST), np.log(_FARTHEST))
        factors = dict(zip(slopes, np.exp(move), strict=True))
        return {name: round(self.best[name] * factors[name], 5) for name in self.best}


def _get(values: dict[str, Any], name: str) -> float:
    found: Any = values
    for part in name.split("."):
        found = found[part]
    return float(found)


if __name__ == "__main__":
    run_experiment(main)
