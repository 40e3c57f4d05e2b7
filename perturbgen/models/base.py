"""What the training loop asks of any model, and what the VAE and the DGD share.

Latent points are decoded, with conditions, into the distribution of a cell's counts; the likelihood
of cells that a model was not trained on comes by importance sampling.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.core.errors import MissingDependencyError
from perturbgen.models.batch import CellBatch, dense, sizes
from perturbgen.models.conditions import Conditions
from perturbgen.models.given import CountsGiven, Likelihood
from perturbgen.models.importance import Proposal, even_normals
from perturbgen.nn import MLP, Dispersion, PredictedDispersion, nb_log_prob_sparse, scaled_log_mean
from perturbgen.nn.layers import Draws, Scaling, composition
from perturbgen.nn.likelihoods import sample_nb

if TYPE_CHECKING:
    from perturbgen.models.blueprint import Blueprint

_DispersionKind = Literal["gene", "gene-category", "predicted"]


class Trainable(nn.Module, ABC):
    """A model that names the terms of its objective; the loop does not look into a batch.

    A batch has ``index``, int64 (samples,): the positions of its samples in the feed.
    """

    # The terms of the objective that an annealing schedule may weigh.
    annealed: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Any, draws: Draws) -> dict[str, Tensor]:
        """The terms of the objective to be minimised, each (samples,)."""

    def validate(self, batch: Any, draws: Draws) -> dict[str, Tensor]:
        """The same terms for samples that are not trained on; called in evaluation mode."""
        with torch.no_grad():
            return self(batch, draws)

    def advance(self, step: int) -> None:
        """Told the number of each step (0, 1, ...) before it is made, for margins and the like."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by kind; each kind has a learning rate of its own."""
        return {"network": list(self.parameters())}


def _pyro() -> Any:
    """Pyro, which only the two functions named after it need."""
    try:
        import pyro
    except ImportError:
        raise MissingDependencyError(
            "Pyro is not installed", fix='pip install "perturbgen[pyro]"'
        ) from None
    return pyro


class CountParameters(NamedTuple):
    """Log mean (..., cells, genes) and log dispersion r, which broadcasts into it."""

    log_mean: Tensor
    log_r: Tensor


