"""The main job on embedded data: simulate, test, train two models, generate, compare what predicts,
submit, report.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

sys.path.insert(0, str(Path(__file__).parent))
from models import NAMES, as_method, generate, split_cells, train_model, training_aside

from perturbgen.cli import run_experiment
from perturbgen.core.config import Settings
from perturbgen.core.console import say
from perturbgen.core.runs import create_run

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

HERE = Path(__file__).parent
SUBMITTED = NAMES["nbvae"]
log = logging.getLogger("perturbgen.demo")


class Demo(Settings):
    """What the demo can be told."""

    preset: str
    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    replicates: int = Field(ge=1)


def main(
    config: Annotated[Path, typer.Argument(help="Configuration file.")] = HERE / "config.toml",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: seed=3")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where the run directory is made.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
    ] = False,
) -> None:
    """Simulate an experiment, test it, train two models on it, and compare what predicts its
    withheld part.

    Example: python experiments/demo/run.py --set seed=3
    """
    from perturbgen.simulation import preset_settings

    settings = Demo.load(config, overrides=overrides or [])
    if dry_run:
        say(settings.to_toml())
        return
    preset_settings(settings.preset)  # a wrong name is said before a run directory is made
    run = create_run(runs, "demo", settings, seed=settings.seed)
    make(run, settings)
    say(
        f"report       {run / 'report.html'}; {run / 'summary.html'} shows the cells, "
        f"{run / 'de.html'} the tests, {run / 'cells.html'} real beside generated cells"
    )
    say(f"scorecard    {run / 'comparison' / 'scorecard.md'}")
    say(f"generated    {run / 'generated'} (cells of the conditions that nobody measured)")
    say(f"submission   {run / 'submission.csv'} ({SUBMITTED})")
    say(f"TensorBoard  {run} (make board opens it)")


def make(run: Path, settings: Demo) -> None:
    """Fill the run directory."""
    from perturbgen.data import read_competition, read_conditions, validate, write_h5ad
    from perturbgen.simulation import simulate

    began = time.monotonic()
    log.info("simulating the experiment (preset %s, seed %d)", settings.preset, settings.seed)
    folder = simulate(settings.preset, seed=settings.seed, out=run / "competition")
    cells = read_competition(folder)
    validate(cells)
    write_h5ad(cells, run / "counts.h5ad")
    wanted = read_conditions(folder / "id_map.csv")
    split_cells(cells, wanted, run, seed=settings.seed)
    log.info("training %s without the conditions to predict", " and ".join(NAMES.values()))
    options = {"epochs": settings.epochs, "seed": settings.seed}
    with training_aside("dgd", run, **options) as dgd:
        draw(cells, run, settings, maps=False)
        seconds = time.monotonic() - began
        say(f"after {seconds:.0f} s  {run / 'summary.html'}: the first pictures, of the cells")
        draw(cells, run, settings)
        test(cells, run)
        trained = {"nbvae": train_model("nbvae", run, **options)}
        draw_cells(run, trained["nbvae"], seed=settings.seed)
        trained["dgd"] = dgd()
    methods = {
        name: as_method(trained[kind], run, replicates=settings.replicates)
        for kind, name in NAMES.items()
    }
    generate(trained["nbvae"], cells, wanted, run / "generated", seed=settings.seed)
    submit(compare_methods(folder, run, methods)[SUBMITTED], folder, run / "submission.csv")
    say(f"after {time.monotonic() - began:.0f} s  everything")


def draw(cells: AnnData, run: Path, settings: Demo, *, maps: bool = True) -> None:
    """The page of the cells; its maps take most of the time."""
    from perturbgen.data.pictures import summary_page

    title = f"Simulated experiment, preset {settings.preset}, seed {settings.seed}"
    summary = summary_page(cells, title=title, maps=maps)
    summary.block('<p>See also the <a href="report.html">comparison of methods</a>.</p>')
    summary.write(run / "summary.html")


def test(cells: AnnData, run: Path) -> None:
    """Sum the cells of each well and type, and test every compound."""
    from perturbgen.data import pseudobulk, write_h5ad
    from perturbgen.de import flavour_table
    from perturbgen.de.plots import de_page

    log.info("differential expression")
    bulk = pseudobulk(cells, by=["plate", "well", "cell_type"])
    write_h5ad(bulk, run / "pseudobulk.h5ad")
    table = flavour_table(bulk, flavour="kaggle")
    table.write(run / "de.parquet")
    de_page(table).write(run / "de.html")
    log_projector(bulk, run)


def draw_cells(run: Path, trained: Path, *, seed: int) -> None:
    """The page of real beside generated cells, on which planted states colour the latent space."""
    import pandas as pd

    from perturbgen.train import cells_page, load_run

    model = load_run(trained)
    path, states = run / "competition" / "truth_states.parquet", None
    if path.exists():  # a world may be simulated without
        states = pd.read_parquet(path).set_index("obs_id")
    page = cells_page(model, model.open_cells(run / "counts.h5ad"), states=states, seed=seed)
    page.write(run / "cells.html")


def compare_methods(folder: Path, run: Path, methods: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Methods on the withheld conditions, between zeros and the experiment repeated: the ranking,
    and a page.
    """
    from perturbgen.cli.score import raise_failures, show_comparison
    from perturbgen.compare import CompareSettings, compare, write_outputs
    from perturbgen.simulation import write_replicate

    log.info("repeating the withheld part of the experiment, as the positive control")
    write_replicate(folder)
    settings = CompareSettings.load(
        HERE / "compare.toml", base={"methods": methods}, overrides=[f"data.folder={str(folder)!r}"]
    )
    found = compare(settings, run / "comparison")
    write_outputs(
        found,
        run / "comparison",
        title="Who predicts the withheld conditions best?",
        report=(run / "report.html").absolute(),
        links={
            "the cells": "summary.html",
            "real beside generated cells": "cells.html",
            "differential expression": "de.html",
        },
    )
    show_comparison(found)
    raise_failures(found, run / "comparison")
    return dict(found.predictions())


def submit(predictions: pd.DataFrame, folder: Path, out: Path) -> None:
    """Predictions as a valid submission."""
    from perturbgen import submission

    ids, like = folder / "id_map.csv", folder / "sample_submission.csv"
    submission.write(predictions.rename_axis(["cell_type", "sm_name"]), ids, like, out)
    for finding in submission.check(out, ids, like):
        log.warning("%s", finding)


def log_projector(bulk: AnnData, run: Path) -> None:
    """Put the pseudobulk samples into TensorBoard's embedding projector, with their labels."""
    from torch.utils.tensorboard import SummaryWriter

    from perturbgen.data import pseudobulk_components

    scores, obs = pseudobulk_components(bulk)
    labels = [name for name in ("cell_type", "compound", "plate", "donor", "well") if name in obs]
    with SummaryWriter(run) as board:
        board.add_embedding(
            scores,
            obs[labels].astype(str).to_numpy().tolist(),
            metadata_header=labels,
            tag="pseudobulk",
        )


if __name__ == "__main__":
    run_experiment(main)
