"""Profiles for the training loop: resident on the device or from the memory map, shuffled or balanced by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perturbgen.l1000.embedder.data import ProfileTable
from perturbgen.l1000.embedder.model import ProfileBatch
from perturbgen.l1000.embedder.settings import EmbedTraining
from perturbgen.train.feeds import BalancedSampler, MemmapFeed, ResidentFeed

_Picked = tuple[np.ndarray | Tensor, Tensor]  # positions in the table, and their profiles


@dataclass(frozen=True, eq=False)
class ProfileFeed:
    """A table's profiles in batches (its protocol is ``perturbgen.train.protocols.Feed``).

    ``resident`` are its profiles (rows, genes) on the device, or None to read them from the table's matrix.
    """

    table: ProfileTable
    classes: Tensor  # int64 (rows,), on the device as are the conditions
    conditions: Tensor  # float32 (rows, width)
    training: EmbedTraining
    seed: int
    resident: Tensor | None = None
    unit: str = "profiles"

    @classmethod
    def build(
        cls,
        table: ProfileTable,
        classes: np.ndarray,
        conditions: np.ndarray,
        training: EmbedTraining,
        *,
        seed: int,
        device: torch.device,
    ) -> ProfileFeed:
        """Put a table on a device."""
        resident = torch.from_numpy(table.values()).to(device) if training.resident else None
        codes, known = (
            torch.from_numpy(classes.astype(np.int64)).to(device),
            torch.from_numpy(conditions).to(device),
        )
        return cls(table, codes, known, training, seed, resident)

    def __len__(self) -> int:
        return len(self.table)

    def steps(self, ranks: int) -> int:
        """Batches of an epoch; a rest that would leave a process one profile, too few for batch norm, is not one."""
        if self.training.sampler == "balanced":
            return len(self.sampler())
        whole, rest = divmod(len(self), self.training.batch_size)
        return whole + (rest >= 2 * ranks)

    def total(self, batch: int) -> int:
        """Profiles of a batch, in all processes together."""
        size = self.training.batch_size
        return size if self.training.sampler == "balanced" else min(size, len(self) - batch * size)

    def epoch(
        self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[ProfileBatch]:
        """The batches of an epoch; every process takes every ``ranks``-th profile of each."""
        steps = self.steps(ranks)
        for number, (positions, values) in enumerate(self.picked(epoch, skip), skip):
            if number < steps:
                yield self.batch(positions[rank::ranks], values[rank::ranks])

    def picked(self, epoch: int, skip: int) -> Iterator[_Picked]:
        """Positions and profiles of each batch, by the sampler."""
        if self.training.sampler == "balanced":
            for positions in self.sampler().epoch(epoch, start=skip):
                yield positions, self.read(positions)
        elif self.resident is not None:
            yield from ResidentFeed(self.resident, self.training.batch_size, self.seed).epoch(
                epoch, start=skip
            )
        else:
            feed = MemmapFeed(
                self.table.matrix, self.training.batch_size, self.seed, rows=self.table.rows
            )
            for rows, values in feed.epoch(epoch, start=skip):
                yield (
                    np.searchsorted(self.table.rows, rows),
                    torch.from_numpy(values.astype(np.float32, copy=False)),
                )

    def sampler(self) -> BalancedSampler:
        """P classes with K profiles each."""
        each = self.training.per_class
        return BalancedSampler(
            self.classes.cpu().numpy(), self.training.batch_size // each, each, self.seed, least=1
        )

    def read(self, positions: np.ndarray) -> Tensor:
        """Profiles (positions, genes), as float32."""
        if self.resident is not None:
            return self.resident[torch.from_numpy(positions).to(self.resident.device)]
        return torch.from_numpy(
            np.asarray(self.table.matrix[self.table.rows[positions]], np.float32)
        )

    def once(self, *, size: int = 4096) -> Iterator[ProfileBatch]:
        """Every profile once, in stored order."""
        for start in range(0, len(self), size):
            positions = np.arange(start, min(start + size, len(self)))
            yield self.batch(positions, self.read(positions))

    def batch(self, positions: np.ndarray | Tensor, values: Tensor) -> ProfileBatch:
        """Profiles with all that belongs to them, on the device."""
        device = self.classes.device
        index = torch.as_tensor(positions).to(device)
        return ProfileBatch(index, values.to(device), self.conditions[index], self.classes[index])

    def names(self, index: Tensor) -> Sequence[Any]:
        """Names of profiles."""
        return list(self.table.samples.index[index.cpu().numpy()])

    def shape(self, size: int) -> str:
        """How large a batch is."""
        return f"{size:,} profiles x {len(self.table.genes):,} genes"
