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
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from perturbgen.core.errors import ConfigError
from perturbgen.models.base import CountDecoder, LatentModel
from perturbgen.models.batch import CellBatch
from perturbgen.models.blueprint import Blueprint
from perturbgen.models.conditions import Conditions
from perturbgen.models.given import Likelihood
from perturbgen.models.importance import Proposal
from perturbgen.models.newton import Minimum, minimise
from perturbgen.nn import GaussianMixture
from perturbgen.nn.layers import Draws
from perturbgen.nn.likelihoods import HALF_LOG_2PI

_WARM = 4  # training cells whose points a search may start from
_WIDEN = 1.1  # the standard deviations of a proposal, over those of the curvature at the mode
BETAS = (0.5, 0.7)  # of Adam for representations: a short memory, as published


class _Space(NamedTuple):
    """Latent dimensions with a mixture of their own.

    ``covariate``, if any, is the one whose categories its components belong to.
    """

    mixture: GaussianMixture
    dimensions: slice
    covariate: int | None

    def labelled(self, z: Tensor, codes: Tensor) -> Tensor:
        """Log p(z | φ), (cells,), or log N of the component that the cell's category names."""
        own = z[:, self.dimensions]
        if self.covariate is None:
            return self.mixture.log_prob(own)
        return self.mixture.component_log_prob(own).gather(1, codes[:, [self.covariate]])[:, 0]


