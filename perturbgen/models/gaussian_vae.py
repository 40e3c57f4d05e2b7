"""A Gaussian VAE of normalised data: what is lost when counts are treated as real numbers.

Of a cell's counts x (genes,) under conditions c:

    y = log(1 + 10⁴ x / total)        z ~ N(0, I)        y_g ~ N(f(z, c)_g, σ_g²)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from perturbgen.models.base import CountParameters
from perturbgen.models.batch import CellBatch, SparseValues, dense, sizes
from perturbgen.models.blueprint import Blueprint
from perturbgen.models.nbvae import NBVAE
from perturbgen.nn import MLP, gaussian_log_prob
from perturbgen.nn.layers import Scaling
from perturbgen.nn.likelihoods import cell_of_each

_TARGET = 1e4


class GaussianDecoder(nn.Module):
    """Mean and log σ of the normalised data from a latent point and conditions."""

    scaling: Scaling = "total"

    def __init__(
        self,
        n_latent: int,
        hidden: Sequence[int],
        n_genes: int,
        *,
        n_conditions: int = 0,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        widths = [*hidden, n_genes]
        self.network = MLP(n_latent, widths, n_conditions=n_conditions, layer_norm=layer_norm)
        self.head = self.network.rest[-1]
        self.log_sd = nn.Parameter(torch.zeros(n_genes))

    def forward(
        self, z: Tensor, features: Tensor | None, size: Tensor, category: Tensor | None = None
    ) -> CountParameters:
        """Mean of y (..., cells, genes) and log σ (genes,); y is free of the size."""
        # A gene without counts is fitted exactly: its σ would fall for ever, and its density grow.
        log_sd = -3 + torch.nn.functional.softplus(self.log_sd + 3)
        return CountParameters(self.network(z, features).float(), log_sd)


class GaussianVAE(NBVAE):
    """See the head of this file."""

    decoder: GaussianDecoder  # type: ignore[assignment]

    @classmethod
    def build(cls, blueprint: Blueprint) -> Self:
        """The model that a run's settings ask for."""
        model, genes = blueprint.settings, len(blueprint.share)
        hidden = model.decoder.hidden
        plain = GaussianDecoder(model.latent, hidden, genes, **blueprint.of_decoder)
        return cls._with(blueprint, plain)

    def log_likelihood(self, z: Tensor, batch: CellBatch, codes: Tensor | None = None) -> Tensor:
        """Log density of y given z and c, (cells,); not comparable with that of counts."""
        size = sizes(batch.counts, "total")
        mean, log_sd = self.decode(z, batch.codes if codes is None else codes, size)
        return gaussian_log_prob(dense(_normalised(batch, size)), mean, log_sd).sum(-1)

    @torch.no_grad()
    def sample(
        self, codes: Tensor, size: Tensor, generator: torch.Generator, z: Tensor | None = None
    ) -> Tensor:
        """Counts (cells, genes): y drawn, scaled to the cell's size, rounded at random."""
        z = self.prior_sample(len(codes), generator) if z is None else z
        mean, log_sd = self.decode(z, codes, size)
        y = mean + log_sd.exp() * torch.randn(mean.shape, generator=generator, device=mean.device)
        counts = _counts_of(y, size)
        # By chance, not to the nearest: the mean stays, though most counts are below one half.
        chance = torch.rand(counts.shape, generator=generator, device=counts.device)
        return torch.floor(counts + chance)

    @torch.no_grad()
    def expected(self, z: Tensor, codes: Tensor, size: Tensor) -> Tensor:
        """The mean of y scaled back to counts."""
        return _counts_of(self.decode(z, codes, size)[0], size)

    def _read(self, batch: CellBatch) -> SparseValues:
        return _normalised(batch, sizes(batch.counts, "total"))


def _normalised(batch: CellBatch, size: Tensor) -> SparseValues:
    """Log(1 + 10⁴ x / total) of the non-zeros."""
    counts = batch.counts
    per_value = (_TARGET / size)[cell_of_each(counts.offsets, len(counts.values))]
    return SparseValues.of(counts, lambda values: torch.log1p(values * per_value))


def _counts_of(y: Tensor, size: Tensor) -> Tensor:
    """The counts that ``y`` (cells, genes) stands for, at least 0."""
    # e^20 is more than any cell holds, and keeps a wild draw finite.
    return torch.expm1(y.clamp(min=0, max=20)) * (size / _TARGET)[:, None]