class CountDecoder(nn.Module):
    """p(x | z, c) = NB(size × softmax(f(z, c)), r): ``hidden`` layers, then a unit per gene.

    ``share`` (genes,) is each gene's part of all counts, where the last layer's bias starts, and
    ``r`` (genes,) where the dispersions do. With ``additive`` the conditions act on the log means
    directly, too: a linear term beside the network.
    """

    def __init__(
        self,
        n_latent: int,
        hidden: Sequence[int],
        n_genes: int,
        *,
        n_conditions: int = 0,
        share: Tensor | None = None,
        r: Tensor | None = None,
        scaling: Scaling = "total",
        dispersion: _DispersionKind = "gene",
        n_categories: int | None = None,
        additive: bool = False,
        layer_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scaling, self.dispersion_kind = scaling, dispersion
        self.trunk = MLP(
            n_latent, hidden, n_conditions=n_conditions, layer_norm=layer_norm, dropout=dropout
        )
        # MLP ends linear: this finishes its last layer before the genes' own.
        last = [nn.LayerNorm(hidden[-1])] if layer_norm else []
        self.activation = nn.Sequential(*last, nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden[-1], n_genes)
        self.additive: nn.Linear | None = None
        if additive and n_conditions:
            self.additive = nn.Linear(n_conditions, n_genes, bias=False)
            nn.init.zeros_(self.additive.weight)
        if share is not None:
            self._start_at(share)
        self.dispersion: nn.Module
        if dispersion == "predicted":
            self.dispersion = PredictedDispersion(hidden[-1], n_genes, r=r)
        else:
            own = n_categories if dispersion == "gene-category" else None
            self.dispersion = Dispersion(n_genes, n_categories=own, r=r)

    def forward(
        self, z: Tensor, features: Tensor | None, size: Tensor, category: Tensor | None = None
    ) -> CountParameters:
        """Of points (..., cells, latent), condition features (cells, n_conditions), sizes (cells,).

        ``category`` (cells,) int64 chooses the dispersion where it is per gene and category.
        Features and category of length 1 are those of all cells.
        """
        hidden = self.hidden(z, features)
        logits = self.genes(hidden, self.shift(features))
        log_mean = scaled_log_mean(logits.float(), size, scaling=self.scaling)
        return CountParameters(log_mean, self._log_r(hidden, category))

    def composition(
        self, z: Tensor, features: Tensor | None, category: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each gene's share (..., cells, genes) and log r: nothing that needs a size."""
        hidden = self.hidden(z, features)
        logits = self.genes(hidden, self.shift(features))
        share = composition(logits.float(), scaling=self.scaling)
        return share, self._log_r(hidden, category)

    def hidden(self, z: Tensor, features: Tensor | None) -> Tensor:
        """The last hidden layer, (..., cells, hidden)."""
        return self.activation(self.trunk(z, features))

    def shift(self, features: Tensor | None) -> Tensor | None:
        """What conditions add to the logits beside the network, (cells, genes)."""
        return None if self.additive is None or features is None else self.additive(features)

    def genes(self, hidden: Tensor, shift: Tensor | None) -> Tensor:
        """Of a hidden layer, with what features add (:meth:`shift`): before scaling, (..., cells,
        genes). Conditions that cells share are one more bias.
        """
        if shift is None:
            return self.head(hidden)
        # One product less a cell: with 158 conditions the term had cost as much as the layer.
        if len(shift) == 1:
            return functional.linear(hidden, self.head.weight, self.head.bias + shift[0])
        return self.head(hidden) + shift

    def _log_r(self, hidden: Tensor, category: Tensor | None) -> Tensor:
        if self.dispersion_kind == "predicted":
            return self.dispersion(hidden).float()
        return self.dispersion(category if self.dispersion_kind == "gene-category" else None)

    @torch.no_grad()
    def _start_at(self, share: Tensor) -> None:
        """The last layer begins at the genes' mean shares; a sigmoid's has its largest at ½."""
        share = share.float().clamp(min=1e-12)
        # From the right depth of every gene on, the network learns differences only.
        log_share = (share / share.sum()).log()
        if self.scaling == "max":
            log_share = (log_share - log_share.max()).clamp(min=-20)
        self.head.bias.copy_(log_share)
        # Near the mean shares at first, whatever the latent points are.
        self.head.weight.mul_(0.1)


class LatentModel(Trainable):
    """Counts x given conditions c through a latent point z: p(x | c) = ∫ p(x | z, c) p(z) dz."""

    n_latent: int

    def __init__(
        self, conditions: Conditions, decoder: CountDecoder, *, category: int | None = None
    ) -> None:
        super().__init__()
        self.conditions, self.decoder = conditions, decoder
        self.category = category  # which covariate chooses the dispersion

    @classmethod
    def build(cls, blueprint: Blueprint) -> Self:
        """The model that a run's settings ask for: ``cls(n_latent, conditions, decoder, category=,
        ...)`` with its own settings; what is made of other parts has a ``build`` of its own.
        """
        plan, model, make = blueprint, blueprint.settings, cast("Any", cls)
        return make(
            model.latent,
            plan.conditions,
            plan.decoder(),
            category=plan.category,
            **plan.own_settings,
        )

    @abstractmethod
    def forward(self, batch: CellBatch, draws: Draws) -> dict[str, Tensor]:
        """The terms of the objective to be minimised, each (cells,), in nats."""

    @abstractmethod
    def encode(self, batch: CellBatch) -> Tensor:
        """The most fitting latent point of each cell, (cells, latent)."""

    def own(self, batch: CellBatch) -> Tensor:
        """The latent points of training cells, as cheaply as they can be had."""
        return self.encode(batch)

    @abstractmethod
    def propose(self, batch: CellBatch, points: Tensor) -> Proposal:
        """A proposal for importance sampling; ``points`` are what :meth:`encode` gives."""

    @abstractmethod
    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log p(z), (cells,)."""

    @abstractmethod
    def prior_sample(
        self, n: int, generator: torch.Generator, codes: Tensor | None = None
    ) -> Tensor:
        """Points (n, latent); of components that belong to categories, those of ``codes``."""

    def decode(self, z: Tensor, codes: Tensor, size: Tensor) -> CountParameters:
        """The counts' distribution given latent points, condition codes and sizes."""
        return self.decoder(z, self.conditions(codes), size, self._category(codes))

    def composition(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Each gene's share of a cell's counts (cells, genes), and log r, which broadcasts."""
        return self.decoder.composition(z, self.conditions(codes), self._category(codes))

    def _category(self, codes: Tensor) -> Tensor | None:
        return None if self.category is None else codes[:, self.category]

    def log_likelihood(self, z: Tensor, batch: CellBatch, codes: Tensor | None = None) -> Tensor:
        """Log p(x | z, c), (cells,)."""
        counts = batch.counts
        size = sizes(counts, self.decoder.scaling)
        parameters = self.decode(z, batch.codes if codes is None else codes, size)
        return nb_log_prob_sparse(counts.values, counts.columns, counts.offsets, *parameters)

    def given(self, batch: CellBatch) -> Likelihood:
        """Log p(x | z, c) of these cells as a function of z, for those who ask many times."""
        own = (type(self).log_likelihood, type(self).decode)
        inherited = own == (LatentModel.log_likelihood, LatentModel.decode)
        counted = isinstance(self.decoder, CountDecoder)
        # a dispersion that is predicted depends on z
        fixed = counted and inherited and self.decoder.dispersion_kind != "predicted"
        kind = CountsGiven if fixed else Likelihood
        return kind(self, batch, sizes(batch.counts, self.decoder.scaling if counted else "total"))

    def chosen_dispersion(self, codes: Tensor) -> Tensor | None:
        """The category that chooses a cell's dispersion, where it has categories."""
        return self._category(codes) if self.decoder.dispersion_kind == "gene-category" else None

    @torch.no_grad()
    def expected(self, z: Tensor, codes: Tensor, size: Tensor) -> Tensor:
        """Mean counts (cells, genes) at latent points."""
        return self.decode(z, codes, size).log_mean.exp()

    @torch.no_grad()
    def sample(
        self, codes: Tensor, size: Tensor, generator: torch.Generator, z: Tensor | None = None
    ) -> Tensor:
        """Counts (cells, genes) for codes and sizes, from the prior unless points are given."""
        z = self.prior_sample(len(codes), generator) if z is None else z
        return sample_nb(*self.decode(z, codes, size), generator)

    def pyro_model(self, batch: CellBatch) -> None:
        """The generative story, for Pyro: its ELBO with the guide is a VAE's objective, and a
        DGD's but for log p(φ).
        """
        pyro = _pyro()
        from perturbgen.nn.distributions import NegativeBinomial

        with pyro.plate("cells", len(batch.codes)):
            z = pyro.sample("z", self._pyro_prior(batch))
            parameters = self.decode(z, batch.codes, sizes(batch.counts, self.decoder.scaling))
            pyro.sample("x", NegativeBinomial(*parameters).to_event(1), obs=dense(batch.counts))

    def pyro_guide(self, batch: CellBatch) -> None:
        """The variational family, for Pyro."""
        pyro = _pyro()
        with pyro.plate("cells", len(batch.codes)):
            pyro.sample("z", self._pyro_posterior(batch))

    def _pyro_prior(self, batch: CellBatch) -> Any:
        """p(z), a Pyro distribution over the batch's cells; of models that are compared with it."""
        raise NotImplementedError

    def _pyro_posterior(self, batch: CellBatch) -> Any:
        """q(z | x, c), a Pyro distribution over the batch's cells."""
        raise NotImplementedError

    @torch.no_grad()
    def log_evidence(
        self,
        batch: CellBatch,
        *,
        samples: int,
        generator: torch.Generator,
        points: Tensor | None = None,
    ) -> Tensor:
        """Log p(x | c) ≈ log ¹⁄ₛ Σ_s p(x | z_s, c) p(z_s) / q(z_s), z_s ~ q, (cells,).

        In expectation it is never above the truth, and approaches it as ``samples`` grow.
        ``points`` are what :meth:`encode` gives of the batch, where that is known already.
        """
        points = self.encode(batch) if points is None else points
        proposal, likelihood = self.propose(batch, points), self.given(batch)
        # Summed as they come: the draws of a batch need no memory for all samples.
        total = torch.full((len(batch.codes),), -torch.inf, device=batch.codes.device)
        for noise in even_normals(samples, len(batch.codes), self.n_latent, generator):
            z, log_q = proposal(noise)
            log_p = likelihood(z) + self.prior_log_prob(z)
            total = torch.logaddexp(total, log_p - log_q)
        return total - math.log(samples)
