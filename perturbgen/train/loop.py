"""The one training loop. It asks a model for the terms of its objective, and knows nothing of what they mean.

Ctrl-C between two steps: the first asks the loop to stop and save, a second one stops at once.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from perturbgen.core.errors import ConfigError
from perturbgen.train import schedules
from perturbgen.train.progress import Status
from perturbgen.train.protocols import Feed, Judge, SampleBatch, Watcher, explained, require_finite
from perturbgen.train.schedules import clip, remember_rates, set_rates, share_row_gradients
from perturbgen.train.settings import LoopSettings
from perturbgen.train.state import State, append_record, load_parameters, load_state, save_state

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from perturbgen.models.base import Trainable
    from perturbgen.nn.layers import Draws


class _Interrupts:
    """While it is entered, SIGINT and SIGTERM only set ``asked``; outside the main thread nothing changes."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


log = logging.getLogger(__name__)

_SAVE_EVERY = 60.0  # seconds between checkpoints, at the least


class Training:
    """A model, its optimisers and its samples on one device, epoch after epoch.

    ``validation`` is judged by the model's own terms, or everything by ``judge`` where one is given.
    """

    def __init__(
        self,
        run: Path,
        settings: LoopSettings,
        *,
        train: Feed,
        validation: Feed,
        model: Trainable,
        optimisers: list[torch.optim.Optimizer],
        fabric: Fabric,
        judge: Judge | None = None,
    ) -> None:
        self.run, self.settings, self.fabric = run, settings, fabric
        self.train, self.validation, self.judge = train, validation, judge
        self.model = model
        remember_rates(optimisers)
        wrapped = fabric.setup(model, *optimisers)
        self.wrapped, self.optimisers = wrapped[0], list(wrapped[1:])
        self.state = State()
        self.best_model: dict[str, torch.Tensor] | None = None
        self.saved_at = time.monotonic()

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return self.train.steps(self.fabric.world_size)

    def fit(self, watcher: Watcher | None = None) -> State:
        """Train until the last epoch, or until nothing is gained any more."""
        if self.model.annealed:
            schedules.warn_of_long_warmup(
                self.settings.annealing, self.steps_per_epoch, self.settings.training.epochs
            )
        with (
            _Interrupts() as interrupts,
            Status(self.settings.training.epochs, self.train.unit) as status,
        ):
            while not self.finished:
                record = self.epoch(interrupts)
                self.select(record)
                status.show(record)
                if self.fabric.is_global_zero:
                    append_record(self.run, record)
                    if watcher is not None:
                        watcher.epoch(self, record)
                if self.finished or time.monotonic() - self.saved_at > _SAVE_EVERY:
                    self.save()
        return self.state

    def epoch(self, interrupts: _Interrupts) -> dict[str, Any]:
        """One pass over the training samples, then one over the validation samples: what came of both."""
        state, size = self.state, self.settings.training.batch_size
        self.wrapped.train()
        began = time.perf_counter()
        for batch in self.train.epoch(
            state.epoch,
            skip=state.batch,
            rank=self.fabric.global_rank,
            ranks=self.fabric.world_size,
        ):
            with explained(self.train, size):
                self.add(self.step(batch))
            state.batch, state.step = state.batch + 1, state.step + 1
            if self.anywhere(interrupts.asked):
                state.seconds += time.perf_counter() - began
                self.save()
                log.info(
                    "interrupted in epoch %d; --resume %s goes on from there", state.epoch, self.run
                )
                raise KeyboardInterrupt
        state.seconds += time.perf_counter() - began
        record = self.summarise()
        record.update(self.validate())
        state.epoch, state.batch, state.sums, state.seconds = state.epoch + 1, 0, {}, 0.0
        return record

    def step(self, batch: SampleBatch) -> dict[str, float]:
        """One step of all optimisers; the sums of the terms over the batch's samples, and the gradient's norm."""
        fabric, step = self.fabric, self.state.step
        total = self.train.total(self.state.batch)
        set_rates(self.optimisers, self.rate_factor())
        self.model.advance(step)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        terms = self.wrapped(batch, self.draws(step, total))
        weights = self.weights(
            schedules.annealed_weight(self.settings.annealing, step, self.steps_per_epoch)
        )
        # Gradients are averaged over processes: each brings its share of the batch's mean.
        loss = sum(weights[name] * term.sum() for name, term in terms.items()) * (
            fabric.world_size / total
        )
        fabric.backward(loss)
        share_row_gradients(fabric, self.model, math.ceil(total / fabric.world_size))
        norm = clip(self.model, self.settings.training.clip_norm)
        sums = self.collect(terms)
        require_finite(self, sums, norm, batch)
        for optimiser in self.optimisers:
            optimiser.step()
        return {**sums, "norm": norm, "samples": total}

    def validate(self) -> dict[str, float]:
        """How the model does on the validation samples; every process sees all of them."""
        if self.judge is None and not len(self.validation):
            return {}
        self.wrapped.eval()
        found = self.judge(self.model) if self.judge else self.validation_terms()
        return {f"validation/{name}": value for name, value in found.items()}

    def validation_terms(self) -> dict[str, float]:
        """The model's terms on the validation samples, each a mean over samples, and the objective."""
        sums: dict[str, float] = {}
        for number, batch in enumerate(self.validation.once()):
            with self.fabric.autocast():
                terms = self.model.validate(batch, self.draws(number, None))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.sum())
        means = {name: value / len(self.validation) for name, value in sums.items()}
        return {**means, "objective": self.objective(means)}

    def select(self, record: dict[str, Any]) -> None:
        """Keep the best model by the full-weight objective; its patience begins after the warm-up."""
        state, settings = self.state, self.settings
        value = record.get("validation/objective", record["train/objective"])
        if value < state.best - settings.stopping.min_gain:
            state.best, state.best_epoch, state.waited = value, state.epoch - 1, 0
            self.best_model = {
                k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()
            }
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
        """Epochs under an annealed weight that still rises."""
        return (
            schedules.warmup_epochs(self.settings.annealing, self.steps_per_epoch)
            if self.model.annealed
            else 0
        )

    def weights(self, annealed: float) -> dict[str, float]:
        """The weight of each term."""
        return defaultdict(lambda: 1.0, dict.fromkeys(self.model.annealed, annealed))

    def objective(self, means: dict[str, float]) -> float:
        """The objective at its full weights, per sample."""
        weights = self.weights(self.settings.annealing.weight)
        return sum(weights[name] * value for name, value in means.items())

    def summarise(self) -> dict[str, Any]:
        """The epoch's means."""
        state = self.state
        samples, norm = state.sums.pop("samples"), state.sums.pop("norm")
        means = {name: value / samples for name, value in state.sums.items()}
        return {
            "epoch": state.epoch,
            "step": state.step,
            **{f"train/{name}": value for name, value in means.items()},
            "train/objective": self.objective(means),
            "weight": schedules.annealed_weight(
                self.settings.annealing, state.step - 1, self.steps_per_epoch
            ),
            "rate": self.settings.training.learning_rate * self.rate_factor(),
            "norm": norm / state.batch,
            f"{self.train.unit}_per_second": samples / state.seconds,
        }

    def rate_factor(self) -> float:
        """What learning rates are multiplied by now."""
        training = self.settings.training
        return schedules.rate_factor(
            training.decay, self.state.step, training.epochs * self.steps_per_epoch
        )

    def draws(self, step: int, total: int | None) -> Draws:
        """The random numbers of a step, a pure function of seed and step: a resumed run draws the same."""
        import numpy as np
        import torch

        from perturbgen.nn.layers import Draws

        words = np.random.SeedSequence(
            [self.settings.seed, int(total is None), step]
        ).generate_state(1, np.uint64)
        number = int(words[0] >> 1)
        torch.manual_seed(number + self.fabric.global_rank)  # dropout
        generator = torch.Generator(self.fabric.device).manual_seed(number)
        if total is None:
            return Draws(generator)
        return Draws(
            generator, rank=self.fabric.global_rank, ranks=self.fabric.world_size, total=total
        )

    def collect(self, terms: dict[str, torch.Tensor]) -> dict[str, float]:
        """Sums over the batch's samples in all processes."""
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
        votes = self.fabric.all_reduce(
            torch.tensor(float(asked), device=self.fabric.device), reduce_op="sum"
        )
        return bool(torch.as_tensor(votes) > 0)

    def add(self, values: dict[str, float]) -> None:
        """Add a step's sums to the epoch's."""
        self.state.add(values)

    def save(self) -> None:
        """Write the last state, and the best model beside it."""
        if not self.fabric.is_global_zero:
            return
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        last = {
            "model": self.model.state_dict(),
            "optimisers": optimisers,
            "state": asdict(self.state),
        }
        if self.best_model is not None:
            save_state(self.run, "best", {"model": self.best_model, "epoch": self.state.best_epoch})
        save_state(self.run, "last", last)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Go on where the run stopped."""
        last = load_state(self.run, "last")
        load_parameters(self.model, last["model"], self.run)
        if len(last["optimisers"]) != len(self.optimisers):
            raise ConfigError(
                f"{self.run}: its checkpoint has other optimisers", cause="config.toml was edited"
            )
        for optimiser, saved in zip(self.optimisers, last["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.state = State(**last["state"])
        if self.state.best_epoch >= 0:
            self.best_model = load_state(self.run, "best")["model"]
