"""The count likelihoods as Pyro distributions, for ``pyro.sample`` in a model or guide.

Their parameters are logarithms, as the likelihoods' are: no mean underflows. ``sample`` takes a
generator besides. Apart from the likelihoods, because Pyro is slow to import.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from perturbgen.nn.likelihoods import check_fits, nb_log_prob, sample_nb, zinb_log_prob


class NegativeBinomial(TorchDistribution):
    """Negative binomial counts of mean m = exp(log_mean) and variance m + m²/r, r = exp(log_r).

    Gamma-Poisson: k ~ Poisson(g), g ~ Gamma(shape r, mean m); Poisson where r is infinite. The mean
    sets the batch shape, into which other parameters broadcast.
    """

    support = constraints.nonnegative_integer
    arg_constraints: ClassVar = {"log_mean": constraints.real, "log_r": constraints.real}
    log_mean: Tensor
    log_r: Tensor

    def __init__(
        self,
        log_mean: Tensor,
        log_r: Tensor | float,
        *,
        validate_args: bool | None = None,
        **further: Tensor | float,
    ) -> None:
        self.log_mean = log_mean
        for name, value in {"log_r": log_r, **further}.items():
            tensor = torch.as_tensor(value, dtype=log_mean.dtype, device=log_mean.device)
            check_fits(name, tensor, log_mean.shape)
            setattr(self, name, tensor)
        super().__init__(log_mean.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """E k = m."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Var k = m + m²/r."""
        return self.mean + torch.exp(2 * self.log_mean - self.log_r)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution over a wider batch."""
        # Pyro expands a distribution wherever it stands in a plate.
        new = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name))
        new.log_mean = self.log_mean.expand(batch_shape)
        # The parameters were checked when the first instance was made.
        super(NegativeBinomial, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log pmf of counts (..., *batch_shape)."""
        if self._validate_args:
            self._validate_sample(value)
        return nb_log_prob(value, self.log_mean, self.log_r)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Counts (*sample_shape, *batch_shape)."""
        log_mean = self.log_mean.expand(self._extended_shape(sample_shape))
        return sample_nb(log_mean, self.log_r, generator)


class _ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Zero with probability π = sigmoid(dropout_logits), else negative binomial."""

    arg_constraints: ClassVar = {
        **NegativeBinomial.arg_constraints,
        "dropout_logits": constraints.real,
    }
    dropout_logits: Tensor

    def __init__(
        self,
        log_mean: Tensor,
        log_r: Tensor | float,
        dropout_logits: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            log_mean, log_r, validate_args=validate_args, dropout_logits=dropout_logits
        )

    @property
    def mean(self) -> Tensor:
        """E k = (1 − π) m."""
        return torch.sigmoid(-self.dropout_logits) * self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Var k = (1 − π) (m + m²/r + π m²)."""
        pi, square = torch.sigmoid(self.dropout_logits), torch.exp(2 * self.log_mean)
        spread = self.log_mean.exp() + square * torch.exp(-self.log_r) + square * pi
        return torch.sigmoid(-self.dropout_logits) * spread

    def log_prob(self, value: Tensor) -> Tensor:
        """Log pmf of counts (..., *batch_shape)."""
        if self._validate_args:
            self._validate_sample(value)
        return zinb_log_prob(value, self.log_mean, self.log_r, self.dropout_logits)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Counts (*sample_shape, *batch_shape)."""
        counts = super().sample(sample_shape, generator=generator)
        chance = torch.rand(counts.shape, generator=generator, device=counts.device)
        return counts * (chance >= torch.sigmoid(self.dropout_logits))
