"""What a perfect generator would score, by what is done with its cells: the ladder every model
stands on.

The oracle knows the truth of the simulation: it draws the withheld wells anew (other cells, other
well effects), with their true numbers of cells and depths. Real controls of the same plates join
the fit, the organisers' own.

    python experiments/oracle_ladder/run.py                # preset small, seeds 0 1 2: two minutes
    python experiments/oracle_ladder/run.py --preset op3   # real layout, 3,000 genes
    python experiments/oracle_ladder/run.py --folder data/small

The real layout comes with real baselines and signatures; a folder gets the table and the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from scipy import sparse

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.core.console import show_table, track
from perturbgen.core.export import PARQUET
from perturbgen.core.files import atomic_path, check_output
from perturbgen.de import DETable, flavour_table
from perturbgen.predict import Shrinkage, average_t, expression_levels, plug_in_t
from perturbgen.simulation import (
    CONDITION_KEY,
    POSITIVE_CONTROLS,
    WITHHELD_TYPES,
    build_world,
    load_world,
    preset_settings,
)

if TYPE_CHECKING:
    from perturbgen.simulation import SimulationSettings, World

LADDER = (1, 2, 6, 20)
ORACLE = "de_oracle.parquet"
LEVELS = 5
INDEX = ["cell_type", "compound"]


def main(
    preset: Annotated[
        str, typer.Option(help="tiny, small, or op3 with the real inputs.")
    ] = "small",
    seeds: Annotated[str, typer.Option(help="Seeds of the simulation.")] = "0,1,2",
    genes: Annotated[int, typer.Option(min=100, help="Genes of the op3 preset.")] = 3000,
    folder: Annotated[
        Path | None,
        typer.Option(help="A folder of perturbgen simulate, in place of --preset and --seeds."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The table as CSV [default with --folder: its ladder.csv].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score zeros, noise-free means, one draw, averages of t, plug-in t and shrinkage on the
    withheld conditions.

    With --folder the ladder is that of the folder's own experiment. It is left there for a
    comparison: ladder.csv ([report] ladder) and de_oracle.parquet, the average of t over twenty
    draws (its positive control).

    Example: python experiments/oracle_ladder/run.py --preset tiny --seeds 0
    """
    out = out or (None if folder is None else folder / "ladder.csv")
    if out is not None:
        check_output(out, ".csv")
    if folder is not None:
        world = load_world(folder)
        ladders, preset = {world.seed: climb(world, oracle=folder / ORACLE)}, world.settings.preset
    else:
        settings = simulation_settings(preset, genes=genes)
        numbers = [int(text) for text in seeds.split(",")]
        ladders = {
            seed: climb(build_world(settings, seed=seed)) for seed in track(numbers, "worlds")
        }
    rows = as_rows(ladders)
    if out is not None:
        with atomic_path(out) as part:
            pd.DataFrame(rows).to_csv(part, index=False)
    show_table(rows, title=f"MRRMSE, preset {preset}; ratio is to zeros", as_json=as_json)


def simulation_settings(preset: str, *, genes: int) -> SimulationSettings:
    """The preset; the op3 ones with everything real that there is."""
    if not preset.startswith("op3"):
        return preset_settings(preset)
    op3, overrides = data_folder() / "op3", [f"expression.genes={genes}"]
    sources = {
        "layout": op3,
        "baseline": op3 / "celltype_baseline_means.csv",
        "signatures": op3 / "de_ranks_4x135x6349.npz",
    }
    if preset == "op3":
        sources["effects"] = op3 / "compound_effects.csv"
    else:
        # its genes are the best expressed ones, which have fewer zeros
        overrides.append("depth.zero_fraction=0.85")
    return preset_settings(preset, sources=sources, overrides=overrides)


@dataclass(frozen=True)
class Bench:
    """The real experiment in the two withheld cell types, and what to predict in it."""

    world: World
    real: AnnData
    table: DETable
    wanted: pd.MultiIndex
    known: pd.MultiIndex

    @property
    def truth(self) -> pd.DataFrame:
        """Signed -log10 p of the wanted conditions."""
        return self.table.signed_log10_p.loc[self.wanted]


def climb(world: World, *, oracle: Path | None = None) -> dict[str, float]:
    """The score of every rung; ``oracle`` is where to save the prediction of the best one that
    draws cells only.
    """
    bench = make_bench(world)
    rungs = predictions(bench)
    if oracle is not None:
        best = (
            rungs[f"t averaged, K = {max(LADDER)}"]
            .loc[bench.wanted]
            .rename_axis(["cell_type", "sm_name"])
        )
        with atomic_path(oracle) as part:
            best.reset_index().to_parquet(part, index=False, **PARQUET)
    return {name: mrrmse(values.loc[bench.wanted], bench.truth) for name, values in rungs.items()}


