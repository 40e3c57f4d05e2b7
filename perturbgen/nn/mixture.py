"""The prior of the Deep Generative Decoder (Schuster & Krogh 2023).

A Gaussian mixture over representations z; its own parameters have priors: a soft ball for the
means, a Dirichlet for the weights, a normal for the log variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.core.errors import ConfigError
from perturbgen.nn.likelihoods import HALF_LOG_2PI

_SHELLS = 2**16


@dataclass(frozen=True)
class _Softball:
    """Almost uniform in a ball of radius R: p(x) ∝ 1 / (1 + exp(a (‖x‖/R − 1))).

    Normalised exactly; the published constant is that of the hard ball, a → ∞. With a small
    hardness a and many dimensions L most of the mass is outside R, near ‖x‖ = R L/a.
    """

    dimension: int
    radius: float = 2.0
    hardness: float = 5.0

    def __post_init__(self) -> None:
        if self.dimension < 1 or not self.radius > 0 or not self.hardness > 0:
            raise ConfigError(
                f"no such softball: {self}", expected="dimension ≥ 1, radius > 0, hardness > 0"
            )

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (...) of points (..., dimension)."""
        excess = self.hardness * (torch.linalg.vector_norm(x, dim=-1) / self.radius - 1)
        return -functional.softplus(excess) - self._log_volume

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Points (n, dimension), on the generator's device: a direction times a radius."""
        device = generator.device if generator else None
        # A normal vector points anywhere alike.
        normal = torch.randn(n, self.dimension, generator=generator, device=device)
        cumulative = self._log_shells.softmax(0).cumsum(0).to(normal.device)
        place = torch.rand(n, 1, generator=generator, device=device).double()
        shell = torch.searchsorted(cumulative, place).clamp(max=_SHELLS - 1)
        within = torch.rand(n, 1, generator=generator, device=device)
        width = self._furthest * self.radius / _SHELLS
        return functional.normalize(normal, dim=-1) * (shell + within) * width

    @property
    def _furthest(self) -> float:
        """The radius, in units of R, beyond which less than e^-40 of the mass lies."""
        return 1 + (self.dimension + 12 * math.sqrt(self.dimension) + 40) / self.hardness

    @cached_property
    def _log_shells(self) -> Tensor:
        """Log of ∫ ρ^(L−1) / (1 + exp(a (ρ − 1))) over thin shells out to the furthest."""
        width = self._furthest / _SHELLS
        radii = (torch.arange(_SHELLS, dtype=torch.float64) + 0.5) * width
        excess = functional.softplus(self.hardness * (radii - 1))
        return (self.dimension - 1) * radii.log() - excess + math.log(width)

    @cached_property
    def _log_volume(self) -> float:
        """Log of the integral over all points of 1 / (1 + exp(a (‖x‖/R − 1)))."""
        half = self.dimension / 2
        log_sphere = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        shells = float(self._log_shells.logsumexp(0))
        return log_sphere + self.dimension * math.log(self.radius) + shells


class GaussianMixture(nn.Module):
    """K Gaussians over representations of L dimensions, learned under priors.

        means        μ_k ~ Softball(radius, hardness)
        weights      w = softmax(weight_logits) ~ Dirichlet(concentration)
        precisions   −log σ²_k ~ Normal(−2 log sd, sd_spread²)

    Precisions are per dimension ("diagonal") or one a component ("isotropic"). ``sd`` is also where
    the components start; by default 0.2 R/K.
    """

    def __init__(
        self,
        n_components: int,
        dimension: int,
        *,
        radius: float = 2.0,
        hardness: float = 5.0,
        sd: float | None = None,
        sd_spread: float = 1.0,
        concentration: float = 1.0,
        covariance: Literal["diagonal", "isotropic"] = "diagonal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.softball = _Softball(dimension, radius, hardness)
        self.sd = 0.2 * radius / n_components if sd is None else sd
        self.sd_spread, self.concentration = sd_spread, concentration
        if not (self.sd > 0 and sd_spread > 0 and concentration > 0):
            raise ConfigError(
                f"sd {self.sd}, sd_spread {sd_spread}, concentration {concentration}",
                expected="positive numbers",
            )
        widths = {"diagonal": dimension, "isotropic": 1}
        if covariance not in widths:
            raise ConfigError(f"covariance {covariance!r}", expected=" or ".join(widths))
        self.means = nn.Parameter(self.softball.sample(n_components, generator=generator))
        self.weight_logits = nn.Parameter(self.means.new_zeros(n_components))
        # Of the precision, not σ: its prior is normal, and no step can make it negative.
        self.log_precision = nn.Parameter(
            self.means.new_full((n_components, widths[covariance]), -2 * math.log(self.sd))
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Log Σ_k w_k N(z; μ_k, σ²_k), (...), of representations (..., dimension)."""
        return self.component_log_prob(z).logsumexp(-1)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Log w_k N(z; μ_k, σ²_k), (..., components); its softmax: how far each answers for z."""
        log_precision = self.log_precision.expand_as(self.means)
        squared = (z.unsqueeze(-2) - self.means).square() * log_precision.exp()
        log_normal = (0.5 * (log_precision - squared) - HALF_LOG_2PI).sum(-1)
        return self.weight_logits.log_softmax(0) + log_normal

    def prior_log_prob(self) -> Tensor:
        """Log density of the parameters, to be counted once for all data, not once a cell."""
        n, alpha = len(self.weight_logits), self.concentration
        log_weights = self.weight_logits.log_softmax(0).sum()
        dirichlet = (alpha - 1) * log_weights + math.lgamma(n * alpha) - n * math.lgamma(alpha)
        deviation = (self.log_precision + 2 * math.log(self.sd)) / self.sd_spread
        log_normal = -0.5 * deviation.square() - math.log(self.sd_spread) - HALF_LOG_2PI
        return self.softball.log_prob(self.means).sum() + dirichlet + log_normal.sum()

    @torch.no_grad()
    def sample(
        self, n: int, *, component: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(n, dimension), of given components, int64 (n,), or of components drawn by weight."""
        if component is None:
            weights = self.weight_logits.softmax(0)
            component = torch.multinomial(weights, n, replacement=True, generator=generator)
        mean = self.means[component]
        sd = torch.exp(-0.5 * self.log_precision[component])
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + sd * noise
