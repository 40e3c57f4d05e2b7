"""log p(x | z, c) of a batch as a function of z alone: what z does not change is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from perturbgen.nn import scaled_log_mean
from perturbgen.nn.likelihoods import cell_of_each

if TYPE_CHECKING:
    from perturbgen.models.base import CellBatch, CountDecoder, LatentModel


class Likelihood:
    """Log p(x | z, c) of a batch, as the model's own function computes it."""

    def __init__(self, model: LatentModel, batch: CellBatch, size: Tensor) -> None:
        self.model, self.batch, self.size = model, batch, size

    def __call__(self, z: Tensor) -> Tensor:
        """Log p(x | z, c), (cells,), of points (cells, latent)."""
        return self.model.log_likelihood(z, self.batch)

    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x | z, c) (cells,) and its gradient in z (cells, latent)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self(z)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    def log_mean(self, z: Tensor) -> Tensor:
        """(cells, genes) of points (cells, latent)."""
        return self.model.decode(z, self.batch.codes, self.size).log_mean

    def information(self, z: Tensor, slopes: Tensor) -> Tensor:
        """Σ_g J_g J_gᵀ m_g r_g/(m_g + r_g) of slopes J (cells, latent, genes) at z."""
        log_mean, log_r = self.model.decode(z, self.batch.codes, self.size)
        weight = (log_mean - functional.softplus(log_mean - log_r)).exp()
        return (slopes * weight[:, None]) @ slopes.mT


class CountsGiven(Likelihood):
    """Negative binomial counts of cells whose dispersions do not depend on z.

        log NB = [log Γ(k+r) − log Γ(r) − k log r − log k!] + k log m − (k+r) log(1 + m/r)

    The bracket, condition features and what they add to the log means are those of the batch. That
    leaves two products, a softmax and a softplus: a quarter of what the likelihood takes.
    """

    def __init__(self, model: LatentModel, batch: CellBatch, size: Tensor) -> None:
        super().__init__(model, batch, size)
        self.decoder: CountDecoder = model.decoder
        counts = batch.counts
        with torch.no_grad():
            self.features = model.conditions(batch.codes)
            self.shift = self.decoder.shift(self.features)
            self.log_r = self.decoder.dispersion(model.chosen_dispersion(batch.codes))
            self.r = self.log_r.exp()
            rows = cell_of_each(counts.offsets, len(counts.values))
            self.places = rows * counts.n_genes + counts.columns
            self.values, self.offsets = counts.values.float(), counts.offsets
            each = self.log_r.expand(len(size), -1).take(self.places).double()
            k, r = self.values.double(), each.exp()
            bracket = (k + r).lgamma() - r.lgamma() - k * each - (k + 1).lgamma()
            self.constant = torch.segment_reduce(bracket, "sum", offsets=counts.offsets, initial=0)

    def log_mean(self, z: Tensor) -> Tensor:
        """(..., cells, genes) of points (..., cells, latent)."""
        logits = self.decoder.logits(z, self.features, self.shift)
        return scaled_log_mean(logits.float(), self.size, scaling=self.decoder.scaling)

    def __call__(self, z: Tensor) -> Tensor:
        """Log p(x | z, c), (cells,), of points (cells, latent)."""
        return self._of(self.log_mean(z))[0]

    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x | z, c) (cells,) and its gradient in z (cells, latent)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            log_mean = self.log_mean(z)
        with torch.no_grad():
            value, above = self._of(log_mean)
            # d/d log m: k − (k + r) m/(r + m), in place of what autograd would keep of every step
            rest = torch.exp(-above)  # r/(r + m)
            slope = (rest - 1) * self.r
            own = slope.take(self.places) + self.values * rest.take(self.places)
            slope.put_(self.places, own)  # each place is one cell's count of one gene
        return value, torch.autograd.grad(log_mean, z, slope)[0]

    def _of(self, log_mean: Tensor) -> tuple[Tensor, Tensor]:
        """The likelihood (cells,), and log(1 + m/r) (cells, genes)."""
        above = functional.softplus(log_mean - self.log_r)
        of_all = (above * self.r).sum(-1, dtype=torch.float64)
        seen = self.values * (log_mean.take(self.places) - above.take(self.places))
        of_seen = torch.segment_reduce(seen, "sum", offsets=self.offsets, initial=0)
        return (self.constant + of_seen - of_all).float(), above
