"""A training run, whatever is trained: how it starts, goes on and is read again.

A kind of model brings a :class:`Recipe`: how its data are read, its model built, judged and shown.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from perturbgen.core.errors import ConfigError, InputError, SchemaError, StorageError, shorten
from perturbgen.core.files import (
    atomic_path,
    only_writer,
    remove,
    require_file,
    require_folder,
    require_writable,
)
from perturbgen.core.runs import create_run, file_hash, find_run
from perturbgen.core.system import choose_device, cores, keep_freed_memory
from perturbgen.train.automatic import fit_length, fit_machine, say_precision, taken_over
from perturbgen.train.card import Card
from perturbgen.train.checkpoint import load_state
from perturbgen.train.gauges import LatentSpace
from perturbgen.train.settings import LoopSettings, LoopTraining

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from lightning_fabric import Fabric

    from perturbgen.train.board import Board
    from perturbgen.train.loop import Training

log = logging.getLogger(__name__)

# Bytes of an array of a batch that is kept for the next one. By default glibc returns such blocks
# and gets them back zeroed, page by page: keeping them is up to 1.6 times as fast.
LARGEST = 1 << 30
# What leaves the steps that were already made alone.
_MAY_CHANGE = ("training.epochs", "stopping.patience", "training.threads", "board")

_S = TypeVar("_S", bound=LoopSettings)
_D = TypeVar("_D")
_M = TypeVar("_M")
_C = TypeVar("_C", bound=Card)
_R = TypeVar("_R", bound="Trained[Any, Any, Any]")


@dataclass(frozen=True, eq=False)
class Trained(Generic[_S, _M, _C]):
    """A run as it is used: its model in evaluation mode, with what its inputs mean."""

    path: Path
    settings: _S
    model: _M
    card: _C

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path}, {type(self.model).__name__})"

    def parts(self) -> pd.Series:
        """The part (train, validation, ...) of each of the run's samples, by name."""
        return self.card.read_members(self.path)["part"]


