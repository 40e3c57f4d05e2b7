"""What the VAE and the DGD share: latent points decoded into counts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from perturbgen.models.batch import CellBatch, sizes
from perturbgen.models.conditions import Conditions
from perturbgen.models.decoder import CountDecoder, CountParameters
from perturbgen.nn import nb_log_prob_sparse
from perturbgen.nn.draws import Draws
from perturbgen.nn.trainable import Trainable


class Proposal(ABC):
    """Where the posterior of a batch's latent points is looked for."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw of z (cells, latent), and its log density (cells,)."""


class LatentModel(Trainable):
    """A model of counts x given conditions c through a latent point z, p(x | c) = ∫ p(x | z, c) p(z) dz."""

    def __init__(self, conditions: Conditions, decoder: CountDecoder, *, category: int | None = None) -> None:
        super().__init__()
        self.conditions, self.decoder = conditions, decoder
        self.category = category  # which covariate chooses the dispersion

    @abstractmethod
    def forward(self, batch: CellBatch, draws: Draws) -> dict[str, Tensor]:
        """The terms of the objective to be minimised, each (cells,), in nats."""

    @abstractmethod
    def validate(self, batch: CellBatch, draws: Draws) -> dict[str, Tensor]:
        """The same terms for cells that are not trained on."""

    @abstractmethod
    def encode(self, batch: CellBatch) -> Tensor:
        """The most fitting latent point of each cell, (cells, latent)."""

    def own(self, batch: CellBatch) -> Tensor:
        """The latent points of training cells, as cheaply as they can be had."""
        return self.encode(batch)

    @abstractmethod
    def propose(self, batch: CellBatch) -> Proposal:
        """A proposal for importance sampling."""

    @abstractmethod
    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log p(z), (cells,)."""

    @abstractmethod
    def prior_sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Latent points (n, latent)."""

    def decode(self, z: Tensor, codes: Tensor, size: Tensor) -> CountParameters:
        """The distribution of the counts of cells with these latent points, condition codes and sizes."""
        category = None if self.category is None else codes[:, self.category]
        return self.decoder(z, self.conditions(codes), size, category)

    def composition(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Each gene's share of a cell's counts (cells, genes), and log r, which broadcasts into it."""
        category = None if self.category is None else codes[:, self.category]
        return self.decoder.composition(z, self.conditions(codes), category)

    def log_likelihood(self, z: Tensor, batch: CellBatch, codes: Tensor | None = None) -> Tensor:
        """Log p(x | z, c), (cells,)."""
        counts = batch.counts
        size = sizes(counts, self.decoder.scaling)
        parameters = self.decode(z, batch.codes if codes is None else codes, size)
        return nb_log_prob_sparse(counts.values, counts.columns, counts.offsets, *parameters)

    @torch.no_grad()
    def expected(self, z: Tensor, codes: Tensor, size: Tensor) -> Tensor:
        """Mean counts (cells, genes) at latent points."""
        return self.decode(z, codes, size).log_mean.exp()

    @torch.no_grad()
    def sample(self, codes: Tensor, size: Tensor, generator: torch.Generator, z: Tensor | None = None) -> Tensor:
        """Counts (cells, genes) drawn for condition codes and sizes, from the prior unless latent points are given."""
        from perturbgen.nn.distributions import sample_nb

        z = self.prior_sample(len(codes), generator) if z is None else z
        return sample_nb(*self.decode(z, codes, size), generator)
