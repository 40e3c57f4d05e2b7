import numpy as np
import pytest
import torch

from perturbgen.models import DGD, NBVAE
from perturbgen.nn import GaussianMixture
from tests.models.conftest import decoder


def quadrature(model, batch):
    """Log p(x | c) of a model with one latent dimension, on a fine grid."""
    grid = torch.linspace(-8, 8, 321)
    with torch.no_grad():
        values = [
            model.log_likelihood(z.expand(len(batch.codes), 1), batch)
            + model.prior_log_prob(z.expand(1, 1))
            for z in grid
        ]
    return torch.stack(values).double().logsumexp(0) + np.log(16 / 320)


def vae(conditions):
    return NBVAE(1, (9,), conditions, decoder(conditions, 1))


def dgd(conditions):
    mixture = GaussianMixture(3, 1, sd=0.5, generator=torch.Generator().manual_seed(1))
    return DGD(mixture, conditions, decoder(conditions, 1), n_cells=4)


@pytest.mark.parametrize("make", [vae, dgd])
def test_it_is_the_integral_over_the_latent_space(make, conditions, batch, generator):
    torch.manual_seed(0)
    model = make(conditions)
    few = model.log_evidence(batch, samples=400, generator=generator).double()
    torch.testing.assert_close(few, quadrature(model, batch), atol=0.1, rtol=0)


def test_more_samples_never_lower_it_in_expectation(conditions, batch, generator):
    torch.manual_seed(0)
    model = vae(conditions)
    means = [
        np.mean(
            [
                model.log_evidence(batch, samples=n, generator=generator).mean().item()
                for _ in range(16)
            ]
        )
        for n in (1, 6, 36)
    ]
    assert means[0] < means[1] < means[2] + 1e-3
