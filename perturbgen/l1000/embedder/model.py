"""The network on profiles and the feed of its batches.

The model standardises, adds noise, encodes, and asks the head how far each profile is from its
class. The feed draws batches at random or balanced by class, from the device or the memory map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.l1000.embedder.data import EmbedProfiles
from perturbgen.l1000.embedder.settings import EmbedTraining, ModelSettings
from perturbgen.models.base import Trainable
from perturbgen.nn import MarginHead
from perturbgen.nn.encoders import make_encoder
from perturbgen.nn.layers import Draws
from perturbgen.nn.margins import ball, poincare_distance
from perturbgen.retrieval import Measure
from perturbgen.train.feeds import BalancedSampler, MemmapFeed, ResidentFeed

_AT_ONCE = 4096  # profiles that are embedded together


class _ProfileBatch(NamedTuple):
    """Some profiles."""

    index: Tensor  # type: ignore[assignment]  # int64 (profiles,): positions in the feed
    values: Tensor  # float32 (profiles, genes)
    conditions: Tensor  # float32 (profiles, width)
    classes: Tensor  # int64 (profiles,); -1 is none of the training classes


class ProfileEmbedder(Trainable):
    """An encoder of standardised profiles and the margin head that trains it."""

    def __init__(
        self,
        settings: ModelSettings,
        mean: Tensor,
        sd: Tensor,
        *,
        n_conditions: int = 0,
        counts: Tensor,
    ) -> None:
        super().__init__()
        self.noise, self.clip = settings.noise, settings.clip
        self.hyperbolic = settings.head.kind == "poincare"
        self.mean: Tensor
        self.sd: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)
        encoder, size, width = settings.encoder, settings.size, len(mean) + n_conditions
        self.encoder: nn.Module = make_encoder(encoder.kind, width, size, **encoder.options())
        self.head = MarginHead(size, len(counts), counts=counts, **settings.head.model_dump())

    def forward(self, batch: _ProfileBatch, draws: Draws) -> dict[str, Tensor]:
        """The margin loss of each profile, (profiles,)."""
        x = self._standardised(batch.values)
        if self.training and self.noise:
            x = x + self.noise * draws.normal(*x.shape)
        return {"margin": self.head(self._encode(x, batch.conditions), batch.classes)}

    def advance(self, step: int) -> None:
        """The head's margin rises."""
        self.head.advance(step)

    def _standardised(self, values: Tensor) -> Tensor:
        """Clipped z-scores with mean 0 and SD 1 over training profiles."""
        x = values if self.clip is None else values.clamp(-self.clip, self.clip)
        return (x - self.mean) / self.sd

    def _encode(self, x: Tensor, conditions: Tensor) -> Tensor:
        return self.encoder(torch.cat([x, conditions], dim=1) if conditions.shape[1] else x)

    @torch.no_grad()
    def embed(self, batch: _ProfileBatch) -> Tensor:
        """Places (profiles, size): of length 1, or points in the ball for the hyperbolic head."""
        found = self._encode(self._standardised(batch.values), batch.conditions).float()
        return ball(found) if self.hyperbolic else functional.normalize(found, dim=1)

    @property
    def measure(self) -> Measure:
        """How places are compared."""
        return _nearness if self.hyperbolic else "cosine"

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Encoder and head."""
        return {"encoder": list(self.encoder.parameters()), "head": list(self.head.parameters())}

    def places(self, feed: ProfileFeed) -> np.ndarray:
        """The embedding (profiles, size) of a feed's profiles, in their order."""
        self.eval()
        return np.vstack([self.embed(batch).cpu().numpy() for batch in feed.once()])


