"""What every kind of run does the same way: start its processes, look at what --resume was given, train, close."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from perturbgen.core.config import load_settings, to_toml
from perturbgen.core.errors import ConfigError, InputError
from perturbgen.core.files import atomic_path, require_folder
from perturbgen.core.system import cores, keep_freed_memory
from perturbgen.train.settings import LoopSettings, LoopTraining

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from perturbgen.train.loop import Training
    from perturbgen.train.protocols import Watcher

log = logging.getLogger(__name__)

LARGEST = (
    1 << 30
)  # bytes of an array of a batch that is kept for the next one: up to 1.6 times the speed on a CPU
MAY_CHANGE = ("training.epochs", "stopping.patience", "training.threads", "board")
_S = TypeVar("S", bound=LoopSettings)


def launch(
    training: LoopTraining, *, devices: int = 1, num_nodes: int = 1, accelerator: str = "auto"
) -> Fabric:
    """The processes of the run: this one, or one for each device."""
    import torch
    from lightning_fabric import Fabric

    ranks = devices * num_nodes
    keep_freed_memory(LARGEST)
    if training.batch_size % ranks:
        raise ConfigError(
            f"training.batch_size {training.batch_size} cannot be shared by {ranks} devices",
            fix="a multiple of it",
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
    if fabric.device.type == "cpu" and devices > cores():
        raise ConfigError(
            f"--devices {devices}: this machine has {cores()} cores",
            fix="as many processes as cores",
        )
    fabric.launch()
    for process in getattr(fabric.strategy.launcher, "procs", []):
        atexit.register(process.kill)  # where only this one fails, the others would wait for it
    if not fabric.is_global_zero:  # the first process speaks for all
        logging.getLogger("perturbgen").setLevel(logging.ERROR)
    return fabric


def settings_to_resume(
    kind: type[_S], run: Path, overrides: Sequence[str], *, may_change: Sequence[str]
) -> _S:
    """A run's settings with overrides, which may only change its length and what leaves the result alone."""
    require_folder(run, "run directory")
    if not (run / "checkpoint" / "last.pt").exists():
        raise InputError(
            f"{run} has no checkpoint to go on from", fix="train anew from its config.toml"
        )
    settings = load_settings(kind, run / "config.toml", overrides=overrides)
    for override in overrides:
        if not override.strip().startswith(tuple(may_change)):
            raise ConfigError(
                f"--set {override} changes what was trained so far",
                expected=f"one of {', '.join(may_change)}",
            )
    return settings


def keep_settings(run: Path, settings: LoopSettings) -> None:
    """Write the settings that a resumed run goes on with."""
    with atomic_path(run / "config.toml") as part:
        part.write_text(to_toml(settings), encoding="utf-8")


def carry_out(training: Training, watch: Callable[[int], Watcher], *, resumed: bool) -> Path:
    """Train to the end, watched by ``watch(first epoch)``; returns the run directory."""
    run, fabric = training.run, training.fabric
    if resumed:
        training.restore()
    if training.finished:
        log.info("%s is finished (%d epochs)", run, training.state.epoch)
        return run
    if fabric.is_global_zero:
        size = sum(p.numel() for p in training.model.parameters())
        log.info(
            "%s: %s, %s parameters", run, training.train.shape(len(training.train)), f"{size:,}"
        )
    watcher = watch(training.state.epoch) if fabric.is_global_zero else None
    state = training.fit(watcher)
    if watcher is not None:
        watcher.close(training, state)
    return run
