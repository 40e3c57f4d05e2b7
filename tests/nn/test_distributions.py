"""The Pyro distributions: draws with the right moments and frequencies, and models of them."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine import trace
from scipy import stats

from perturbgen.nn import ShapeError, nb_log_prob, nb_log_prob_sparse
from perturbgen.nn.distributions import NegativeBinomial, _ZeroInflatedNegativeBinomial

N = 100_000


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def log(*values: float) -> torch.Tensor:
    return torch.tensor(values).log()


def agrees(draws: np.ndarray, mean: float, variance: float) -> bool:
    """Whether the mean and variance of the draws are within five standard errors of the truth."""
    fourth = ((draws - mean) ** 4).mean()
    near = abs(draws.mean() - mean) < 5 * np.sqrt(variance / len(draws))
    return bool(
        near and abs(draws.var() - variance) < 5 * np.sqrt((fourth - variance**2) / len(draws))
    )


@pytest.mark.parametrize("mean", [0.02, 3, 700])
@pytest.mark.parametrize("r", [0.05, 2, 50, 1e8])
def test_nb_draws_have_mean_m_and_variance_m_plus_m2_over_r(mean, r, generator):
    nb = NegativeBinomial(log(mean), np.log(r))
    draws = nb.sample((N,), generator=generator)[:, 0].double().numpy()
    assert agrees(draws, mean, mean + mean**2 / r)
    np.testing.assert_allclose([nb.mean, nb.variance], [[mean], [mean + mean**2 / r]], rtol=1e-5)


@pytest.mark.parametrize(("mean", "r"), [(0.3, 0.1), (4, 2), (20, 30)])
def test_nb_draws_have_the_frequencies_of_its_pmf(mean, r, generator):
    draws = NegativeBinomial(log(mean), np.log(r)).sample((N,), generator=generator)[:, 0].long()
    k = np.arange(400)
    expected = N * stats.nbinom.pmf(k, r, r / (r + mean))
    common = expected >= 10
    observed = torch.bincount(draws, minlength=400).numpy()[:400]
    pooled = [np.append(x[common], N - x[common].sum()) for x in (observed, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-3


def test_zero_inflated_draws(generator):
    zinb = _ZeroInflatedNegativeBinomial(log(3.0), np.log(2), torch.tensor(-0.5))
    draws = zinb.sample((N,), generator=generator)[:, 0].double().numpy()
    assert agrees(draws, zinb.mean.item(), zinb.variance.item())
    zeros = zinb.log_prob(torch.zeros(1)).exp().item()
    assert abs((draws == 0).mean() - zeros) < 5 * np.sqrt(zeros / N)
    k = torch.arange(500.0)[:, None]
    pmf = zinb.log_prob(k).exp().double()
    assert pmf.sum().item() == pytest.approx(1, abs=1e-5)
    assert (pmf * k).sum().item() == pytest.approx(zinb.mean.item(), rel=1e-5)
    assert (pmf * (k - zinb.mean) ** 2).sum().item() == pytest.approx(
        zinb.variance.item(), rel=1e-4
    )


def test_r_without_end_is_poisson(generator):
    poisson = NegativeBinomial(log(2.5), torch.inf)
    draws = poisson.sample((N,), generator=generator)[:, 0].double().numpy()
    assert agrees(draws, 2.5, poisson.variance.item())
    assert poisson.log_prob(torch.tensor([3.0])).item() == pytest.approx(
        stats.poisson.logpmf(3, 2.5), rel=1e-6
    )


def test_mean_zero_draws_zeros(generator):
    assert NegativeBinomial(log(0.0), 0.5).sample((50,), generator=generator).sum() == 0


def test_one_generator_gives_one_draw_and_no_generator_the_global_one():
    nb = _ZeroInflatedNegativeBinomial(log(1, 10, 100), 0.5, 0.0)
    first, second = (nb.sample((20,), generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (20, 3)


def test_expand_and_to_event():
    nb = NegativeBinomial(log(1, 10, 100), log(0.5, 2, 8))
    wide = nb.expand((4, 3))
    assert wide.batch_shape == (4, 3)
    assert wide.sample().shape == (4, 3)
    k = torch.tensor([0.0, 7, 90])
    torch.testing.assert_close(wide.log_prob(k.expand(4, 3)), nb.log_prob(k).expand(4, 3))
    assert nb.to_event(1).log_prob(k).shape == ()


def test_what_is_no_count_or_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="support"):
        NegativeBinomial(log(1.0), 0.5, validate_args=True).log_prob(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="support"):
        NegativeBinomial(log(1.0), 0.5, validate_args=True).expand((2,)).log_prob(
            torch.tensor([0.5, 1])
        )
    with pytest.raises(ValueError, match="log_mean"):
        NegativeBinomial(torch.tensor([torch.nan]), 0.5, validate_args=True)
    with pytest.raises(ShapeError, match="log_r"):
        NegativeBinomial(torch.zeros(5), torch.zeros(5, 1))
    with pytest.raises(ShapeError, match="counts"):
        NegativeBinomial(torch.zeros(5, 1), 0.0).log_prob(torch.zeros(5))


def test_elbo_of_a_model_with_plates_equals_the_closed_form():
    """One Gaussian latent per cell, guide = prior, so that the ELBO is the likelihood of the
    prior's draw.
    """
    counts = torch.tensor([[0.0, 3, 1], [2, 0, 0], [0, 0, 9], [1, 1, 1]])
    loadings, log_r = torch.tensor([0.5, -1.0, 2.0]), log(0.5, 2, 8)

    def model(counts):
        with pyro.plate("cells", len(counts), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("genes", 3, dim=-1):
                return pyro.sample("counts", NegativeBinomial(z * loadings, log_r), obs=counts)

    def guide(counts):
        with pyro.plate("cells", len(counts), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))

    with torch.random.fork_rng():
        torch.manual_seed(5)
        loss = Trace_ELBO()(model, guide)(counts)
        torch.manual_seed(5)
        z = trace(guide).get_trace(counts).nodes["z"]["value"]
    assert loss.item() == pytest.approx(
        -nb_log_prob(counts, z * loadings, log_r).sum().item(), rel=1e-6
    )


def test_sparse_likelihood_equals_the_distribution():
    counts = torch.tensor([[0.0, 3, 1], [0, 0, 0]])
    nb = NegativeBinomial(
        torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), log(0.5, 2, 8)
    ).to_event(1)
    sparse = nb_log_prob_sparse(
        torch.tensor([3.0, 1]),
        torch.tensor([1, 2]),
        torch.tensor([0, 2, 2]),
        nb.base_dist.log_mean,
        nb.base_dist.log_r,
    )
    torch.testing.assert_close(sparse, nb.log_prob(counts))
