"""The conditional Deep Generative Decoder (Schuster & Krogh 2023).

There is no encoder: every training cell i has a representation z_i of its own, learned with the
decoder θ and the mixture φ by maximum a posteriori (``train/generative.py::_optimisers`` gives the
z an optimiser of their own, ``train/loop.py`` steps all of them),

    max Σ_i [ log p(x_i | z_i, c_i, θ) + log p(z_i | φ) ] + log p(φ)

with p(z | φ) a Gaussian mixture. log p(φ) stands once in it (``prior_weight`` 1); the published
code adds it to every cell (``prior_weight`` = the number of cells), which holds the components near
the size they begin with. Counted once, a dimension that carries nothing shrinks towards a point:
its density grows for free, down to the step of the optimiser. The likelihood of withheld cells is
the better for it (``experiments/LOG.md``).
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from perturbgen.core.errors import ConfigError
from perturbgen.models.base import CellBatch, CountDecoder, LatentModel, Proposal, dense, sizes
from perturbgen.models.conditions import Conditions
from perturbgen.nn import GaussianMixture
from perturbgen.nn.layers import Draws
from perturbgen.nn.likelihoods import HALF_LOG_2PI

_STEP = 0.02  # of the finite differences that give the decoder's slopes
BETAS = (0.5, 0.7)  # of Adam for representations: a short memory, as published


class _Fit(NamedTuple):
    """Where a search for representations ended."""

    z: Tensor  # (cells, latent)
    loss: Tensor  # (cells,): −log p(x | z, c) − log p(z)
    steps: int


class _LaplaceProposal(Proposal):
    """Gaussians around the modes, with the curvature there as precision, a little wider."""

    def __init__(self, mode: Tensor, precision: Tensor, *, widen: float = 1.1) -> None:
        self.mode = mode
        # A little wider than the curvature says: weights of importance are bounded only where the
        # proposal's tails are no lighter than the posterior's.
        self.factor = torch.linalg.cholesky(precision / widen**2)  # (cells, latent, latent)

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """z and its log density."""
        noise = torch.randn(self.mode.shape, generator=generator, device=self.mode.device)
        step = torch.linalg.solve_triangular(self.factor.mT, noise[..., None], upper=True)[..., 0]
        log_scale = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.mode + step, (-0.5 * noise.square() - HALF_LOG_2PI).sum(-1) + log_scale


class DGD(LatentModel):
    """See the head of this file.

    ``n_cells`` representations are trained; ``n_held_out`` belong to validation cells and follow
    the decoder without teaching it. With ``label`` (a covariate) the mixture has one component per
    category, and a cell's prior is that of its own. ``covariate`` names a covariate with a space of
    its own: two more latent dimensions whose mixture is supervised by it (multiDGD).
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        conditions: Conditions,
        decoder: CountDecoder,
        *,
        n_cells: int,
        n_held_out: int = 0,
        prior_weight: float = 1.0,
        category: int | None = None,
        label: int | None = None,
        covariate: int | None = None,
        covariate_mixture: GaussianMixture | None = None,
        inner_steps: int = 10,
    ) -> None:
        super().__init__(conditions, decoder, category=category)
        if (covariate is None) != (covariate_mixture is None):
            raise ConfigError("a covariate space needs both the covariate and its mixture")
        self.mixture, self.covariate_mixture = mixture, covariate_mixture
        self.label, self.covariate = label, covariate
        self.prior_weight, self.n_cells, self.inner_steps = prior_weight, n_cells, inner_steps
        self.split = mixture.means.shape[1]
        self.n_latent = sum(each.means.shape[1] for each in self._mixtures())
        # Rows belong to cells: the training loop shares their gradients itself, row by row.
        self._ddp_params_and_buffers_to_ignore = ["representations.weight"]
        # Sparse: a step touches the rows of its batch alone.
        self.representations = nn.Embedding(n_cells, self.n_latent, sparse=True)
        nn.init.zeros_(self.representations.weight)
        self.held_out: Tensor
        self.register_buffer("held_out", torch.zeros(n_held_out, self.n_latent))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Network, mixtures and representations."""
        return {
            "network": [*self.conditions.parameters(), *self.decoder.parameters()],
            "mixture": [p for mixture in self._mixtures() for p in mixture.parameters()],
            "representations": list(self.representations.parameters()),
        }

    def forward(self, batch: CellBatch, draws: Draws) -> dict[str, Tensor]:
        """−log p(x | z, c), −log p(z | φ), and each cell's part of −log p(φ)."""
        codes = self.conditions.withhold(batch.codes, draws) if self.training else batch.codes
        return self._terms(self.representations(batch.index), batch, codes)

    def validate(self, batch: CellBatch, draws: Draws) -> dict[str, Tensor]:
        """The same; validation cells' representations are first moved towards their best."""
        fit = self.refine(self.held_out[batch.index], batch, steps=self.inner_steps)
        self.held_out[batch.index] = fit.z
        with torch.no_grad():
            return self._terms(fit.z, batch, batch.codes)

    @torch.no_grad()
    def own(self, batch: CellBatch) -> Tensor:
        """The learned representations."""
        return self.representations(batch.index)

    def encode(self, batch: CellBatch) -> Tensor:
        """The representations that fit best (see :meth:`infer`)."""
        return self.infer(batch).z

    def infer(
        self,
        batch: CellBatch,
        *,
        starts: int = 2,
        steps: int = 300,
        tolerance: float = 0.01,
        rate: float = 0.05,
    ) -> _Fit:
        """Representations of new cells, from their ``starts`` best components on."""
        means = self._start_points()
        with torch.no_grad():
            # The loss has a valley for each component: the search starts in the deepest ones.
            losses = torch.stack([self.loss(z.expand(len(batch.codes), -1), batch) for z in means])
        fits = (
            self.refine(means[chosen], batch, steps=steps, tolerance=tolerance, rate=rate)
            for chosen in losses.argsort(dim=0)[:starts]
        )
        return reduce(_better, fits)

    def refine(
        self, z: Tensor, batch: CellBatch, *, steps: int, tolerance: float = 0.0, rate: float = 0.05
    ) -> _Fit:
        """Adam on the representations alone; each cell keeps the best point that it has seen."""
        z = z.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=rate, betas=BETAS)
        best, least = z.detach().clone(), torch.full((len(z),), torch.inf, device=z.device)
        before = least
        for step in range(steps + 1):
            with torch.enable_grad():
                loss = self.loss(z, batch)
                z.grad = torch.autograd.grad(loss.sum(), z)[0]
            improved = loss.detach() < least
            best = torch.where(improved[:, None], z.detach(), best)
            least = torch.where(improved, loss.detach(), least)
            if step % 10 == 9:
                if bool((before - least <= tolerance).all()):
                    break
                before = least
            for group in optimiser.param_groups:
                group["lr"] = rate / (1 + step / 20)  # so that the search comes to rest
            optimiser.step()
        return _Fit(best, least, step)

    def loss(self, z: Tensor, batch: CellBatch) -> Tensor:
        """−log p(x | z, c) − log p(z), (cells,)."""
        return -self.log_likelihood(z, batch) - self.prior_log_prob(z)

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log p(z | φ), (cells,), without the labels, which new cells do not have."""
        log_prob = self.mixture.log_prob(z[..., : self.split])
        if self.covariate_mixture is not None:
            log_prob = log_prob + self.covariate_mixture.log_prob(z[..., self.split :])
        return log_prob

    def prior_sample(
        self, n: int, generator: torch.Generator, codes: Tensor | None = None
    ) -> Tensor:
        """Draws from the mixtures; with codes, from the component that a cell's category names."""
        parts = []
        for mixture, covariate in zip(self._mixtures(), (self.label, self.covariate), strict=False):
            named = None if codes is None or covariate is None else codes[:, covariate]
            parts.append(mixture.sample(n, component=named, generator=generator))
        return torch.cat(parts, dim=-1)

    def propose(self, batch: CellBatch) -> _LaplaceProposal:
        """The Fisher information at the mode, Σ_g J_g J_gᵀ m_g r_g/(m_g + r_g), and the prior's."""
        mode = self.infer(batch).z
        size = sizes(batch.counts, self.decoder.scaling)
        with torch.no_grad():
            log_mean, log_r = self.decode(mode, batch.codes, size)
            weight = (log_mean - torch.nn.functional.softplus(log_mean - log_r)).exp()

            def slope(direction: Tensor) -> Tensor:
                ahead, behind = (
                    self.decode(mode + sign * direction, batch.codes, size).log_mean
                    for sign in (1, -1)
                )
                return (ahead - behind) / (2 * _STEP)

            # By finite differences: two decodings a latent dimension, where autograd needs one a
            # gene.
            slopes = torch.stack(
                [slope(e) for e in _STEP * torch.eye(self.n_latent, device=mode.device)], dim=1
            )
            information = torch.einsum("ckg,cg,clg->ckl", slopes, weight, slopes)
        return _LaplaceProposal(mode, information + torch.diag_embed(self._prior_precision(mode)))

    def pyro_model(self, batch: CellBatch) -> None:
        """The generative story, for Pyro; its ELBO is the objective but for log p(φ)."""
        import pyro
        from pyro import distributions as dist

        from perturbgen.nn.distributions import NegativeBinomial

        m = self.mixture
        components = dist.Normal(
            m.means, torch.exp(-0.5 * m.log_precision).expand_as(m.means)
        ).to_event(1)
        prior = dist.MixtureSameFamily(dist.Categorical(logits=m.weight_logits), components)
        with pyro.plate("cells", len(batch.codes)):
            z = pyro.sample("z", prior)
            parameters = self.decode(z, batch.codes, sizes(batch.counts, self.decoder.scaling))
            pyro.sample("x", NegativeBinomial(*parameters).to_event(1), obs=dense(batch.counts))

    def pyro_guide(self, batch: CellBatch) -> None:
        """A point for each cell."""
        import pyro
        from pyro import distributions as dist

        with pyro.plate("cells", len(batch.codes)):
            pyro.sample("z", dist.Delta(self.representations(batch.index), event_dim=1))

    def _terms(self, z: Tensor, batch: CellBatch, codes: Tensor) -> dict[str, Tensor]:
        own = self._labelled(self.mixture, z[:, : self.split], batch.codes, self.label)
        once = self.mixture.prior_log_prob()
        if self.covariate_mixture is not None:
            own = own + self._labelled(
                self.covariate_mixture, z[:, self.split :], batch.codes, self.covariate
            )
            once = once + self.covariate_mixture.prior_log_prob()
        # Each cell's part, so that an epoch counts log p(φ) once.
        share = -once * self.prior_weight / self.n_cells
        return {
            "reconstruction": -self.log_likelihood(z, batch, codes),
            "representation": -own,
            "mixture": share.expand(len(z)),
        }

    @staticmethod
    def _labelled(
        mixture: GaussianMixture, z: Tensor, codes: Tensor, covariate: int | None
    ) -> Tensor:
        """Log p(z | φ), or log N of the component that the cell's category names."""
        if covariate is None:
            return mixture.log_prob(z)
        return mixture.component_log_prob(z).gather(1, codes[:, [covariate]])[:, 0]

    def _mixtures(self) -> list[GaussianMixture]:
        return [self.mixture, *([] if self.covariate_mixture is None else [self.covariate_mixture])]

    def _start_points(self) -> Tensor:
        """Every combination of component means, (starts, latent)."""
        means = [mixture.means.detach() for mixture in self._mixtures()]
        if len(means) == 1:
            return means[0]
        first, second = means
        return torch.cat(
            [first.repeat_interleave(len(second), 0), second.repeat(len(first), 1)], dim=-1
        )

    def _prior_precision(self, z: Tensor) -> Tensor:
        """1/σ² of the component that answers most for each point, (cells, latent)."""
        parts, start = [], 0
        for mixture in self._mixtures():
            width = mixture.means.shape[1]
            nearest = mixture.component_log_prob(z[:, start : start + width]).argmax(-1)
            parts.append(mixture.log_precision.detach().exp().expand_as(mixture.means)[nearest])
            start += width
        return torch.cat(parts, dim=-1)


def _better(one: _Fit, other: _Fit) -> _Fit:
    """Of two searches, the lower loss of each cell."""
    keep = one.loss <= other.loss
    z = torch.where(keep[:, None], one.z, other.z)
    return _Fit(z, torch.minimum(one.loss, other.loss), one.steps + other.steps)