def predictions(bench: Bench) -> dict[str, pd.DataFrame]:
    """What every rung predicts, conditions x genes."""
    truth = bench.truth
    both = bench.wanted.append(bench.known)
    draws = track(range(1, max(LADDER) + 1), "replicates")
    tables = [fit(generated(bench, replicate=k)).select(both) for k in draws]
    means = fit(generated(bench, replicate=None), allow_fractional=True).select(both)
    averaged = average_t(tables)
    rungs = {"zeros": truth * 0, "noise-free means": means.signed_log10_p}
    rungs |= {
        f"t averaged, K = {k}" if k > 1 else "one draw": average_t(tables[:k]) for k in LADDER
    }
    rungs["p averaged, K = 20"] = average_p(tables)
    rungs["signed log p averaged, K = 20"] = sum(table.signed_log10_p for table in tables) / len(
        tables
    )
    rungs["plug-in t"] = plug_in_t(means.logfc, bench.table.select(bench.known))
    for name, values in (("t averaged, K = 20", averaged), ("plug-in t", rungs["plug-in t"])):
        rungs[f"{name}, shrunk"] = shrunk(bench, values)
    return rungs


def average_p(tables: list[DETable]) -> pd.DataFrame:
    """What must not be done: the mean of p itself, with the sign of the mean t."""
    p = sum(table.p for table in tables) / len(tables)
    return np.sign(sum(table.t for table in tables)) * -np.log10(p.clip(lower=1e-300))


def shrunk(bench: Bench, values: pd.DataFrame) -> pd.DataFrame:
    """Shrunk by factors fitted on the compounds that were measured in these cell types (controls
    aside).
    """
    expression = bench.table.ave_expr.groupby(level=0).mean()
    levels = expression_levels(expression, levels=LEVELS)
    measured = bench.table.signed_log10_p.loc[bench.known]
    return Shrinkage.fit(values.loc[bench.known], measured, levels).apply(values, levels)


def make_bench(world: World) -> Bench:
    """Count the real wells of both cell types, and fit them."""
    real = samples(world, our_groups(world), partial(drawn_counts, world, replicate=0))
    table = fit(real)
    wanted = pd.MultiIndex.from_frame(world.id_map()[CONDITION_KEY].set_axis(INDEX, axis=1))
    measured = [name for name in world.layout.known if name not in POSITIVE_CONTROLS]
    known = pd.MultiIndex.from_product([WITHHELD_TYPES, measured], names=INDEX)
    answered = table.t.index[table.t.notna().all(axis=1)]
    return Bench(world, real, table, wanted[wanted.isin(answered)], known[known.isin(answered)])


def our_groups(world: World) -> list[int]:
    """The wells of both cell types that have cells."""
    groups = world.groups
    return np.flatnonzero(
        groups["cell_type"].isin(WITHHELD_TYPES) & (groups["n_cells"] > 0)
    ).tolist()


def generated(bench: Bench, *, replicate: int | None) -> AnnData:
    """The experiment with every compound's wells drawn by the oracle, or their noise-free means;
    controls are real.
    """
    world = bench.world
    controls = [world.layout.vehicle, *POSITIVE_CONTROLS]
    compounds = [i for i in our_groups(world) if world.groups["sm_name"].iat[i] not in controls]
    draw = (
        partial(mean_counts, world)
        if replicate is None
        else partial(drawn_counts, world, replicate=replicate)
    )
    made = samples(world, compounds, draw)
    real = bench.real[bench.real.obs["compound"].isin(controls)]
    return AnnData(
        sparse.vstack([real.X, made.X]).tocsr(), obs=pd.concat([real.obs, made.obs]), var=real.var
    )


def samples(world: World, groups: list[int], draw: Callable[[int], np.ndarray]) -> AnnData:
    """A sample (genes,) of each group, as ``draw`` gives it, with the covariates."""
    return world.samples({group: sparse.csr_array(draw(group)[None]) for group in groups})


def drawn_counts(world: World, group: int, replicate: int) -> np.ndarray:
    """Counts (genes,) of a well and cell type, summed over its cells; replicate 0 is what was
    really measured.
    """
    return np.asarray(world.draw(group, replicate=replicate).sum(axis=0)).ravel()


def mean_counts(world: World, group: int) -> np.ndarray:
    """The expected sum (genes,): what a model's noise-free means add up to."""
    row = world.groups.iloc[group]
    return row["n_cells"] * row["depth"] * world.group_share(group)


def fit(samples: AnnData, **options: Any) -> DETable:
    """The organisers' fit."""
    return flavour_table(samples, flavour="kaggle", **options)


def mrrmse(prediction: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Mean over conditions of the root mean square error over genes."""
    difference = prediction.loc[truth.index, truth.columns].to_numpy() - truth.to_numpy()
    return float(np.sqrt((difference**2).mean(axis=1)).mean())


def as_rows(ladders: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each rung: MRRMSE by seed, then the mean of the ratios to zeros."""
    rows = []
    for name in next(iter(ladders.values())):
        scores = {f"seed {seed}": ladder[name] for seed, ladder in ladders.items()}
        ratio = float(np.mean([ladder[name] / ladder["zeros"] for ladder in ladders.values()]))
        rows.append({"prediction": name, **scores, "ratio": ratio})
    return rows


if __name__ == "__main__":
    run_experiment(main)
