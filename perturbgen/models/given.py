"""log p(x | z, c) of a batch as a function of z alone: what z does not change is computed once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor
from torch.nn import functional

from perturbgen.models.batch import CellBatch, CellRows, dense
from perturbgen.nn.layers import log_share
from perturbgen.nn.likelihoods import cell_of_each

if TYPE_CHECKING:
    from perturbgen.models.base import CountDecoder, LatentModel

_STEP = 0.02  # of the finite differences that give the decoder's slopes
_BLOCK: Final = 1 << 22  # numbers of slopes at once
_LEAST_SIZE = 1e-20  # of a cell without counts, whose log mean would be −∞


class Likelihood:
    """Log p(x | z, c) of a batch, as the model's own function computes it."""

    def __init__(self, model: LatentModel, batch: CellBatch, size: Tensor) -> None:
        self.model, self.batch, self.size = model, batch, size

    def of(self, keep: Tensor) -> Self:
        """That of the cells where ``keep``, bool (cells,), says so."""
        return type(self)(self.model, CellRows.of(self.batch, keep), self.size[keep])

    def __call__(self, z: Tensor) -> Tensor:
        """Log p(x | z, c), (cells,), of points (cells, latent)."""
        return self.model.log_likelihood(z, self.batch)

    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x | z, c) (cells,) and its gradient in z (cells, latent)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self(z)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    @torch.no_grad()
    def information(self, z: Tensor) -> Tensor:
        """Σ_g J_g J_gᵀ m_g r_g/(m_g + r_g), J_g = d log m_g/dz: the Fisher information of z.

        (cells, latent, latent): the curvature of −log p(x | z, c), but for terms whose expectation
        is zero.
        """
        # By finite differences: two decodings a latent dimension, where autograd needs one a gene.
        slopes = [(self._log_mean(z + e) - self._log_mean(z - e)) / (2 * _STEP) for e in _steps(z)]
        log_mean, log_r = self.model.decode(z, self.batch.codes, self.size)
        weight = (log_mean - functional.softplus(log_mean - log_r)).exp()
        slope = torch.stack(slopes, dim=1)
        return (slope * weight[:, None]) @ slope.mT

    def _log_mean(self, z: Tensor) -> Tensor:
        """(cells, genes) of points (cells, latent)."""
        return self.model.decode(z, self.batch.codes, self.size).log_mean


class CountsGiven(Likelihood):
    """Negative binomial counts of cells whose dispersions do not depend on z.

        log NB = [log Γ(k+r) − log Γ(r) − k log r − log k!] + k log m − (k+r) log(1 + m/r)

    The bracket, condition features and what they add to the log means are those of the batch. That
    leaves a product with the last layer, a softmax, an exponential and a logarithm; the gradient
    is one product more, and a curvature one for each latent dimension.
    """

    def __init__(self, model: LatentModel, batch: CellBatch, size: Tensor) -> None:
        super().__init__(model, batch, size.clamp(min=_LEAST_SIZE))
        self.decoder: CountDecoder = model.decoder
        counts = batch.counts
        with torch.no_grad():
            self.features = model.conditions(batch.codes)
            self.shift = self.decoder.shift(self.features)
            self.log_r = self.decoder.dispersion(model.chosen_dispersion(batch.codes))
            self.counts = dense(counts).float()
            self.shape = self.counts + self.log_r.exp()  # k + r
            self.offset = self.size.log()[:, None] - self.log_r  # from shares to m/r
            rows = cell_of_each(counts.offsets, len(counts.values))
            each = self.log_r.expand(len(size), -1)[rows, counts.columns].double()
            k, r = counts.values.double(), each.exp()
            bracket = (k + r).lgamma() - r.lgamma() - k * each - (k + 1).lgamma()
            of_each = torch.segment_reduce(bracket, "sum", offsets=counts.offsets, initial=0)
            total = self.counts.sum(-1, dtype=torch.float64)
            self.constant = of_each + total * self.size.double().log()

    def of(self, keep: Tensor) -> Self:
        """That of the cells where ``keep``, bool (cells,), says so."""
        part = copy.copy(self)
        for name, value in vars(self).items():
            # a dispersion may be that of all cells, (genes,)
            if isinstance(value, Tensor) and (name != "log_r" or value.ndim > 1):
                setattr(part, name, value[keep])
        return part

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Log p(x | z, c), (cells,), of points (cells, latent)."""
        return self._of(self._hidden(z))[0]

    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x | z, c) (cells,) and its gradient in z (cells, latent)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            hidden = self._hidden(z)
        with torch.no_grad():
            value, ratio = self._of(hidden)
            # d/d log m: k − (k + r) m/(r + m), in place of what autograd would keep of every step
            slope = (ratio / (1 + ratio)).mul_(self.shape)
            slope = torch.sub(self.counts, slope, out=slope)
            share = self._shares(ratio)
            if self.decoder.scaling == "total":
                slope.addcmul_(share, slope.sum(-1, keepdim=True), value=-1)
            else:
                slope.mul_(1 - share)
            above = (slope @ self.decoder.head.weight).to(hidden.dtype)
        return value, torch.autograd.grad(hidden, z, above)[0]

    @torch.no_grad()
    def information(self, z: Tensor) -> Tensor:
        """The Fisher information of z, (cells, latent, latent)."""
        # The trunk is small, so its slopes are differences; the genes' are their products with the
        # last layer.
        steps = _steps(z)[:, None]
        slopes = (self._hidden(z + steps) - self._hidden(z - steps)).transpose(0, 1) / (2 * _STEP)
        ratio = self._of(self._hidden(z))[1]
        share = self._shares(ratio.clone())
        weight = self.log_r.exp() * ratio / (1 + ratio)  # m r/(m + r)
        n_rows = max(1, _BLOCK // (z.shape[1] * weight.shape[1]))
        parts = zip(*(x.split(n_rows) for x in (slopes, share, weight)), strict=True)
        return torch.cat([self._information(*part) for part in parts])

    def _information(self, slopes: Tensor, share: Tensor, weight: Tensor) -> Tensor:
        """Of slopes of the last hidden layer (cells, latent, hidden)."""
        slope = slopes @ self.decoder.head.weight.T  # (cells, latent, genes)
        if self.decoder.scaling == "total":
            slope -= slope @ share[:, :, None]
        else:
            slope *= 1 - share[:, None]
        return (slope * weight[:, None]) @ slope.mT

    def _hidden(self, z: Tensor) -> Tensor:
        """The last hidden layer (..., cells, hidden) of points (..., cells, latent)."""
        return self.decoder.hidden(z, self.features)

    def _shares(self, ratio: Tensor) -> Tensor:
        """Each gene's share m/size (cells, genes), in place of the ratios m/r."""
        return ratio.mul_(self.log_r.exp()).div_(self.size[:, None])

    def _of(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The likelihood (cells,), and m/r (cells, genes)."""
        logits = self.decoder.genes(hidden, self.shift)
        share = log_share(logits.float(), scaling=self.decoder.scaling)
        # Summed in double precision: the sums of deep cells are large.
        of_seen = (self.counts * share).sum(-1, dtype=torch.float64)
        ratio = share.add_(self.offset).exp_()
        of_all = ratio.log1p().mul_(self.shape).sum(-1, dtype=torch.float64)
        return (self.constant + of_seen - of_all).float(), ratio


def _steps(z: Tensor) -> Tensor:
    """A step along each latent dimension, (latent, latent)."""
    return _STEP * torch.eye(z.shape[-1], device=z.device)
