"""What the loop is given: a feed of samples, and a judge of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from perturbgen.models.base import Trainable

# Numbers of a model on samples that it is not trained on; of "objective" less is better.
Judge = Callable[["Trainable"], dict[str, float]]


class SampleBatch(Protocol):
    """Some samples of a feed; what else a batch holds is between the feed and the model."""

    @property
    def index(self) -> torch.Tensor:
        """int64 (samples,): their positions in the feed."""


class Feed(Protocol):
    """Samples in batches on the run's device.

    What an epoch yields is a pure function of its number, so a resumed run sees what it would
    have seen; and every process takes its share of every batch, so several processes see what one
    would have seen.
    """

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
        """The batches of an epoch from number ``skip`` on, of each the share of one process."""

    def once(self) -> Iterator[SampleBatch]:
        """Every sample once, in stored order."""

    def names(self, index: torch.Tensor) -> Sequence[Any]:
        """What samples are called, for messages."""

    def shape(self, size: int) -> str:
        """``128 cells x 2,000 genes``: a batch of that size, for messages."""
