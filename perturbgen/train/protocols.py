"""What the loop is given: feeds of samples, a judge of the model, and somebody who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from perturbgen.nn.trainable import Trainable
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

    def epoch(self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[SampleBatch]:
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
