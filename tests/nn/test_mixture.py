"""The mixture prior against scipy, and the soft ball against numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import logsumexp

from perturbgen.core.errors import ConfigError
from perturbgen.nn import GaussianMixture
from perturbgen.nn.mixture import _Softball


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def mixture(covariance: str, generator: torch.Generator, **options: float) -> GaussianMixture:
    """Three components in two dimensions, moved off where they start."""
    prior = GaussianMixture(3, 2, covariance=covariance, generator=generator, **options)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.7 * torch.randn(parameter.shape, generator=generator)
    return prior


def numpy_parameters(prior: GaussianMixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (K,), means (K, L), variances (K, L)."""
    logits, means, log_precision = (
        p.detach().double().numpy() for p in (prior.weight_logits, prior.means, prior.log_precision)
    )
    return (
        np.exp(logits - logsumexp(logits)),
        means,
        np.broadcast_to(np.exp(-log_precision), means.shape),
    )


@pytest.mark.parametrize("covariance", ["diagonal", "isotropic"])
def test_log_density_equals_scipy(covariance, generator):
    prior = mixture(covariance, generator)
    z = torch.randn(4, 5, 2, generator=generator)
    components = [
        math.log(w) + stats.multivariate_normal(mean, np.diag(variance)).logpdf(z.double().numpy())
        for w, mean, variance in zip(*numpy_parameters(prior), strict=True)
    ]
    np.testing.assert_allclose(
        prior.component_log_prob(z).detach(), np.stack(components, -1), rtol=2e-5
    )
    np.testing.assert_allclose(prior.log_prob(z).detach(), logsumexp(components, axis=0), rtol=2e-5)


@pytest.mark.parametrize("covariance", ["diagonal", "isotropic"])
def test_prior_of_the_parameters_equals_scipy(covariance, generator):
    prior = mixture(covariance, generator, radius=1.5, sd=0.3, sd_spread=0.8, concentration=2.5)
    weights, means, _ = numpy_parameters(prior)
    expected = stats.dirichlet([2.5] * 3).logpdf(weights)
    expected += (
        stats.norm(-2 * math.log(0.3), 0.8)
        .logpdf(prior.log_precision.detach().double().numpy())
        .sum()
    )
    expected += _Softball(2, 1.5, 5.0).log_prob(torch.tensor(means)).sum().item()
    assert prior.prior_log_prob().item() == pytest.approx(expected, rel=1e-5)


def test_a_cell_far_away_keeps_a_finite_gradient(generator):
    prior = mixture("diagonal", generator)
    z = torch.full((1, 2), 1e4, requires_grad=True)
    (prior.log_prob(z).sum() + prior.prior_log_prob()).backward()
    assert all(p.grad.isfinite().all() for p in [z, *prior.parameters()])


def test_one_component_has_no_weight_to_learn(generator):
    prior = GaussianMixture(1, 3, concentration=2.0, generator=generator)
    (prior.log_prob(torch.zeros(4, 3)).sum() + prior.prior_log_prob()).backward()
    assert prior.weight_logits.grad.tolist() == [0]


def test_many_components_start_with_a_positive_sd(generator):
    assert GaussianMixture(500, 3, generator=generator).log_precision.exp().isfinite().all()


def test_samples_follow_the_mixture(generator):
    prior = mixture("diagonal", generator)
    weights, means, variances = numpy_parameters(prior)
    z = prior.sample(40_000, generator=generator).double().numpy()
    mean = weights @ means
    variance = weights @ (variances + means**2) - mean**2
    np.testing.assert_allclose(z.mean(0), mean, atol=5 * np.sqrt(variance.max() / 40_000))
    np.testing.assert_allclose(z.var(0), variance, rtol=0.05)
    for axis in range(2):

        def cumulative(x, axis=axis):
            return sum(
                w * stats.norm.cdf(x, m[axis], s[axis] ** 0.5)
                for w, m, s in zip(weights, means, variances, strict=True)
            )

        assert stats.kstest(z[:, axis], cumulative).pvalue > 1e-3


def test_samples_of_given_components(generator):
    prior = mixture("isotropic", generator)
    z = prior.sample(20_000, component=torch.full((20_000,), 1), generator=generator)
    _, means, variances = numpy_parameters(prior)
    np.testing.assert_allclose(z.mean(0), means[1], atol=5 * math.sqrt(variances[1, 0] / 20_000))
    np.testing.assert_allclose(z.var(0), variances[1], rtol=0.05)


def test_one_generator_gives_one_mixture_and_one_sample():
    first, second = (
        GaussianMixture(4, 2, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.means, second.means)
    draws = [p.sample(5, generator=torch.Generator().manual_seed(4)) for p in (first, second)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(("radius", "hardness"), [(1, 1), (2, 5), (3, 100)])
def test_softball_integrates_to_one_in_the_plane(radius, hardness):
    ball = _Softball(2, radius, hardness)
    reach = radius * (1 + 30 / hardness)
    x = torch.linspace(-reach, reach, 2001, dtype=torch.float64)
    density = ball.log_prob(torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)).exp()
    assert (density.sum() * (x[1] - x[0]) ** 2).item() == pytest.approx(1, abs=1e-4)


def test_a_hard_softball_is_the_uniform_ball():
    ball = _Softball(3, 2.0, 1e4)
    assert ball.log_prob(torch.tensor([0.5, 1.0, -1.0])).item() == pytest.approx(
        -math.log(4 / 3 * math.pi * 8), abs=1e-4
    )


def test_softball_never_overflows():
    x = torch.tensor([[1e6, 0.0], [0.0, 0.0]], requires_grad=True)
    log_prob = _Softball(2, 1.0, 1000.0).log_prob(x)
    log_prob.sum().backward()
    assert log_prob[0].item() == pytest.approx(-1e9, rel=1e-5)
    assert x.grad.tolist() == [[-1000, 0], [0, 0]]


@pytest.mark.parametrize(
    ("dimension", "radius", "hardness"), [(1, 2, 5), (2, 1, 1), (20, 1, 1), (20, 2, 5), (5, 2, 200)]
)
def test_softball_samples_have_its_radii_and_every_direction(
    dimension, radius, hardness, generator
):
    x = _Softball(dimension, radius, hardness).sample(20_000, generator=generator).double().numpy()

    def mass(r: float) -> float:
        return r ** (dimension - 1) / (1 + math.exp(min(hardness * (r / radius - 1), 700)))

    edges = np.quantile(np.linalg.norm(x, axis=1), np.linspace(0, 1, 21)[1:-1])
    furthest = radius * (1 + (dimension + 200) / hardness)
    pieces = [
        integrate.quad(mass, a, b)[0] for a, b in zip([0, *edges], [*edges, furthest], strict=True)
    ]
    assert stats.chisquare(np.full(20, 1000), 20_000 * np.array(pieces) / sum(pieces)).pvalue > 1e-3
    sign = (x > 0).mean(0)
    np.testing.assert_allclose(sign, 0.5, atol=0.02)


@pytest.mark.parametrize(
    "options", [{"radius": 0.0}, {"hardness": -1.0}, {"sd": 0.0}, {"covariance": "full"}]
)
def test_impossible_priors_are_refused(options):
    with pytest.raises(ConfigError):
        GaussianMixture(2, 3, **options)
