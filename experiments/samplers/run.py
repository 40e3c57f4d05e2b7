"""Are the samplers calibrated on wells they never saw, and better than three simpler ways?

The simulator draws an experiment; B and Myeloid cells of all but the known compounds are withheld,
as in the challenge. Settings are chosen on conditions withheld from the released data; the withheld
wells are only scored.

    python experiments/samplers/run.py                  # preset small, seeds 0 1 2: three minutes
    python experiments/samplers/run.py --preset op3     # ten minutes

The preset op3 has the real plates, compounds and withheld conditions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parent))
from rivals import RIVALS
from tuning import choose_settings

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.core.console import show_table, track
from perturbgen.generate import CellSampler, SamplerSettings, WellTable, calibration_page, summarise
from perturbgen.generate.validate import (
    LEVELS,
    TARGETS,
    coverage,
    observed_wells,
    score_draws,
    score_samplers,
)
from perturbgen.simulation import build_world, preset_settings

if TYPE_CHECKING:
    from perturbgen.simulation import SimulationSettings, World

OURS = "leaf residuals (ours)"
TREES, TUNING_TREES = 200, 40
CANDIDATES = [
    SamplerSettings(trees=TUNING_TREES, leaf=leaf, features=share)
    for leaf in (3, 10)
    for share in (0.3, 0.7)
]
# Numbers of cells and depths need no 18,211 genes; these few still have cells of some 3,000 counts.
FEW_GENES = ("expression.genes=500", "depth.zero_fraction=0.5")


def main(
    preset: Annotated[
        str, typer.Option(help="tiny, small; op3 or op3_2025 with the real layout.")
    ] = "small",
    seeds: Annotated[str, typer.Option(help="Seeds of the simulation.")] = "0,1,2",
    draws: Annotated[int, typer.Option(min=2, help="Draws of each withheld well.")] = 200,
    page: Annotated[
        Path | None, typer.Option(help="Where the page of pictures is written (.html).")
    ] = None,
    tune: Annotated[
        bool, typer.Option(help="Choose settings on inner folds, or take the defaults.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fit, foretell the withheld wells, score against three rivals; one table over all seeds.

    Example: python experiments/samplers/run.py --preset op3 --page samplers.html
    """
    settings = simulation_settings(preset)
    rows, scores = [], []
    for seed in [int(text) for text in seeds.split(",")]:
        found, ours = one_seed(settings, seed=seed, draws=draws, tune=tune)
        rows += found
        scores.append(ours.assign(seed=seed))
    show_table(
        average(rows), title=f"preset {preset}, seeds {seeds}, withheld wells", as_json=as_json
    )
    if page:
        everything = pd.concat(scores, ignore_index=True)
        lead = f"preset {preset}, seeds {seeds}: {len(everything):,} withheld wells x cell types"
        calibration_page(
            everything, summarise(everything), title="Samplers on withheld wells", lead=lead
        ).write(page)


def simulation_settings(preset: str) -> SimulationSettings:
    """The preset with few genes; the op3 ones on the real layout."""
    if not preset.startswith("op3"):
        return preset_settings(preset)
    return preset_settings(preset, sources={"layout": data_folder() / "op3"}, overrides=FEW_GENES)


def one_seed(
    settings: SimulationSettings, *, seed: int, draws: int, tune: bool
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """The rows of one simulated experiment, and our scores of its withheld wells."""
    world = build_world(settings, seed=seed)
    released, withheld = draw_tables(world)
    rng = np.random.default_rng(seed)
    chosen = SamplerSettings(trees=TREES)
    if tune:
        best, _ = choose_settings(released, CANDIDATES, rng=rng)
        chosen = best.model_copy(update={"trees": TREES})
    sampler = CellSampler.fit(released, rng=rng, settings=chosen)
    ours = score_samplers(sampler, withheld, draws=draws, rng=rng)
    rows = [
        row(OURS, seed, name, ours) | chosen.model_dump(include={"leaf", "features"})
        for name in TARGETS
    ]
    return rows + rival_rows(released, withheld, seed=seed, rng=rng), ours


def draw_tables(world: World) -> tuple[WellTable, WellTable]:
    """The wells of the released cells, and of the withheld ones; cells are drawn, summed and let
    go.
    """
    totals: dict[bool, list[pd.Series]] = {False: [], True: []}
    for chunk in track(world.chunks(), "drawing wells", total=len(world.groups)):
        part = pd.Series(np.asarray(chunk.counts.sum(axis=1)).ravel(), chunk.ids)
        totals[bool(world.groups["withheld"].iat[chunk.group])].append(part)
    tables = [
        WellTable.tabulate(world.obs(withheld=key), pd.concat(totals[key])) for key in (False, True)
    ]
    return tables[0], tables[1]


def rival_rows(
    released: WellTable, withheld: WellTable, *, seed: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The scores of the other ways, on the same wells."""
    train, test = with_covariates(released), with_covariates(withheld)
    rows = []
    for label, method in RIVALS.items():
        for name in TARGETS:
            draws = method(train[train[name].notna()], test, name, rng=rng)
            scores = score_draws(name, draws, test[name], rng=rng)
            # A point forecast has no distribution that could be calibrated.
            if draws.shape[1] == 1:
                scores[f"{name}_pit"] = np.nan
            rows.append(row(label, seed, name, test.join(scores)))
    return rows


def with_covariates(table: WellTable) -> pd.DataFrame:
    """What was observed in the wells, with all covariates."""
    extra = table.groups[["library", "control"]].assign(
        is_control=table.groups["control"] == "True"
    )
    return observed_wells(table).join(extra)


def row(method: str, seed: int, name: str, scores: pd.DataFrame) -> dict[str, Any]:
    """CRPS, and coverage where the method gives a distribution."""
    values = scores[f"{name}_pit"].dropna().to_numpy()
    shares = {f"{level:.0%}": coverage(values, level) if len(values) else None for level in LEVELS}
    known = scores[f"{name}_crps"].notna()
    return {
        "quantity": name,
        "method": method,
        "seed": seed,
        "wells": int(known.sum()),
        "CRPS": float(scores.loc[known, f"{name}_crps"].mean()),
        "CRPS / mean": float(
            scores.loc[known, f"{name}_crps"].mean() / scores.loc[known, name].mean()
        ),
    } | shares


def average(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row, then the mean over seeds of each quantity and method, best first."""
    table = pd.DataFrame(rows)
    means = (
        table.groupby(["quantity", "method"], as_index=False)
        .mean(numeric_only=True)
        .assign(seed="mean")
    )
    means["wells"] = means["wells"].round().astype(int)
    whole = pd.concat([table, means.sort_values(["quantity", "CRPS"])], ignore_index=True)
    return [
        {k: None if pd.isna(v) else v for k, v in record.items()}
        for record in whole.to_dict("records")
    ]


if __name__ == "__main__":
    run_experiment(main)
