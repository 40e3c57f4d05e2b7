"""What the loop is given: feeds of samples, a judge of the model, and somebody who watches.

What can go wrong in a step, in words: an objective that is no number, a batch that does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from perturbgen.core.errors import PerturbgenError, StorageError, shorten

if TYPE_CHECKING:
    import torch

    from perturbgen.models.base import Trainable
    from perturbgen.train.loop import Training
    from perturbgen.train.state import State

# Numbers of a model on samples that it is not trained on, "objective" (the smaller, the better) among them.
Judge = Callable[["Trainable"], dict[str, float]]


class SampleBatch(Protocol):
    """Some samples of a feed; what else a batch holds is between the feed and the model."""

    @property
    def index(self) -> torch.Tensor:
        """int64 (samples,): their positions in the feed."""


class Feed(Protocol):
    """Samples in batches on the run's device. What an epoch yields is a pure function of its number."""

    @property
    def unit(self) -> str:
        """What samples are called: "cells"."""

    def __len__(self) -> int:
        """How many samples there are."""

    def steps(self, ranks: int) -> int:
        """How many batches an epoch has for so many processes."""

    def total(self, batch: int) -> int:
        """How many samples batch number ``batch`` of an epoch has, in all processes together."""

    def epoch(
        self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[SampleBatch]:
        """The batches of an epoch from number ``skip`` on; of ``ranks`` processes each gets its share of every one."""

    def once(self) -> Iterator[SampleBatch]:
        """Every sample once, in stored order."""

    def names(self, index: torch.Tensor) -> Sequence[Any]:
        """What samples are called, for messages."""

    def shape(self, size: int) -> str:
        """``128 cells x 2,000 genes``: a batch of that size, for messages."""


class Watcher(Protocol):
    """Somebody to be shown a run: TensorBoard."""

    def epoch(self, training: Training, record: dict[str, Any]) -> None:
        """After each epoch."""

    def close(self, training: Training, state: State) -> None:
        """After the last one."""


class _DivergenceError(PerturbgenError):
    """The objective is no longer a number."""


def require_finite(
    training: Training, sums: dict[str, float], norm: float, batch: SampleBatch
) -> None:
    """Stop at the first step that is no number, before it reaches the parameters."""
    broken = [name for name, value in sums.items() if not math.isfinite(value)]
    if broken or not math.isfinite(norm):
        state, feed = training.state, training.train
        raise _DivergenceError(
            f"step {state.step} (epoch {state.epoch}): {broken or 'the gradient'} is not finite; "
            f"{feed.unit} {shorten(feed.names(batch.index[:5]))}",
            cause=_likely_cause(training.model, training.settings.training.learning_rate),
            fix=f"a lower learning rate; the last good model is in {training.run / 'checkpoint'}",
        )


def _likely_cause(model: Trainable, rate: float) -> str:
    """What most often makes an objective blow up, as far as it can be told."""
    import torch

    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        return f"parameters that are not finite: {shorten(bad, 2)}"
    largest = max(
        (float(p.detach().abs().max()), name) for name, p in model.named_parameters() if p.numel()
    )
    if largest[0] > 1e4:
        return f"parameters that grew without bound (|{largest[1]}| up to {largest[0]:.2g})"
    return f"a learning rate of {rate:g} that is too large for these data"


@contextmanager
def explained(feed: Feed, size: int) -> Iterator[None]:
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
