"""``perturbgen train``, ``encode``, ``evaluate`` and ``board``: generative models."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import (
    Columns,
    Device,
    Devices,
    DryRun,
    Json,
    Layer,
    Overrides,
    Resume,
    RunFolder,
    Runs,
    Seed,
    found_run,
    show_settings,
)
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    from perturbgen.train import Recipe

log = logging.getLogger(__name__)

_IGNORED = 0.3  # of the real differences between conditions
_Cells = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="Raw counts (.h5ad) with the run's conditions in obs."),
]


def _train(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="What to train on what.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The data, in place of the configuration's: cells.")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="What perturbgen split wrote, in place of data.split.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    num_nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a generative model of cells under conditions: NB-VAE, Deep Generative Decoder or
    Gaussian VAE.

    The configuration names the data, the columns of obs that condition the model, and the model;
    everything else has a default that --dry-run shows. Ctrl-C saves, --resume goes on, and board
    shows the run while it trains.

    Example: [bold]perturbgen train experiments/kang/nbvae.toml --data kang.h5ad
    --set model.latent=20[/bold]

    Example: [bold]perturbgen train --resume runs/latest --set training.epochs=400[/bold]
    """
    from perturbgen.train.generative import CELLS

    # a run has its data and settings in a config.toml of its own
    if (config is None) == (resume is None):
        raise ConfigError(
            "train takes either a CONFIG.toml or --resume RUN", fix="perturbgen train --help"
        )
    if resume is not None and (data is not None or split is not None or dry_run):
        raise ConfigError(
            "--data, --split and --dry-run do not go with --resume", fix="leave them out"
        )
    train_or_resume(
        CELLS,
        resume,
        config=config,
        paths={"data.path": data, "data.split": split},
        overrides=overrides or [],
        runs=runs,
        dry_run=dry_run,
        as_json=as_json,
        devices=devices,
        num_nodes=num_nodes,
        accelerator=device,
    )


def train_or_resume(
    recipe: Recipe[Any, Any, Any, Any],
    resume: Path | None,
    *,
    config: Path | None,
    paths: Mapping[str, Path | None],
    overrides: list[str],
    runs: Path,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train by a configuration, or go on with a run, and show how it ended, for any kind of model.

    ``paths`` are the keys of settings that have options of their own.
    """
    import os

    if resume is not None:
        run = recipe.resume(resume, overrides, **options)
    else:
        # Quoted as TOML's literal string, so that a path that looks like a number stays a path.
        given = [f"{key}='{path}'" for key, path in paths.items() if path is not None]
        # the last one wins: an option of its own is over --set of the same key
        settings = recipe.settings.load(config, overrides=[*overrides, *given])
        if dry_run:
            show_settings(settings, as_json=as_json)
            return
        run = recipe.train(settings, runs=runs, **options)
    if not int(os.environ.get("LOCAL_RANK", 0)):  # the first process speaks for all
        show_table([recipe.ending(run)], title=f"trained {run}", as_json=as_json)


def _encode(
    run: RunFolder,
    file: _Cells,
    out: Annotated[
        Path, typer.Option(help="Output: an h5ad of obs, and of the latent points in obsm.")
    ],
    key: Annotated[str, typer.Option(help="Entry of obsm, of the latent points.")] = "X_latent",
    columns: Columns = None,
    layer: Layer = None,
    device: Device = "auto",
) -> None:
    """Latent points of cells by a trained model.

    Example: [bold]perturbgen encode runs/latest kang.h5ad --out latents.h5ad[/bold]
    """
    import pandas as pd
    from anndata import AnnData

    from perturbgen.data import write_h5ad
    from perturbgen.train import load_run
    from perturbgen.train.heldout import CellJudge

    check_output(out, ".h5ad")
    trained = load_run(run, device=device)
    store = trained.open_cells(file, layer=layer, columns=columns)
    latents = CellJudge(trained, store).latents()
    adata = AnnData(
        obs=store.obs, var=pd.DataFrame(index=pd.Index([], dtype=str)), obsm={key: latents}
    )
    adata.uns["perturbgen_run"] = str(run)
    write_h5ad(adata, out)
    say(f"wrote {out}: {latents.shape[0]:,} cells in {latents.shape[1]} latent dimensions")


def _evaluate(
    run: RunFolder,
    file: _Cells,
    part: Annotated[
        str | None,
        typer.Option(
            help="Which part of the run's data: train, validation, or another of its split "
            "\\[default: all of FILE]."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Importance samples a cell.")] = 128,
    out: Annotated[Path | None, typer.Option(help="Output: everything (.json).")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="A page (.html), of real beside generated cells.")
    ] = None,
    columns: Columns = None,
    layer: Layer = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge one trained model on cells (tables of predictions: score; many methods: compare):
    likelihood of their counts, posterior-predictive checks, probes of its latents.

    The likelihood is log p(counts | conditions), integrated over the latent space by importance
    sampling, in nats per gene and cell: the smaller its negative, the better. Use cells that the
    model was not trained on.

    Example: [bold]perturbgen evaluate runs/latest kang.h5ad --part validation[/bold]
    """
    from perturbgen.train import cells_page, load_run
    from perturbgen.train.heldout import CellJudge

    if out is not None:
        check_output(out, ".json")
    if plots is not None:
        check_output(plots, ".html", option="--plots")
    trained = load_run(run, device=device)
    store = trained.open_cells(file, layer=layer, columns=columns, part=part)
    found = CellJudge(trained, store).numbers(samples=samples, seed=seed)
    if plots is not None:
        cells_page(trained, store, seed=seed).write(plots)
    if out is not None:
        _save_json(found, out)
    ratio = found["predictive"].get("between_conditions_generated_over_real")
    if ratio is not None and ratio < _IGNORED:
        log.warning(
            "generated cells of different conditions differ %.2g times as much as real ones: the "
            "model hardly uses its conditions, and predictions of them will be weak. A way out is "
            'annealing.warmup = 0, training.learning_rate = 5e-3, more epochs, or kind = "dgd"',
            ratio,
        )
    if as_json:
        show_table([found], as_json=True)
        return
    show_table([found["likelihood"]], title="negative log-likelihood, nats per gene and cell")
    show_table(
        [{"check": k, "value": v} for k, v in found["predictive"].items()],
        title="generated against real counts",
    )
    show_table(found["probes"], title="what a linear probe reads from the latent points")


def _save_json(found: dict[str, Any], out: Path) -> None:
    """Write the numbers."""
    import json

    from perturbgen.core.console import plain
    from perturbgen.core.files import atomic_path

    with atomic_path(out) as path:
        # plain, since JSON has no NaN
        path.write_text(json.dumps(plain(found), indent=1))
    say(f"wrote {out}")


def _board(
    logdir: Annotated[
        Path,
        typer.Argument(
            metavar="RUNS",
            help="A run directory (runs/latest), or the folder of all of them.",
            callback=found_run,
        ),
    ] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine.")] = 6006,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 shows it to the network.")
    ] = "localhost",
) -> None:
    """Look at runs in TensorBoard: curves, pictures, the latent space in the projector.

    Example: [bold]perturbgen board runs[/bold], then open http://localhost:6006
    """
    import subprocess

    from perturbgen.core.files import require_folder

    require_folder(logdir, "folder of runs")
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logdir),
        "--port",
        str(port),
        "--host",
        host,
    ]
    # a program of its own, whose exit code is passed on
    raise typer.Exit(subprocess.run(command, check=False).returncode)


VERBS = {"train": _train, "encode": _encode, "evaluate": _evaluate, "board": _board}