class Recipe(ABC, Generic[_S, _D, _C, _R]):
    """What a kind of model brings to a run: its settings, its data as read, its card, its use."""

    settings: type[_S]
    card: type[_C]
    trained: type[_R]
    unit: str  # what samples are called: "cells"
    may_change: tuple[str, ...] = ()  # settings that a resumed run may have changed, beside ours

    @abstractmethod
    def read(self, settings: _S) -> _D:
        """Read and split the data; statistics of values are those of the training part alone.

        Labels are not: a covariate's categories may be those of all parts.
        """

    @abstractmethod
    def sources(self, settings: _S) -> Iterable[Path]:
        """What is read; the hashes of those that are files are kept with the run."""

    @abstractmethod
    def describe(self, settings: _S, data: _D) -> _C:
        """The card of a run about to start."""

    @abstractmethod
    def members(self, data: _D) -> pd.DataFrame:
        """A row for each sample, its part in column ``part``, for the card to keep."""

    @abstractmethod
    def assemble(self, run: Path, settings: _S, data: _D, fabric: Fabric) -> Training:
        """The loop with its feeds, the model, its optimisers and its judge."""

    @abstractmethod
    def board(self, run: Path, settings: _S, epoch: int) -> Board:
        """What TensorBoard is shown from an epoch on."""

    @abstractmethod
    def blank(self, run: Path, settings: _S, card: _C) -> torch.nn.Module:
        """A model of the right shape, whose parameters come from a checkpoint."""

    def train(
        self,
        settings: _S,
        *,
        runs: str | Path = Path("runs"),
        devices: int = 1,
        num_nodes: int = 1,
        accelerator: str = "auto",
    ) -> Path:
        """Train a model from the first step; returns its run directory."""
        runs = Path(runs)
        # Asked in every process: where only the first fails, the others would wait for it.
        require_writable(runs / "run")
        fitted = fit_machine(settings.training, accelerator=accelerator, ranks=devices)
        settings = settings.model_copy(update={"training": fitted})
        fabric = launch(fitted, devices=devices, num_nodes=num_nodes, accelerator=accelerator)
        data = self.read(settings)
        samples = int((self.members(data)["part"] == "train").sum())
        settings = fit_length(settings, samples, self.unit)
        card = self.describe(settings, data)  # in every process, as what it refuses ends them all
        self._require_memory(runs, settings, card, fabric.device)
        run = runs
        if fabric.is_global_zero:  # it names the run, and tells the others
            hashes = self._hashes(settings)
            run = create_run(runs, settings.name, settings, seed=settings.seed, data=hashes)
            card.write(run, self.members(data))
        run = fabric.broadcast(run)
        with _sole_writer(run):
            with _begun(run, fabric):
                training = self.assemble(run, settings, data, fabric)
            _carry_out(training, partial(self.board, run, settings))
        return run

    def resume(
        self,
        run: str | Path,
        overrides: Sequence[str] = (),
        *,
        devices: int = 1,
        num_nodes: int = 1,
        accelerator: str = "auto",
    ) -> Path:
        """Go on with a run where its last checkpoint stands; only its length may be changed."""
        run = find_run(run)
        settings = self._settings_to_resume(run, overrides)
        with _sole_writer(run):  # before there are others, which would wait for the first
            say_precision(settings.training, accelerator=accelerator)
            fabric = launch(
                settings.training, devices=devices, num_nodes=num_nodes, accelerator=accelerator
            )
            data = self.read(settings)
            self._require_same(run, data)
            with _fits_memory():
                training = self.assemble(run, settings, data, fabric)
            training.restore()
            # Written last: settings that cannot be gone on with leave the run as it was.
            if overrides and fabric.is_global_zero:
                with atomic_path(run / "config.toml") as part:
                    part.write_text(settings.to_toml(), encoding="utf-8")
            _carry_out(training, partial(self.board, run, settings))
        return run

    def _require_memory(self, runs: Path, settings: _S, card: _C, device: torch.device) -> None:
        """A model that cannot fit is refused before it takes the machine's other programs along."""
        import torch

        with torch.device("meta"):  # of the right shape, without its numbers
            size = sum(part.numel() for part in self.blank(runs, settings, card).parameters())
        needed, free = _COPIES * 4 * size, _free_memory(device)
        if needed > free:
            raise StorageError(
                f"a model of {size:,} parameters needs {needed / 1e9:,.1f} GB to be trained, and "
                f"{free / 1e9:,.1f} GB are free",
                fix="smaller layers: --dry-run prints the settings of the model",
            )

    def train_once(
        self, settings: _S, *, runs: str | Path = Path("runs"), accelerator: str = "auto"
    ) -> Path:
        """As ``train``, but takes (or finishes) a run of the same settings and data in ``runs``."""
        runs = Path(runs)
        for run in sorted(runs.glob("[0-9]*/")):
            if (
                (run / "checkpoint" / "last.pt").exists()
                and self._asked_before(run, settings)
                and json.loads((run / "env.json").read_text())["data"] == self._hashes(settings)
            ):
                return self.resume(run, accelerator=accelerator)
        return self.train(settings, runs=runs, accelerator=accelerator)

    def _asked_before(self, run: Path, settings: _S) -> bool:
        """Whether a run is one of these settings."""
        found = (run / "config.toml").read_text(encoding="utf-8")
        try:
            other = self.settings.load(base=tomllib.loads(found))
        except (ConfigError, ValueError):  # of another kind, or another version
            return False
        return found == taken_over(settings, other).to_toml()

    def load(self, path: str | Path, *, which: str = "best", device: str = "auto") -> _R:
        """A trained run, its best (or last) model on a device, ready for use."""
        # Asked first: torch would refuse a device that is not there only once the weights are read.
        device = choose_device(device)
        path = require_folder(find_run(path), "run directory")
        card = self.card.read(path)
        settings = self.settings.load(path / "config.toml")
        model = self.blank(path, settings, card)
        load_state(path, which, model)
        return self.trained(path, settings, model.to(device).eval(), card)

    def ending(self, run: Path) -> dict[str, Any]:
        """How a run ended: its best epoch, by the validation objective if it has one."""
        path = require_file(run / "metrics.jsonl", "record of a run's epochs")
        try:
            records = [json.loads(line) for line in path.read_text().splitlines()]
        except ValueError as error:
            raise InputError(
                f"{path} cannot be read: {error}", cause="it was edited, or a copy broke off"
            ) from None
        validated = "validation/objective" in records[-1]
        key = "validation/objective" if validated else "train/objective"
        best = min(records, key=lambda record: record[key])
        speed = f"{self.unit}_per_second"
        found = {"run": str(run), "epochs": len(records), "best_epoch": best["epoch"]}
        found |= {"measure": key, "best": best[key]}
        # near 0 the latent space is empty: a reader of the table would else not see it
        kl = best.get("validation/kl", best.get("train/kl"))
        found |= {} if kl is None else {"kl": kl}
        space = LatentSpace.read(run)
        found |= {} if space is None else {"active_dimensions": str(space)}
        found |= {speed: records[-1][speed]}
        return {**found, **({"latent": space.sentence()} if space and space.sentence() else {})}

    def _hashes(self, settings: _S) -> dict[str, str]:
        return {str(path): file_hash(path) for path in self.sources(settings) if path.is_file()}

    def _settings_to_resume(self, run: Path, overrides: Sequence[str]) -> _S:
        """The settings of a run, with overrides that leave its steps so far alone."""
        require_folder(run, "run directory")
        if not (run / "checkpoint" / "last.pt").exists():
            raise InputError(
                f"{run} has no checkpoint to go on from", fix="train anew from its config.toml"
            )
        settings = self.settings.load(run / "config.toml", overrides=overrides)
        may_change = (*_MAY_CHANGE, *self.may_change)
        for override in overrides:
            if not override.strip().startswith(may_change):
                raise ConfigError(
                    f"--set {override} changes what was trained so far",
                    expected=f"one of {', '.join(may_change)}",
                )
        return settings

    def _require_same(self, run: Path, data: _D) -> None:
        """Refuse to resume on other samples: the order of batches belongs to those of the start."""
        before, now = self.card.read_members(run), self.card.by_name(self.members(data))
        if before.index.equals(now.index) and before["part"].tolist() == now["part"].tolist():
            return
        gone, new = before.index.difference(now.index), now.index.difference(before.index)
        differ = f"gone: {shorten(gone)}; new: {shorten(new)}"
        raise SchemaError(
            f"the {self.unit} are not those that {run} was trained on "
            f"({differ if len(gone) + len(new) else 'another order or split'})",
            expected=f"its {len(before):,} {self.unit} in their order and parts",
            fix="name the same data, or train anew",
        )


