"""Start a training run of a model of counts, or go on with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from perturbgen.core.config import to_toml
from perturbgen.core.files import require_writable
from perturbgen.core.runs import create_run, file_hash
from perturbgen.train import checkpoint
from perturbgen.train.launch import MAY_CHANGE, carry_out, keep_settings, launch, settings_to_resume
from perturbgen.train.settings import RunSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from perturbgen.train.loop import Training
    from perturbgen.train.prepare import Cells


def train(
    settings: RunSettings,
    *,
    runs: Path = Path("runs"),
    devices: int = 1,
    num_nodes: int = 1,
    accelerator: str = "auto",
) -> Path:
    """Train a model from the first step; returns its run directory."""
    require_writable(
        runs / "run"
    )  # asked in every process: where only the first fails, the others would wait for it
    fabric = launch(
        settings.training, devices=devices, num_nodes=num_nodes, accelerator=accelerator
    )
    from perturbgen.train.prepare import read_cells

    cells = read_cells(settings)
    run = runs  # the first process names the run, and tells the others
    if fabric.is_global_zero:
        run = create_run(
            runs, settings.name, settings, seed=settings.seed, data=_data_hashes(settings)
        )
        checkpoint.describe(settings, cells).write(run)
        checkpoint.write_parts(run, cells.parts())
    return _fit(fabric.broadcast(run), settings, cells, fabric, resumed=False)


def resume(
    run: Path,
    overrides: list[str],
    *,
    devices: int = 1,
    num_nodes: int = 1,
    accelerator: str = "auto",
) -> Path:
    """Go on with a run where its last checkpoint stands; only its length may be changed."""
    settings = settings_to_resume(
        RunSettings, run, overrides, may_change=(*MAY_CHANGE, "training.resident")
    )
    fabric = launch(
        settings.training, devices=devices, num_nodes=num_nodes, accelerator=accelerator
    )
    from perturbgen.train.prepare import read_cells

    cells = read_cells(settings)
    checkpoint.require_same_cells(run, cells.parts())
    if overrides and fabric.is_global_zero:
        keep_settings(run, settings)
    return _fit(run, settings, cells, fabric, resumed=True)


def train_once(
    settings: RunSettings, *, runs: Path = Path("runs"), accelerator: str = "auto"
) -> Path:
    """As ``train``, but a run of the same settings, data and split that lies in ``runs`` is taken, or finished."""
    for run in sorted(runs.glob("[0-9]*/")):
        if _is_run_of(run, settings):
            return resume(run, [], accelerator=accelerator)
    return train(settings, runs=runs, accelerator=accelerator)


def _is_run_of(run: Path, settings: RunSettings) -> bool:
    """Whether a run directory has a checkpoint of these settings and of the files they name as these are now."""
    config, about = run / "config.toml", run / "env.json"
    if not (
        (run / "checkpoint" / "last.pt").exists()
        and config.read_text(encoding="utf-8") == to_toml(settings)
    ):
        return False
    return json.loads(about.read_text())["data"] == _data_hashes(settings)


def _data_hashes(settings: RunSettings) -> dict[str, str]:
    """The hashes of what a run reads: the counts, where they are one file, the split, the descriptors."""
    described = (condition.descriptors for condition in settings.conditions.values())
    paths = filter(None, (settings.data.path, settings.data.split, *described))
    return {str(path): file_hash(path) for path in paths if path.is_file()}


def _fit(run: Path, settings: RunSettings, cells: Cells, fabric: Fabric, *, resumed: bool) -> Path:
    """Build the model and train it."""
    from perturbgen.train.cell_board import CellBoard

    training = _assemble(run, settings, cells, fabric)
    return carry_out(training, lambda step: CellBoard(run, settings, step=step), resumed=resumed)


def _assemble(run: Path, settings: RunSettings, cells: Cells, fabric: Fabric) -> Training:
    """The loop with the cells, the model and its optimisers."""
    from perturbgen.train.feeds import CellFeed
    from perturbgen.train.loop import Training
    from perturbgen.train.prepare import build_model, make_optimisers

    model = build_model(settings, cells, seed=settings.seed)
    resident = settings.training.resident and not settings.data.on_disk
    stores = (
        store.to(fabric.device) if resident else store for store in (cells.train, cells.validation)
    )
    train, validation = (
        CellFeed(store, settings.training.batch_size, settings.seed) for store in stores
    )
    optimisers = make_optimisers(model, settings.training)
    return Training(
        run,
        settings,
        train=train,
        validation=validation,
        model=model,
        optimisers=optimisers,
        fabric=fabric,
    )
