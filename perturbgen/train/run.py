"""Start a training run, or go on with one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from perturbgen.config import create_run, file_hash, load_settings, to_toml
from perturbgen.errors import ConfigError, InputError
from perturbgen.files import atomic_path, require_folder, require_writable
from perturbgen.machine import keep_freed_memory
from perturbgen.train import checkpoint
from perturbgen.train.settings import RunSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from perturbgen.train.prepare import Cells

log = logging.getLogger(__name__)

LARGEST = 1 << 30  # bytes of an array of a batch that is kept for the next one: up to 1.6 times the speed on a CPU
MAY_CHANGE = ("training.epochs", "stopping.patience", "training.threads", "training.resident", "board")


def train(
    settings: RunSettings, *, runs: Path = Path("runs"), devices: int = 1, num_nodes: int = 1, accelerator: str = "auto"
) -> Path:
    """Train a model from the first step; returns its run directory."""
    require_writable(runs / "run")  # asked in every process: where only the first fails, the others would wait for it
    fabric = launch(settings, devices=devices, num_nodes=num_nodes, accelerator=accelerator)
    from perturbgen.train.prepare import read_cells

    cells = read_cells(settings)
    run = runs  # the first process names the run, and tells the others
    if fabric.is_global_zero:
        run = create_run(runs, settings.name, settings, seed=settings.seed, data=data_hashes(settings.data.path))
        checkpoint.describe(settings, cells).write(run)
        checkpoint.write_parts(run, cells.parts())
    return carry_out(fabric.broadcast(run), settings, cells, fabric, resumed=False)


def resume(run: Path, overrides: list[str], *, devices: int = 1, num_nodes: int = 1, accelerator: str = "auto") -> Path:
    """Go on with a run where its last checkpoint stands; only its length may be changed."""
    run = require_folder(run, "run directory")
    if not (run / "checkpoint" / "last.pt").exists():
        raise InputError(f"{run} has no checkpoint to go on from", fix="train anew from its config.toml")
    settings = load_settings(RunSettings, run / "config.toml", overrides=overrides)
    for override in overrides:
        if not override.strip().startswith(MAY_CHANGE):
            raise ConfigError(
                f"--set {override} changes what was trained so far", expected=f"one of {', '.join(MAY_CHANGE)}"
            )
    fabric = launch(settings, devices=devices, num_nodes=num_nodes, accelerator=accelerator)
    from perturbgen.train.prepare import read_cells

    cells = read_cells(settings)
    checkpoint.require_same_cells(run, cells.parts())
    if overrides and fabric.is_global_zero:
        with atomic_path(run / "config.toml") as part:
            part.write_text(to_toml(settings), encoding="utf-8")
    return carry_out(run, settings, cells, fabric, resumed=True)


def train_once(settings: RunSettings, *, runs: Path = Path("runs"), accelerator: str = "auto") -> Path:
    """As ``train``, but a run of the same settings on the same data that lies in ``runs`` is taken, or finished."""
    for run in sorted(runs.glob("[0-9]*/")):
        if is_run_of(run, settings):
            return resume(run, [], accelerator=accelerator)
    return train(settings, runs=runs, accelerator=accelerator)


def is_run_of(run: Path, settings: RunSettings) -> bool:
    """Whether a run directory has a checkpoint of these settings and of the data as they are now."""
    config, about = run / "config.toml", run / "env.json"
    if not ((run / "checkpoint" / "last.pt").exists() and config.read_text(encoding="utf-8") == to_toml(settings)):
        return False
    return json.loads(about.read_text())["data"] == data_hashes(settings.data.path)


def data_hashes(source: Path) -> dict[str, str]:
    """The hash of a run's data, where they are one file."""
    return {str(source): file_hash(source)} if source.is_file() else {}


def launch(settings: RunSettings, *, devices: int, num_nodes: int, accelerator: str) -> Fabric:
    """The processes of the run: this one, or one for each device."""
    import torch
    from lightning_fabric import Fabric

    training, ranks = settings.training, devices * num_nodes
    keep_freed_memory(LARGEST)
    if training.batch_size % ranks:
        raise ConfigError(
            f"training.batch_size {training.batch_size} cannot be shared by {ranks} devices", fix="a multiple of it"
        )
    if training.threads:
        torch.set_num_threads(training.threads)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=training.precision,
            strategy="ddp" if ranks > 1 else "auto",
        )
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        raise ConfigError(f"--accelerator {accelerator} --devices {devices}: {error}") from None
    fabric.launch()
    if not fabric.is_global_zero:  # the first process speaks for all
        logging.getLogger("perturbgen").setLevel(logging.ERROR)
    return fabric


def carry_out(run: Path, settings: RunSettings, cells: Cells, fabric: Fabric, *, resumed: bool) -> Path:
    """Build the model and train it."""
    from perturbgen.train.board import Board
    from perturbgen.train.loop import Training
    from perturbgen.train.prepare import build_model

    model = build_model(settings, cells, seed=settings.seed)
    training = Training(run, settings, cells, model, fabric)
    if resumed:
        training.restore()
    if training.finished:
        log.info("%s is finished (%d epochs)", run, training.state.epoch)
        return run
    if fabric.is_global_zero:
        log.info(
            "%s: %s cells x %s genes, %s parameters",
            run, f"{len(cells.train):,}", f"{cells.train.n_genes:,}",
            f"{sum(p.numel() for p in model.parameters()):,}",
        )  # fmt: skip
    board = Board(run, settings, step=training.state.epoch) if fabric.is_global_zero else None
    state = training.fit(board)
    if board is not None:
        board.close(training, state)
    return run