def _nearness(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Negative distance of points in the Poincaré ball, (queries, candidates)."""
    return -poincare_distance(torch.from_numpy(queries), torch.from_numpy(candidates)).numpy()


@dataclass(frozen=True, eq=False)
class ProfileFeed:
    """A table's profiles in batches (its protocol is ``train.feeds.Feed``).

    ``resident`` are its profiles (rows, genes) on the device, or None to read them from the
    table's matrix.
    """

    table: EmbedProfiles
    classes: Tensor  # int64 (rows,), on the device as are the conditions
    conditions: Tensor  # float32 (rows, width)
    training: EmbedTraining
    seed: int
    resident: Tensor | None = None
    unit: str = "profiles"

    @classmethod
    def build(
        cls,
        table: EmbedProfiles,
        classes: np.ndarray,
        conditions: np.ndarray,
        training: EmbedTraining,
        seed: int,
        device: torch.device,
    ) -> ProfileFeed:
        """Put a table on a device."""
        codes = torch.from_numpy(classes.astype(np.int64)).to(device)
        known = torch.from_numpy(conditions).to(device)
        resident = torch.from_numpy(table.dense()).to(device) if training.resident else None
        return cls(table, codes, known, training, seed, resident)

    def __len__(self) -> int:
        return len(self.table)

    def steps(self, ranks: int) -> int:
        """Batches of an epoch, without a rest that leaves a process fewer than two profiles."""
        if self.training.sampler == "balanced":
            return len(self._sampler())
        whole, rest = divmod(len(self), self.training.batch_size)
        return whole + (rest >= 2 * ranks)  # batch norm has no statistics of a single one

    def total(self, batch: int) -> int:
        """Profiles of a batch, in all processes together."""
        size = self.training.batch_size
        return size if self.training.sampler == "balanced" else min(size, len(self) - batch * size)

    def epoch(
        self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[_ProfileBatch]:
        """The batches of an epoch; every process takes every ``ranks``-th profile of each."""
        steps = self.steps(ranks)
        for number, (positions, values) in enumerate(self._drawn(epoch, skip), skip):
            if number < steps:
                yield self._batch(positions[rank::ranks], values[rank::ranks])

    def _drawn(self, epoch: int, skip: int) -> Iterator[tuple[np.ndarray | Tensor, Tensor]]:
        """Positions in the table and profiles of each batch."""
        size = self.training.batch_size
        if self.training.sampler == "balanced":
            for positions in self._sampler().epoch(epoch, start=skip):
                yield positions, self._read(positions)
        elif self.resident is not None:
            yield from ResidentFeed(self.resident, size, self.seed).epoch(epoch, start=skip)
        else:
            matrix, rows = self.table.stored()
            feed = MemmapFeed(matrix, size, self.seed, rows=rows)
            for drawn, values in feed.epoch(epoch, start=skip):
                known = torch.from_numpy(values.astype(np.float32, copy=False))
                yield np.searchsorted(rows, drawn), known

    def _sampler(self) -> BalancedSampler:
        each, codes = self.training.per_class, self.classes.cpu().numpy()
        return BalancedSampler(codes, self.training.batch_size // each, each, self.seed, least=1)

    def _read(self, positions: np.ndarray) -> Tensor:
        """Profiles (positions, genes), as float32."""
        if self.resident is not None:
            return self.resident[torch.from_numpy(positions).to(self.resident.device)]
        return torch.from_numpy(np.asarray(self.table.values[positions], np.float32))

    def once(self) -> Iterator[_ProfileBatch]:
        """Every profile once, in stored order."""
        for start in range(0, len(self), _AT_ONCE):
            positions = np.arange(start, min(start + _AT_ONCE, len(self)))
            yield self._batch(positions, self._read(positions))

    def _batch(self, positions: np.ndarray | Tensor, values: Tensor) -> _ProfileBatch:
        """Profiles with all that belongs to them, on the device."""
        device = self.classes.device
        index = torch.as_tensor(positions).to(device)
        return _ProfileBatch(index, values.to(device), self.conditions[index], self.classes[index])

    def names(self, index: Tensor) -> Sequence[Any]:
        """Names of profiles."""
        return list(self.table.meta.index[index.cpu().numpy()])

    def shape(self, size: int) -> str:
        """How large a batch is."""
        return f"{size:,} profiles x {len(self.table.features):,} genes"
