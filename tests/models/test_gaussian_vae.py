import numpy as np
import pytest
import torch
from scipy.stats import norm

from perturbgen.models import Draws, GaussianVAE
from perturbgen.models.batch import dense
from perturbgen.models.gaussian_vae import GaussianDecoder
from tests.models.conftest import N_GENES


@pytest.fixture
def model(conditions):
    torch.manual_seed(0)
    return GaussianVAE(
        2, (9,), conditions, GaussianDecoder(2, (7,), N_GENES, n_conditions=conditions.width)
    )


def test_the_likelihood_is_scipys_on_normalised_data(model, batch):
    counts = dense(batch.counts).numpy()
    y = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    z = torch.zeros(16, 2)
    mean, log_sd = model.decode(z, batch.codes, torch.ones(16))
    expected = norm(mean.detach().numpy(), log_sd.exp().detach().numpy()).logpdf(y).sum(axis=1)
    np.testing.assert_allclose(model.log_likelihood(z, batch).detach().numpy(), expected, rtol=1e-4)
    assert set(model(batch, Draws(torch.Generator().manual_seed(0)))) == {"reconstruction", "kl"}


def test_counts_come_back_as_whole_numbers_around_what_is_expected(model, generator):
    codes, size, z = (
        torch.zeros(5000, 2, dtype=torch.int64),
        torch.full((5000,), 300.0),
        torch.zeros(5000, 2),
    )
    with torch.no_grad():
        model.decoder.log_sd.fill_(-20.0)
        model.decoder.head.bias.fill_(4.0)
    counts = model.sample(codes, size, generator, z)
    assert (counts == counts.round()).all()
    expected = model.expected(z, codes, size)
    torch.testing.assert_close(counts.mean(0), expected[0], rtol=0.03, atol=0.1)
