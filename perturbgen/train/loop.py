"""The one training loop. It asks a model for the terms of its objective, and knows nothing of what they mean."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbgen.data import CountStore, epoch_rng
from perturbgen.errors import ConfigError, PerturbgenError, StorageError, shorten
from perturbgen.files import atomic_path, disk_errors
from perturbgen.train import checkpoint, schedules
from perturbgen.train.feed import feed
from perturbgen.train.interrupts import Interrupts
from perturbgen.train.optimisers import clip, make_optimisers, set_rates, share_row_gradients
from perturbgen.train.settings import RunSettings
from perturbgen.train.status import Status

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from perturbgen.models import Draws, LatentModel
    from perturbgen.models.batch import CellBatch
    from perturbgen.train.board import Board
    from perturbgen.train.prepare import Cells

log = logging.getLogger(__name__)

SAVE_EVERY = 60.0  # seconds between checkpoints, at the least


class DivergenceError(PerturbgenError):
    """The objective is no longer a number."""


@dataclass
class State:
    """How far a run has come; everything beside the parameters that a resumed run needs."""

    epoch: int = 0
    batch: int = 0  # of the epoch
    step: int = 0  # in all
    best: float = math.inf
    best_epoch: int = -1
    waited: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch so far
    seconds: float = 0.0


class Training:
    """A model, its optimisers and its cells on one device, epoch after epoch."""

    def __init__(self, run: Path, settings: RunSettings, cells: Cells, model: LatentModel, fabric: Fabric) -> None:
        self.run, self.settings, self.fabric = run, settings, fabric
        self.train, self.validation = (resident(store, settings, fabric) for store in (cells.train, cells.validation))
        self.optimisers = make_optimisers(model, settings.training)
        self.model = model
        wrapped = fabric.setup(model, *self.optimisers)
        self.wrapped, self.optimisers = wrapped[0], list(wrapped[1:])
        self.state = State()
        self.best_model: dict[str, torch.Tensor] | None = None
        self.saved_at = time.monotonic()

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        whole, rest = divmod(len(self.train), self.settings.training.batch_size)
        return whole + (rest >= self.fabric.world_size)

    def fit(self, board: Board | None = None) -> State:
        """Train until the last epoch, or until nothing is gained any more."""
        if self.model.annealed:
            schedules.warn_of_long_warmup(self.settings.annealing, self.steps_per_epoch, self.settings.training.epochs)
        with Interrupts() as interrupts, Status(self.settings.training.epochs) as status:
            while not self.finished:
                record = self.epoch(interrupts)
                self.select(record)
                status.show(record)
                if self.fabric.is_global_zero:
                    append_record(self.run, record)
                    if board is not None:
                        board.epoch(self, record)
                if self.finished or time.monotonic() - self.saved_at > SAVE_EVERY:
                    self.save()
        return self.state

    def epoch(self, interrupts: Interrupts) -> dict[str, Any]:
        """One pass over the training cells, then one over the validation cells: what came of both."""
        state, training = self.state, self.settings.training
        self.wrapped.train()
        began = time.perf_counter()
        for batch in feed(
            self.train,
            training.batch_size,
            rng=epoch_rng(self.settings.seed, state.epoch),
            skip=state.batch,
            rank=self.fabric.global_rank,
            ranks=self.fabric.world_size,
        ):
            with self.explained(batch):
                self.add(self.step(batch))
            state.batch, state.step = state.batch + 1, state.step + 1
            if self.anywhere(interrupts.asked):
                state.seconds += time.perf_counter() - began
                self.save()
                log.info("interrupted in epoch %d; --resume %s goes on from there", state.epoch, self.run)
                raise KeyboardInterrupt
        state.seconds += time.perf_counter() - began
        record = self.summarise()
        record.update(self.validate())
        state.epoch, state.batch, state.sums, state.seconds = state.epoch + 1, 0, {}, 0.0
        return record

    def step(self, batch: CellBatch) -> dict[str, float]:
        """One step of all optimisers; the sums of the terms over the batch's cells, and the gradient's norm."""
        training, fabric = self.settings.training, self.fabric
        total = self.batch_total()
        set_rates(self.optimisers, self.rate_factor())
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        terms = self.wrapped(batch, self.draws(self.state.step, total))
        weights = self.weights(
            schedules.annealed_weight(self.settings.annealing, self.state.step, self.steps_per_epoch)
        )
        # Gradients are averaged over processes: each brings its share of the batch's mean.
        loss = sum(weights[name] * term.sum() for name, term in terms.items()) * (fabric.world_size / total)
        fabric.backward(loss)
        share_row_gradients(fabric, self.model, math.ceil(total / fabric.world_size))
        norm = clip(self.model, training.clip_norm)
        sums = self.collect(terms)
        self.require_finite(sums, norm, batch)
        for optimiser in self.optimisers:
            optimiser.step()
        return {**sums, "norm": norm, "cells": total}

    def validate(self) -> dict[str, float]:
        """The terms on the validation cells, each a mean over cells; every process sees all of them."""
        if not len(self.validation):
            return {}
        self.wrapped.eval()
        sums: dict[str, float] = {}
        batches = feed(self.validation, self.settings.training.batch_size)
        for number, batch in enumerate(batches):
            with self.fabric.autocast():
                terms = self.model.validate(batch, self.draws(number, None))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.sum())
        means = {name: value / len(self.validation) for name, value in sums.items()}
        return {f"validation/{name}": value for name, value in {**means, "objective": self.objective(means)}.items()}

    def select(self, record: dict[str, Any]) -> None:
        """Keep the best model by the full-weight objective; its patience begins after the warm-up."""
        state, settings = self.state, self.settings
        value = record.get("validation/objective", record["train/objective"])
        if value < state.best - settings.stopping.min_gain:
            state.best, state.best_epoch, state.waited = value, state.epoch - 1, 0
            self.best_model = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        elif state.epoch > self.warmup_epochs:
            state.waited += 1

    @property
    def finished(self) -> bool:
        """Whether the last epoch is over, or the patience."""
        patience = self.settings.stopping.patience
        in_vain = patience is not None and self.state.waited >= patience
        return in_vain or self.state.epoch >= self.settings.training.epochs

    @property
    def warmup_epochs(self) -> int:
        """Epochs under a KL weight that still rises."""
        return schedules.warmup_epochs(self.settings.annealing, self.steps_per_epoch) if self.model.annealed else 0

    def weights(self, annealed: float) -> dict[str, float]:
        """The weight of each term."""
        from collections import defaultdict

        weights: dict[str, float] = defaultdict(lambda: 1.0)
        weights.update(dict.fromkeys(self.model.annealed, annealed))
        return weights

    def objective(self, means: dict[str, float]) -> float:
        """The objective at its full weights, nats per cell."""
        weights = self.weights(self.settings.annealing.weight)
        return sum(weights[name] * value for name, value in means.items())

    def summarise(self) -> dict[str, Any]:
        """The epoch's means."""
        state = self.state
        cells, norm = state.sums.pop("cells"), state.sums.pop("norm")
        means = {name: value / cells for name, value in state.sums.items()}
        return {
            "epoch": state.epoch,
            "step": state.step,
            **{f"train/{name}": value for name, value in means.items()},
            "train/objective": self.objective(means),
            "weight": schedules.annealed_weight(self.settings.annealing, state.step - 1, self.steps_per_epoch),
            "rate": self.settings.training.learning_rate * self.rate_factor(),
            "norm": norm / state.batch,
            "cells_per_second": cells / state.seconds,
        }

    def rate_factor(self) -> float:
        """What learning rates are multiplied by now."""
        training = self.settings.training
        return schedules.rate_factor(training.decay, self.state.step, training.epochs * self.steps_per_epoch)

    def batch_total(self) -> int:
        """How many cells the present batch has in all processes together."""
        size = self.settings.training.batch_size
        return min(size, len(self.train) - self.state.batch * size)

    def draws(self, step: int, total: int | None) -> Draws:
        """The random numbers of a step, a pure function of seed and step: a resumed run draws the same."""
        import numpy as np
        import torch

        from perturbgen.models import Draws

        words = np.random.SeedSequence([self.settings.seed, int(total is None), step]).generate_state(1, np.uint64)
        number = int(words[0] >> 1)
        torch.manual_seed(number + self.fabric.global_rank)  # dropout
        generator = torch.Generator(self.fabric.device).manual_seed(number)
        if total is None:
            return Draws(generator)
        return Draws(generator, rank=self.fabric.global_rank, ranks=self.fabric.world_size, total=total)

    def collect(self, terms: dict[str, torch.Tensor]) -> dict[str, float]:
        """Sums over the batch's cells in all processes."""
        import torch

        sums = torch.stack([term.detach().double().sum() for term in terms.values()])
        if self.fabric.world_size > 1:
            sums = torch.as_tensor(self.fabric.all_reduce(sums, reduce_op="sum"))
        return dict(zip(terms, sums.tolist(), strict=True))

    def anywhere(self, asked: bool) -> bool:
        """Whether any process was asked to stop; all must stop after the same step, or they wait for each other."""
        import torch

        if self.fabric.world_size == 1:
            return asked
        votes = self.fabric.all_reduce(torch.tensor(float(asked), device=self.fabric.device), reduce_op="sum")
        return bool(torch.as_tensor(votes) > 0)

    def add(self, values: dict[str, float]) -> None:
        """Add a step's sums to the epoch's."""
        for name, value in values.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + value

    def require_finite(self, sums: dict[str, float], norm: float, batch: CellBatch) -> None:
        """Stop at the first step that is no number, before it reaches the parameters."""
        broken = [name for name, value in sums.items() if not math.isfinite(value)]
        if broken or not math.isfinite(norm):
            cells = self.train.obs.index[batch.index[:5].cpu().numpy()]
            raise DivergenceError(
                f"step {self.state.step} (epoch {self.state.epoch}): {broken or 'the gradient'} is not finite; "
                f"cells {shorten(cells)}",
                cause=likely_cause(self.model, self.settings),
                fix=f"a lower learning rate; the last good model is in {self.run / 'checkpoint'}",
            )

    @contextmanager
    def explained(self, batch: CellBatch) -> Iterator[None]:
        """Out of memory becomes an error that says which batch would fit."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
                raise
            size = self.settings.training.batch_size
            raise StorageError(
                f"out of memory in a batch of {size} cells x {self.train.n_genes:,} genes",
                fix=f"--set training.batch_size={max(1, size // 2)}",
            ) from error

    def save(self) -> None:
        """Write the last state, and the best model beside it."""
        if not self.fabric.is_global_zero:
            return
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        last = {"model": self.model.state_dict(), "optimisers": optimisers, "state": asdict(self.state)}
        if self.best_model is not None:
            checkpoint.save_state(self.run, "best", {"model": self.best_model, "epoch": self.state.best_epoch})
        checkpoint.save_state(self.run, "last", last)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Go on where the run stopped."""
        last = checkpoint.load_state(self.run, "last")
        checkpoint.load_parameters(self.model, last["model"], self.run)
        if len(last["optimisers"]) != len(self.optimisers):
            raise ConfigError(f"{self.run}: its checkpoint has other optimisers", cause="config.toml was edited")
        for optimiser, saved in zip(self.optimisers, last["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.state = State(**last["state"])
        if self.state.best_epoch >= 0:
            self.best_model = checkpoint.load_state(self.run, "best")["model"]


def resident(store: CountStore, settings: RunSettings, fabric: Fabric) -> CountStore:
    """The store on the device, if it shall be."""
    return store.to(fabric.device) if settings.training.resident and not settings.data.on_disk else store


def likely_cause(model: LatentModel, settings: RunSettings) -> str:
    """What most often makes an objective blow up, as far as it can be told."""
    import torch

    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        return f"parameters that are not finite: {shorten(bad, 2)}"
    largest = max((float(p.detach().abs().max()), name) for name, p in model.named_parameters() if p.numel())
    if largest[0] > 1e4:
        return f"parameters that grew without bound (|{largest[1]}| up to {largest[0]:.2g})"
    return f"a learning rate of {settings.training.learning_rate:g} that is too large for these data"


def append_record(run: Path, record: dict[str, Any]) -> None:
    """Add an epoch to ``metrics.jsonl``, in place of what an interrupted run wrote of it."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if epoch_of(line) < record["epoch"]]
    with disk_errors(path):
        if len(kept) < len(lines):
            with atomic_path(path) as part:
                part.write_text("".join(f"{line}\n" for line in kept))
        with path.open("a") as handle:
            handle.write(json.dumps(record) + "\n")


def epoch_of(line: str) -> float:
    """The epoch of a line of ``metrics.jsonl``; a line that a killed run left half-written belongs to no epoch."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return math.inf
