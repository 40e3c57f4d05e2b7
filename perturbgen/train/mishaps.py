"""What can go wrong in a step, in words: an objective that is no number, a batch that does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from perturbgen.errors import PerturbgenError, StorageError, shorten

if TYPE_CHECKING:
    from perturbgen.nn.trainable import Trainable
    from perturbgen.train.loop import Training
    from perturbgen.train.protocols import Feed, SampleBatch


class DivergenceError(PerturbgenError):
    """The objective is no longer a number."""


def require_finite(training: Training, sums: dict[str, float], norm: float, batch: SampleBatch) -> None:
    """Stop at the first step that is no number, before it reaches the parameters."""
    broken = [name for name, value in sums.items() if not math.isfinite(value)]
    if broken or not math.isfinite(norm):
        state, feed = training.state, training.train
        raise DivergenceError(
            f"step {state.step} (epoch {state.epoch}): {broken or 'the gradient'} is not finite; "
            f"{feed.unit} {shorten(feed.names(batch.index[:5]))}",
            cause=likely_cause(training.model, training.settings.training.learning_rate),
            fix=f"a lower learning rate; the last good model is in {training.run / 'checkpoint'}",
        )


def likely_cause(model: Trainable, rate: float) -> str:
    """What most often makes an objective blow up, as far as it can be told."""
    import torch

    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        return f"parameters that are not finite: {shorten(bad, 2)}"
    largest = max((float(p.detach().abs().max()), name) for name, p in model.named_parameters() if p.numel())
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
            f"out of memory in a batch of {feed.shape(size)}", fix=f"--set training.batch_size={max(1, size // 2)}"
        ) from error
