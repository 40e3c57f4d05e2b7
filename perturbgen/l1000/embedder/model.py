"""The model: standardise, add noise, encode, and ask the head how far each profile is from its class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.l1000.embedder.settings import ModelSettings
from perturbgen.models.base import Trainable
from perturbgen.nn import MarginHead
from perturbgen.nn.encoders import make_encoder
from perturbgen.nn.layers import Draws
from perturbgen.nn.margins import ball


class ProfileBatch(NamedTuple):
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
        self.noise, self.clip, self.hyperbolic = (
            settings.noise,
            settings.clip,
            settings.head.kind == "poincare",
        )
        self.mean: Tensor
        self.sd: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)
        encoder = settings.encoder
        self.encoder: nn.Module = make_encoder(
            encoder.kind, len(mean) + n_conditions, settings.size, **encoder.options()
        )
        self.head = MarginHead(
            settings.size, len(counts), counts=counts, **settings.head.model_dump()
        )

    def forward(self, batch: ProfileBatch, draws: Draws) -> dict[str, Tensor]:
        """The margin loss of each profile, (profiles,)."""
        x = self.standardised(batch.values)
        if self.training and self.noise:
            x = x + self.noise * draws.normal(*x.shape)
        return {"margin": self.head(self.encode(x, batch.conditions), batch.classes)}

    def advance(self, step: int) -> None:
        """The head's margin rises."""
        self.head.advance(step)

    def standardised(self, values: Tensor) -> Tensor:
        """Clipped z-scores with mean 0 and SD 1 over training profiles."""
        x = values if self.clip is None else values.clamp(-self.clip, self.clip)
        return (x - self.mean) / self.sd

    def encode(self, x: Tensor, conditions: Tensor) -> Tensor:
        """The encoder's output, (profiles, size)."""
        return self.encoder(torch.cat([x, conditions], dim=1) if conditions.shape[1] else x)

    @torch.no_grad()
    def embed(self, batch: ProfileBatch) -> Tensor:
        """Places (profiles, size): of length 1, or points in the ball for the hyperbolic head."""
        found = self.encode(self.standardised(batch.values), batch.conditions).float()
        return ball(found) if self.hyperbolic else functional.normalize(found, dim=1)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Encoder and head."""
        return {"encoder": list(self.encoder.parameters()), "head": list(self.head.parameters())}
