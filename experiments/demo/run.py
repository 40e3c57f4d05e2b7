"""The main job on embedded data: simulate, ingest, validate, sum to pseudobulk, test, compare methods, report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from perturbgen.cli import run_experiment
from perturbgen.config import Settings, create_run, load_settings, to_toml
from perturbgen.console import say

if TYPE_CHECKING:
    from anndata import AnnData

HERE = Path(__file__).parent
log = logging.getLogger("perturbgen.demo")


class Demo(Settings):
    """What the demo can be told."""

    preset: str
    seed: int = Field(ge=0)


def main(
    config: Annotated[Path, typer.Argument(help="Configuration file.")] = HERE / "config.toml",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key: seed=3")] = None,
    runs: Annotated[Path, typer.Option(help="Where the run directory is made.")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Simulate an experiment, read it back, check it, sum it up, test it, and compare what predicts its withheld part.

    Example: python experiments/demo/run.py --set seed=3
    """
    from perturbgen.simulate.settings import preset_settings

    settings = load_settings(Demo, config, overrides=overrides or [])
    if dry_run:
        say(to_toml(settings))
        return
    preset_settings(settings.preset)  # a wrong name is said before a run directory is made
    run = create_run(runs, "demo", settings, seed=settings.seed)
    make(run, settings)
    say(f"report       {run / 'report.html'}; {run / 'summary.html'} shows the cells, {run / 'de.html'} the tests")
    say(f"scorecard    {run / 'comparison' / 'scorecard.md'}")
    say(f"submission   {run / 'submission.csv'} (all zeros: the control that every method must beat)")
    say(f"TensorBoard  {run} (make board opens it)")


def make(run: Path, settings: Demo) -> None:
    """Fill the run directory."""
    from perturbgen.data import pseudobulk, read_competition, validate, write_h5ad
    from perturbgen.data.summary import summary_page
    from perturbgen.de.flavours import flavour_table
    from perturbgen.de.plots import de_page
    from perturbgen.simulate import simulate

    log.info("simulating the experiment (preset %s, seed %d)", settings.preset, settings.seed)
    folder = simulate(settings.preset, seed=settings.seed, out=run / "competition")
    cells = read_competition(folder)
    validate(cells)
    write_h5ad(cells, run / "counts.h5ad")
    bulk = pseudobulk(cells, by=["plate", "well", "cell_type"])
    write_h5ad(bulk, run / "pseudobulk.h5ad")
    log.info("drawing the report")
    summary = summary_page(cells, title=f"Simulated experiment, preset {settings.preset}, seed {settings.seed}")
    summary.block('<p>See also the <a href="report.html">comparison of methods</a>.</p>')
    summary.write(run / "summary.html")
    log.info("differential expression")
    table = flavour_table(bulk, flavour="kaggle")
    table.write_parquet(run / "de.parquet")
    de_page(table).write(run / "de.html")
    submit_zeros(folder, run / "submission.csv")
    log_projector(bulk, run)
    compare_methods(folder, run)


def compare_methods(folder: Path, run: Path) -> None:
    """Methods on the withheld conditions, between zeros and the experiment repeated: the ranking, and a page."""
    from perturbgen.cli.compare import raise_failures, show
    from perturbgen.compare import CompareSettings, compare
    from perturbgen.compare.outputs import write_outputs, write_report
    from perturbgen.simulate.repeat import write_replicate

    log.info("repeating the withheld part of the experiment, as the positive control")
    write_replicate(folder)
    settings = load_settings(CompareSettings, HERE / "compare.toml", overrides=[f"data.folder={str(folder)!r}"])
    found = compare(settings, run / "comparison")
    write_outputs(found, run / "comparison", report=False)
    links = {"the cells": "summary.html", "differential expression": "de.html"}
    write_report(found, run / "report.html", "Who predicts the withheld conditions best?", links=links)
    show(found)
    raise_failures(found, run / "comparison")


def submit_zeros(folder: Path, out: Path) -> None:
    """A valid submission of zeros, through the same door that a model's predictions take."""
    import pandas as pd

    from perturbgen import submission
    from perturbgen.data.tables import read_csv, read_header

    ids = read_csv(folder / "id_map.csv", text=["cell_type", "sm_name"])
    like = folder / "sample_submission.csv"
    index = pd.MultiIndex.from_frame(ids[["cell_type", "sm_name"]])
    submission.write(pd.DataFrame(0.0, index, read_header(like)[1:]), ids, like, out)


def log_projector(bulk: AnnData, run: Path) -> None:
    """Put the pseudobulk samples into TensorBoard's embedding projector, with their labels."""
    from torch.utils.tensorboard import SummaryWriter

    from perturbgen.data.embedding import principal_components, profiles

    values, obs = profiles(bulk)
    labels = [name for name in ("cell_type", "compound", "plate", "donor", "well") if name in obs]
    with SummaryWriter(run) as board:
        board.add_embedding(
            principal_components(values),
            obs[labels].astype(str).to_numpy().tolist(),
            metadata_header=labels,
            tag="pseudobulk",
        )


if __name__ == "__main__":
    run_experiment(main)
