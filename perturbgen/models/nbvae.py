"""The conditional NB-VAE: a variational autoencoder (Kingma & Welling 2014) of counts.

    z ~ N(0, I)        x_g ~ NB(size · softmax(f(z, c))_g, r_g)
    q(z | x, c) = N(μ(x, c), σ²(x, c))

It minimises E_q[−log p(x | z, c)] + KL(q ‖ N(0, I)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from perturbgen.models.base import CountDecoder, LatentModel
from perturbgen.models.batch import CellBatch, SparseValues
from perturbgen.models.blueprint import Blueprint
from perturbgen.models.conditions import Conditions
from perturbgen.models.importance import Proposal
from perturbgen.nn import MLP
from perturbgen.nn.layers import Draws
from perturbgen.nn.likelihoods import HALF_LOG_2PI

_Input = Literal["log1p", "raw"]
# σ stays within e^±5; a clamp would leave no gradient beyond.
_LOG_SD_REACH = 5.0


class _Posterior(NamedTuple):
    """A diagonal Gaussian per cell, both (cells, latent)."""

    mean: Tensor
    log_sd: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """z = μ + σ ε."""
        return self.mean + self.log_sd.exp() * noise

    def kl(self) -> Tensor:
        """KL(q ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²), (cells,)."""
        return (0.5 * (self.mean.square() + torch.expm1(2 * self.log_sd)) - self.log_sd).sum(-1)

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and log q(z | x), a proposal."""
        return self.at(noise), (-0.5 * noise.square() - self.log_sd - HALF_LOG_2PI).sum(-1)


class NBVAE(LatentModel):
    """See the head of this file; ``hidden`` are the widths of the encoder's layers."""

    annealed = ("kl",)

    def __init__(
        self,
        n_latent: int,
        hidden: Sequence[int],
        conditions: Conditions,
        decoder: CountDecoder,
        *,
        category: int | None = None,
        encoder_input: _Input = "log1p",
        layer_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(conditions, decoder, category=category)
        self.n_latent, self.encoder_input = n_latent, encoder_input
        self.encoder = MLP(
            decoder.head.out_features,
            [*hidden, 2 * n_latent],
            n_conditions=conditions.width,
            layer_norm=layer_norm,
            dropout=dropout,
        )

    def posterior(self, batch: CellBatch, codes: Tensor | None = None) -> _Posterior:
        """q(z | x, c)."""
        features = self.conditions(batch.codes if codes is None else codes)
        # In float32 even under autocast: the KL cancels between large terms.
        mean, raw = self.encoder(self._read(batch), features).float().chunk(2, dim=-1)
        return _Posterior(mean, _LOG_SD_REACH * torch.tanh(raw / _LOG_SD_REACH))

    @classmethod
    def build(cls, blueprint: Blueprint) -> Self:
        """The model that a run's settings ask for."""
        return cls._with(blueprint, blueprint.decoder())

    @classmethod
    def _with(cls, blueprint: Blueprint, decoder: Any) -> Self:
        """With a decoder of any kind, which a subclass may have another one of."""
        model = blueprint.settings
        return cls(
            model.latent,
            model.encoder,
            blueprint.conditions,
            decoder,
            category=blueprint.category,
            encoder_input=model.encoder_input,
            dropout=model.encoder_dropout,
            layer_norm=model.decoder.layer_norm,
            **blueprint.own_settings,
        )

    def forward(self, batch: CellBatch, draws: Draws) -> dict[str, Tensor]:
        """−log p(x | z, c) at one z of the posterior, and KL(q ‖ N(0, I))."""
        codes = self.conditions.withhold(batch.codes, draws) if self.training else batch.codes
        posterior = self.posterior(batch, codes)
        z = posterior.at(draws.normal(len(codes), self.n_latent))
        return {"reconstruction": -self.log_likelihood(z, batch, codes), "kl": posterior.kl()}

    @torch.no_grad()
    def encode(self, batch: CellBatch) -> Tensor:
        """μ(x, c)."""
        return self.posterior(batch).mean

    @torch.no_grad()
    def propose(self, batch: CellBatch, points: Tensor) -> Proposal:
        """The posterior, of which ``points`` are the means."""
        return self.posterior(batch).draw

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log N(z; 0, I)."""
        return -0.5 * z.square().sum(-1) - z.shape[-1] * HALF_LOG_2PI

    def prior_sample(
        self, n: int, generator: torch.Generator, codes: Tensor | None = None
    ) -> Tensor:
        """Standard normals."""
        return torch.randn(n, self.n_latent, generator=generator, device=generator.device)

    def _pyro_prior(self, batch: CellBatch) -> Any:
        from pyro import distributions as dist

        origin = torch.zeros(len(batch.codes), self.n_latent, device=batch.codes.device)
        return dist.Normal(origin, 1.0).to_event(1)

    def _pyro_posterior(self, batch: CellBatch) -> Any:
        from pyro import distributions as dist

        mean, log_sd = self.posterior(batch)
        return dist.Normal(mean, log_sd.exp()).to_event(1)

    def _read(self, batch: CellBatch) -> SparseValues:
        function = torch.log1p if self.encoder_input == "log1p" else torch.clone
        return SparseValues.of(batch.counts, function)