_COPIES: Final = 5  # parameters, gradients, Adam's two moments, the best model so far


def _free_memory(device: torch.device) -> float:
    """Bytes that a device has left; without end where the system does not say."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError, StopIteration), open("/proc/meminfo") as lines:
        return 1024 * float(next(x for x in lines if x.startswith("MemAvailable")).split()[1])
    return math.inf


@contextmanager
def _begun(run: Path, fabric: Fabric) -> Iterator[None]:
    """A run that never came to its first step leaves no directory behind."""
    try:
        with _fits_memory():
            yield
    except BaseException:
        if fabric.is_global_zero:
            remove(run)
            with suppress(OSError):  # which other runs are in
                run.parent.rmdir()
        raise


@contextmanager
def _fits_memory() -> Iterator[None]:
    """A model too large for the memory is an error that says so."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise StorageError(
            "a model of this size does not fit into memory",
            fix="smaller layers: --dry-run prints the settings of the model",
        ) from error


def _sole_writer(run: Path) -> AbstractContextManager[None]:
    """Two trainings of one run would overwrite each other; the first process holds it for all."""
    ranks = (int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "NODE_RANK"))
    return nullcontext() if any(ranks) else only_writer(run)


def _carry_out(training: Training, watch: Callable[[int], Board]) -> None:
    """Train to the end, shown on the board of ``watch(first epoch)`` by the first process."""
    if training.finished:
        log.info("%s is finished (%d epochs)", training.run, training.state.epoch)
        return
    if not training.fabric.is_global_zero:
        training.fit()
        return
    shape = training.train.shape(len(training.train))
    size = sum(p.numel() for p in training.model.parameters())
    log.info("%s: %s, %s parameters", training.run, shape, f"{size:,}")
    board = watch(training.state.epoch)
    training.fit(board.epoch)
    board.close(training)


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
    training = fit_machine(training, accelerator=accelerator, ranks=devices)
    torch.set_num_threads(training.threads or 1)
    try:
        with _precision_unsaid():
            fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                precision=cast("Any", training.precision),
                strategy="ddp" if ranks > 1 else "auto",
            )
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        raise ConfigError(f"--device {accelerator} --devices {devices}: {error}") from None
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


@contextmanager
def _precision_unsaid() -> Iterator[None]:
    """Without Lightning's own word on the precision: ours was said, with the reason for it."""
    about = logging.getLogger("lightning_fabric.utilities.rank_zero")

    def other(record: logging.LogRecord) -> bool:
        return "Automatic Mixed Precision" not in record.getMessage()

    about.addFilter(other)
    try:
        yield
    finally:
        about.removeFilter(other)


def require_unseen(
    start: Path,
    withheld: Mapping[str, Iterable[Any]],
    trained_on: Callable[[Path], tuple[Mapping[str, Iterable[Any]], Path | None]],
    *,
    fix: str,
) -> None:
    """Refuse to start from a run that was trained on what is ``withheld`` here, named by kind.

    ``trained_on(run)`` gives what a run was trained on, and the run that it started from itself:
    what that one has seen is in the weights, too.
    """
    run: Path | None = start
    while run is not None:
        seen, before = trained_on(run)
        for kind, names in withheld.items():
            leaked = sorted(set(names) & set(seen[kind]))
            if leaked:
                raise ConfigError(
                    f"{run} was trained on {len(leaked)} of {kind} that are withheld here: "
                    f"{shorten(leaked)}",
                    expected="a start that has not seen what validation and test ask about",
                    fix=fix,
                )
        run = before
