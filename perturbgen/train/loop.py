"""The one training loop: it asks a model for the terms of its objective, whatever they mean."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbgen.core.errors import InputError, PerturbgenError, StorageError, shorten
from perturbgen.core.files import atomic_path, disk_errors
from perturbgen.train.checkpoint import load_state, save_state
from perturbgen.train.feeds import Feed, Judge
from perturbgen.train.progress import Progress
from perturbgen.train.settings import LoopSettings, Schedule

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from perturbgen.models.base import Trainable
    from perturbgen.nn.layers import Draws

log = logging.getLogger(__name__)

_SAVE_EVERY = 60.0  # seconds between checkpoints, at the least


class _DivergenceError(PerturbgenError):
    """The objective is no longer a number."""


@dataclass
class _State:
    """How far a run has come: all beside parameters and optimisers that a resumed run needs."""

    epoch: int = 0
    batch: int = 0  # of the epoch
    step: int = 0  # in all
    best: float = math.inf
    best_epoch: int = -1
    waited: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch so far
    seconds: float = 0.0


class Training:
    """A model, its optimisers and its samples on one device, epoch after epoch.

    ``validation`` is judged by the model's own terms, or all by ``judge`` where one is given.
    """

    def __init__(
        self,
        run: Path,
        settings: LoopSettings,
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
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["base_rate"] = group["lr"]  # what a schedule multiplies; kept in checkpoints
        wrapped = fabric.setup(model, *optimisers)
        self.wrapped, self.optimisers = wrapped[0], list(wrapped[1:])
        self.schedule = Schedule(settings, train.steps(fabric.world_size))
        self.state = _State()
        self.best_model: dict[str, torch.Tensor] | None = None
        self.saved_at = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or the patience used up."""
        patience = self.settings.stopping.patience
        in_vain = patience is not None and self.state.waited >= patience
        return in_vain or self.state.epoch >= self.settings.training.length

    def fit(self, show: Callable[[Training, dict[str, Any]], None] | None = None) -> None:
        """Train until the last epoch, or until nothing is gained any more; show every epoch."""
        if self.model.annealed:
            self.schedule.warn_of_long_warmup()
        with Progress(self.settings.training.length, self.train.unit) as progress:
            while not self.finished:
                record = self._epoch(progress)
                self._select(record)
                progress.show(record)
                if self.fabric.is_global_zero:
                    _append_record(self.run, record)
                    if show is not None:
                        show(self, record)
                if self.finished or time.monotonic() - self.saved_at > _SAVE_EVERY:
                    self._save()

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        """A pass over the training samples, then one over the validation samples: their record."""
        state, fabric = self.state, self.fabric
        self.wrapped.train()
        began = time.perf_counter()
        for batch in self.train.epoch(
            state.epoch, skip=state.batch, rank=fabric.global_rank, ranks=fabric.world_size
        ):
            with _explained(self.train, self.settings.training.batch_size):
                self.add(self.step(batch))
            state.batch, state.step = state.batch + 1, state.step + 1
            whole = self.schedule.steps_per_epoch * self.settings.training.length
            progress.step(whole - state.step)
            if self._anywhere(bool(progress.asked)):
                state.seconds += time.perf_counter() - began
                self._save()
                log.info(
                    "interrupted in epoch %d; --resume %s goes on from there", state.epoch, self.run
                )
                if progress.asked == signal.SIGTERM:
                    raise SystemExit(128 + signal.SIGTERM)
                raise KeyboardInterrupt
        state.seconds += time.perf_counter() - began
        record = {**self._summary(), **self.validate()}
        state.epoch, state.batch, state.sums, state.seconds = state.epoch + 1, 0, {}, 0.0
        return record

    def step(self, batch: Any) -> dict[str, float]:
        """One step of all optimisers: sums of the terms over the batch, and the gradient's norm."""
        import torch

        fabric, step = self.fabric, self.state.step
        total = self.train.total(self.state.batch)
        rate_factor = self.schedule.rate_factor(step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base_rate"] * rate_factor
            optimiser.zero_grad()
        self.model.advance(step)
        terms = self.wrapped(batch, self.draws(step, total))
        totals = {name: term.sum() for name, term in terms.items()}
        # Gradients are averaged over processes: each brings its share of the batch's mean.
        share = fabric.world_size / total
        fabric.backward(self._objective(totals, self.schedule.weight(step)) * share)
        _share_row_gradients(fabric, self.model, math.ceil(total / fabric.world_size))
        # Sparse gradients are not clipped: Adam makes a step's length independent of their scale.
        dense = [p for p in self.model.parameters() if p.grad is not None and not p.grad.is_sparse]
        norm = float(torch.nn.utils.clip_grad_norm_(dense, self.settings.training.clip_norm))
        sums = self._collect(terms)
        self._require_finite(sums, norm, batch)  # before anything broken reaches the parameters
        for optimiser in self.optimisers:
            optimiser.step()
        return {**sums, "norm": norm, "samples": total}

    def add(self, values: dict[str, float]) -> None:
        """Add a step's sums to the epoch's."""
        for name, value in values.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + value

    def validate(self) -> dict[str, float]:
        """How the model does on the validation samples; every process sees all of them."""
        self.wrapped.eval()
        if self.judge is not None:
            found = self.judge(self.model)
        else:
            found = self._validation_terms() if len(self.validation) else {}
        return {f"validation/{name}": value for name, value in found.items()}

    def _validation_terms(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for number, batch in enumerate(self.validation.once()):
            with self.fabric.autocast():
                terms = self.model.validate(batch, self.draws(number, None))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.sum())
        means = {name: value / len(self.validation) for name, value in sums.items()}
        return {**means, "objective": self._objective(means, self.settings.annealing.weight)}

    def _select(self, record: dict[str, Any]) -> None:
        """Keep the best model, and count the epochs that have passed without a better one.

        What decides is ``validation/objective``: the judge's own where one is given, else the
        model's at its full weights. Without validation samples it is ``train/objective``.
        """
        state, settings = self.state, self.settings
        value = record.get("validation/objective", record["train/objective"])
        if value < state.best - settings.stopping.min_gain:
            # ``_epoch`` has moved ``state.epoch`` on to the next one.
            state.best, state.best_epoch, state.waited = value, state.epoch - 1, 0
            parameters = self.model.state_dict()
            self.best_model = {name: p.detach().cpu().clone() for name, p in parameters.items()}
            return
        # While the weight of an annealed term still rises, the full-weight objective may well get
        # worse: patience counts after the warm-up only.
        if state.epoch > (self.schedule.warmup_epochs if self.model.annealed else 0):
            state.waited += 1

    def _objective(self, terms: Mapping[str, Any], annealed: float) -> Any:
        """The sum of the terms, of which the annealed ones have this weight."""
        weights = dict.fromkeys(self.model.annealed, annealed)
        return sum(weights.get(name, 1.0) * value for name, value in terms.items())

    def _summary(self) -> dict[str, Any]:
        """The record of the epoch's training."""
        state = self.state
        samples, norm = state.sums.pop("samples"), state.sums.pop("norm")
        means = {name: value / samples for name, value in state.sums.items()}
        return {
            "epoch": state.epoch,
            "step": state.step,
            **{f"train/{name}": value for name, value in means.items()},
            # At full weights: on an annealed objective the first epochs would always be the best.
            "train/objective": self._objective(means, self.settings.annealing.weight),
            "weight": self.schedule.weight(state.step - 1),
            "rate": self.settings.training.learning_rate * self.schedule.rate_factor(state.step),
            "norm": norm / state.batch,
            f"{self.train.unit}_per_second": samples / state.seconds,
        }

    def draws(self, step: int, total: int | None) -> Draws:
        """The random numbers of a step, a pure function of seed and step: a resumed run draws them.

        ``total`` are the samples of the batch in all processes, None in validation.
        """
        import numpy as np
        import torch

        from perturbgen.nn.layers import Draws

        fabric, words = self.fabric, [self.settings.seed, int(total is None), step]
        number = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(number + fabric.global_rank)  # dropout, which takes no generator
        generator = torch.Generator(fabric.device).manual_seed(number)
        if total is None:
            return Draws(generator)
        return Draws(generator, rank=fabric.global_rank, ranks=fabric.world_size, total=total)

    def _collect(self, terms: dict[str, torch.Tensor]) -> dict[str, float]:
        """Sums over the batch's samples in all processes."""
        import torch

        sums = torch.stack([term.detach().double().sum() for term in terms.values()])
        if self.fabric.world_size > 1:
            sums = torch.as_tensor(self.fabric.all_reduce(sums, reduce_op="sum"))
        return dict(zip(terms, sums.tolist(), strict=True))

    def _anywhere(self, asked: bool) -> bool:
        """Whether any process was asked to stop."""
        import torch

        if self.fabric.world_size == 1:
            return asked
        # All must stop after the same step, or they would wait for each other for ever.
        vote = torch.tensor(float(asked), device=self.fabric.device)
        return bool(torch.as_tensor(self.fabric.all_reduce(vote, reduce_op="sum")) > 0)

    def _require_finite(self, sums: dict[str, float], norm: float, batch: Any) -> None:
        """Stop at the first step that is not a number, with the samples and the likely cause."""
        import torch

        broken = [name for name, value in sums.items() if not math.isfinite(value)]
        if not broken and math.isfinite(norm):
            return
        named = {name: p.detach() for name, p in self.model.named_parameters() if p.numel()}
        bad = [name for name, value in named.items() if not bool(torch.isfinite(value).all())]
        size, largest = max((float(value.abs().max()), name) for name, value in named.items())
        rate = self.settings.training.learning_rate
        if bad:
            cause = f"parameters that are not finite: {shorten(bad, 2)}"
        elif size > 1e4:
            cause = f"parameters that grew without bound (|{largest}| up to {size:.2g})"
        else:
            cause = f"a learning rate of {rate:g} that is too large for these data"
        self._save_best()  # else an hour's best model would go with the broken one
        best = self.run / "checkpoint" / "best.pt"
        raise _DivergenceError(
            f"step {self.state.step} (epoch {self.state.epoch}): {broken or 'the gradient'} is not "
            f"finite; {self.train.unit} {shorten(self.train.names(batch.index[:5]))}",
            cause=cause,
            fix="a lower learning rate"
            + (f"; the best model so far is {best}" if best.exists() else ""),
        )

    def _save(self) -> None:
        """Write the last state, and the best model beside it."""
        if not self.fabric.is_global_zero:
            return
        self._save_best()
        last = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "state": asdict(self.state),
        }
        save_state(self.run, "last", last)
        self.saved_at = time.monotonic()

    def _save_best(self) -> None:
        if self.best_model is not None and self.fabric.is_global_zero:
            save_state(self.run, "best", {"model": self.best_model, "epoch": self.state.best_epoch})

    def restore(self) -> None:
        """Go on where the run stopped."""
        last = load_state(self.run, "last", self.model)
        try:
            for optimiser, saved in zip(self.optimisers, last["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.state = _State(**last["state"])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{self.run}: its checkpoint cannot be gone on with: {error}",
                cause="config.toml was edited, or another version of perturbgen wrote last.pt",
                fix="train a new run; best.pt can still be used by encode, generate and predict",
            ) from None
        if self.state.best_epoch >= 0:
            self.best_model = load_state(self.run, "best")["model"]


@contextmanager
def _explained(feed: Feed, size: int) -> Iterator[None]:
    """Out of memory becomes an error that says which batch would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        raise StorageError(
            f"out of memory in a batch of {feed.shape(size)}",
            fix=f"--set training.batch_size={max(1, size // 2)}",
        ) from error


def _append_record(run: Path, record: dict[str, Any]) -> None:
    """Add an epoch to ``metrics.jsonl``, in place of what an interrupted run wrote of it."""

    def epoch_of(line: str) -> float:
        try:
            return int(json.loads(line)["epoch"])
        except (ValueError, TypeError, KeyError):
            return math.inf  # a killed run left half a line, which belongs to no epoch

    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if epoch_of(line) < record["epoch"]]
    with disk_errors(path):
        if len(kept) < len(lines):
            with atomic_path(path) as part:
                part.write_text("".join(f"{line}\n" for line in kept))
        with path.open("a") as handle:
            handle.write(json.dumps(record) + "\n")


def _share_row_gradients(fabric: Fabric, model: torch.nn.Module, samples: int) -> None:
    """Average, over processes, the sparse gradients of representations that a batch touched.

    ``samples`` is the largest number of rows that a process has.
    """
    import torch

    for parameter in model.parameters():
        if parameter.grad is None or not parameter.grad.is_sparse or fabric.world_size == 1:
            continue
        # Only the touched rows travel, padded to one length. Every process then makes the same
        # step, so the tables stay equal and one checkpoint holds them all.
        grad = parameter.grad.coalesce()
        rows = torch.zeros(samples, dtype=torch.int64, device=grad.device)
        values = torch.zeros(samples, parameter.shape[1], device=grad.device)
        rows[: grad._nnz()], values[: grad._nnz()] = grad.indices()[0], grad.values()
        all_rows = torch.as_tensor(fabric.all_gather(rows)).reshape(1, -1)
        all_values = torch.as_tensor(fabric.all_gather(values)).flatten(0, 1)
        used = all_values.abs().sum(-1) > 0  # without the padding
        mean = all_values[used] / fabric.world_size
        parameter.grad = torch.sparse_coo_tensor(
            all_rows[:, used], mean, parameter.shape, check_invariants=False
        )