class _Loss(NamedTuple):
    """−log p(x | z, c) − log p(z) of a batch's points z, a surface to search."""

    model: DGD
    given: Likelihood

    def slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (cells,), and its gradient (cells, latent)."""
        value, slope = self.given.with_slope(z)
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            prior = self.model.prior_log_prob(z)
            more = torch.autograd.grad(prior.sum(), z)[0]
        return -(value + prior.detach()), -(slope + more)

    @torch.no_grad()
    def curvature(self, z: Tensor) -> Tensor:
        """The Fisher information and the prior's precision, (cells, latent, latent)."""
        return self.given.information(z) + torch.diag_embed(self.model._prior_precision(z))

    def of(self, keep: Tensor) -> _Loss:
        """That of some of the cells."""
        return self._replace(given=self.given.of(keep))


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
        self.n_latent = self._spaces()[-1].dimensions.stop
        # Rows belong to cells: the training loop shares their gradients itself, row by row.
        self._ddp_params_and_buffers_to_ignore = ["representations.weight"]
        # Sparse: a step touches the rows of its batch alone.
        self.representations = nn.Embedding(n_cells, self.n_latent, sparse=True)
        nn.init.zeros_(self.representations.weight)
        self.held_out: Tensor
        self.register_buffer("held_out", torch.zeros(n_held_out, self.n_latent))

    @classmethod
    def build(cls, blueprint: Blueprint) -> Self:
        """The model that a run's settings ask for."""
        plan, model = blueprint, blueprint.settings
        # First, as ever: what is drawn at the start depends on the order.
        decoder = plan.decoder(more_latent=2 if model.covariate_space else 0)
        mixture = GaussianMixture(
            plan.categories(model.components_by, model.components),
            model.latent,
            sd=model.component_sd,
            **model.model_dump(include={"radius", "hardness", "concentration", "covariance"}),
        )
        supervised = None
        if model.covariate_space:  # multiDGD: two dimensions, a component per category
            categories = plan.categories(model.covariate_space)
            supervised = GaussianMixture(categories, 2, concentration=2.0, covariance="isotropic")
        once = model.prior_weight != "per_sample"
        return cls(
            mixture,
            plan.conditions,
            decoder,
            n_cells=plan.n_cells,
            n_held_out=plan.n_held_out,
            category=plan.category,
            inner_steps=model.inner_steps,
            prior_weight=model.prior_weight if once else plan.n_cells,
            label=plan.position(model.components_by),
            covariate=plan.position(model.covariate_space),
            covariate_mixture=supervised,
            **blueprint.own_settings,
        )

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Network, mixtures and representations."""
        return {
            "network": [*self.conditions.parameters(), *self.decoder.parameters()],
            "mixture": [p for space in self._spaces() for p in space.mixture.parameters()],
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
        self, batch: CellBatch, *, starts: int = 2, steps: int = 60, tolerance: float = 0.01
    ) -> Minimum:
        """Representations of new cells: the best that ``starts`` searches find.

        One begins at the best of the component means and some training cells' points, the others
        at the next best means, or points where there is one mean only. A search (:func:`minimise`)
        ends where ``steps`` are made, or gain less than ``tolerance``.
        """
        means, given = self._start_points(), self.given(batch)
        trained = self.representations.weight.detach()
        some = trained[:: max(1, len(trained) // _WARM)][:_WARM]
        points = torch.cat([means, some.unique(dim=0)])
        with torch.no_grad():
            each = (z.expand(len(batch.codes), -1) for z in points)
            losses = torch.stack([-given(z) - self.prior_log_prob(z) for z in each])
        first = losses.argmin(dim=0)
        # Rectifiers make many small valleys, and components large ones: a second search gains
        # more than any longer one.
        others = losses.scatter(0, first[None], torch.inf)
        others = others[: len(means)] if len(means) > 1 else others
        chosen = [first, *others.argsort(dim=0)[: starts - 1]]
        surface = _Loss(self, given)
        # What every search learns on its way it need not know at its start: one curvature does.
        curvature = surface.curvature(points[first])
        fits = (
            minimise(points[rows], surface, curvature, steps=steps, tolerance=tolerance)
            for rows in chosen
        )

        def better(one: Minimum, other: Minimum) -> Minimum:
            """Of two searches, the lower loss of each cell."""
            keep = one.loss <= other.loss
            z = torch.where(keep[:, None], one.z, other.z)
            return Minimum(z, torch.minimum(one.loss, other.loss), one.steps + other.steps)

        return reduce(better, fits)

    def refine(
        self, z: Tensor, batch: CellBatch, *, steps: int, tolerance: float = 0.0, rate: float = 0.05
    ) -> Minimum:
        """Adam on the representations alone; each cell keeps the best point that it has seen."""
        z = z.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=rate, betas=BETAS)
        best, least = z.detach().clone(), torch.full((len(z),), torch.inf, device=z.device)
        before, surface = least, _Loss(self, self.given(batch))
        for step in range(steps + 1):
            loss, z.grad = surface.slope(z)
            improved = loss < least
            best = torch.where(improved[:, None], z.detach(), best)
            least = torch.where(improved, loss, least)
            if step % 10 == 9:
                if bool((before - least <= tolerance).all()):
                    break
                before = least
            for group in optimiser.param_groups:
                group["lr"] = rate / (1 + step / 20)  # so that the search comes to rest
            optimiser.step()
        return Minimum(best, least, step)

    def loss(self, z: Tensor, batch: CellBatch) -> Tensor:
        """−log p(x | z, c) − log p(z), (cells,)."""
        return -self.log_likelihood(z, batch) - self.prior_log_prob(z)

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log p(z | φ), (cells,), without the labels, which new cells do not have."""
        parts = [space.mixture.log_prob(z[..., space.dimensions]) for space in self._spaces()]
        return reduce(torch.add, parts)

    def prior_sample(
        self, n: int, generator: torch.Generator, codes: Tensor | None = None
    ) -> Tensor:
        """Draws from the mixtures; with codes, from the component that a cell's category names."""
        parts = []
        for mixture, _, covariate in self._spaces():
            named = None if codes is None or covariate is None else codes[:, covariate]
            parts.append(mixture.sample(n, component=named, generator=generator))
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def propose(self, batch: CellBatch, points: Tensor) -> Proposal:
        """Gaussians around the modes, with the curvature there as precision, a little wider."""
        precision = _Loss(self, self.given(batch)).curvature(points)
        # A little wider than the curvature says: weights of importance are bounded only where
        # the proposal's tails are no lighter than the posterior's.
        factor = torch.linalg.cholesky(precision / _WIDEN**2)  # (cells, latent, latent)
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

        def draw(noise: Tensor) -> tuple[Tensor, Tensor]:
            step = torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
            return points + step, (-0.5 * noise.square() - HALF_LOG_2PI).sum(-1) + log_scale

        return draw

    def _pyro_prior(self, batch: CellBatch) -> Any:
        from pyro import distributions as dist

        m = self.mixture
        sd = torch.exp(-0.5 * m.log_precision).expand_as(m.means)
        components = dist.Normal(m.means, sd).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=m.weight_logits), components)

    def _pyro_posterior(self, batch: CellBatch) -> Any:
        """A point for each cell."""
        from pyro import distributions as dist

        return dist.Delta(self.representations(batch.index), event_dim=1)

    def _terms(self, z: Tensor, batch: CellBatch, codes: Tensor) -> dict[str, Tensor]:
        spaces = self._spaces()
        own = reduce(torch.add, (space.labelled(z, batch.codes) for space in spaces))
        once = reduce(torch.add, (space.mixture.prior_log_prob() for space in spaces))
        # Each cell's part, so that an epoch counts log p(φ) once.
        share = -once * self.prior_weight / self.n_cells
        return {
            "reconstruction": -self.log_likelihood(z, batch, codes),
            "representation": -own,
            "mixture": share.expand(len(z)),
        }

    def _spaces(self) -> list[_Space]:
        """Where the representations of cells lie, and of the covariate's categories if there."""
        width = self.mixture.means.shape[1]
        spaces = [_Space(self.mixture, slice(0, width), self.label)]
        if self.covariate_mixture is not None:
            further = slice(width, width + self.covariate_mixture.means.shape[1])
            spaces.append(_Space(self.covariate_mixture, further, self.covariate))
        return spaces

    def _start_points(self) -> Tensor:
        """Every combination of component means, (starts, latent)."""
        first, *rest = (space.mixture.means.detach() for space in self._spaces())
        for more in rest:
            pairs = [first.repeat_interleave(len(more), 0), more.repeat(len(first), 1)]
            first = torch.cat(pairs, dim=-1)
        return first

    def _prior_precision(self, z: Tensor) -> Tensor:
        """1/σ² of the component that answers most for each point, (cells, latent)."""
        parts = []
        for mixture, dimensions, _ in self._spaces():
            nearest = mixture.component_log_prob(z[:, dimensions]).argmax(-1)
            parts.append(mixture.log_precision.detach().exp().expand_as(mixture.means)[nearest])
        return torch.cat(parts, dim=-1)
