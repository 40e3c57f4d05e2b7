import pytest
import torch
from scipy.stats import multivariate_normal, nbinom

from perturbgen.models import NBVAE, Draws
from perturbgen.models.batch import SparseValues, dense
from tests.models.conftest import decoder


@pytest.fixture
def model(conditions):
    torch.manual_seed(0)
    return NBVAE(2, (9,), conditions, decoder(conditions))


def test_the_closed_form_is_pyros_elbo_on_the_same_noise(model, batch, monkeypatch):
    """TraceMeanField_ELBO has the KL in closed form, too, and the reconstruction at the one z that
    the guide draws.
    """
    import pyro
    from pyro.infer import TraceMeanField_ELBO

    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: noise)
    terms = model(batch, Draws(torch.Generator().manual_seed(5)))
    pyro.clear_param_store()
    loss = TraceMeanField_ELBO().differentiable_loss(model.pyro_model, model.pyro_guide, batch)
    torch.testing.assert_close(
        sum(term.sum() for term in terms.values()), loss, rtol=1e-5, atol=1e-3
    )


def test_reconstruction_is_scipys(model, batch):
    z = torch.zeros(16, 2)
    log_mean, log_r = model.decode(z, batch.codes, dense(batch.counts).sum(1))
    mean, r = log_mean.detach().double().exp().numpy(), log_r.detach().double().exp().numpy()
    expected = nbinom.logpmf(dense(batch.counts).numpy(), r, r / (r + mean)).sum(axis=1)
    torch.testing.assert_close(
        model.log_likelihood(z, batch).detach().double(),
        torch.from_numpy(expected),
        rtol=1e-5,
        atol=1e-4,
    )


def test_sparse_and_dense_counts_agree(model, batch):
    full = dense(batch.counts)
    cells, genes = full.shape
    stored = SparseValues(
        full.flatten(), torch.arange(genes).repeat(cells), torch.arange(cells + 1) * genes, genes
    )
    for name, term in model(
        batch._replace(counts=stored), Draws(torch.Generator().manual_seed(1))
    ).items():
        torch.testing.assert_close(
            term, model(batch, Draws(torch.Generator().manual_seed(1)))[name], rtol=1e-5, atol=1e-4
        )


def test_the_kl_is_zero_at_the_prior_and_scipys_elsewhere(model, batch):
    posterior = model.posterior(batch)
    assert posterior._replace(mean=torch.zeros(3, 2), log_sd=torch.zeros(3, 2)).kl().tolist() == [
        0,
        0,
        0,
    ]
    cell = posterior.mean[0].detach().double(), posterior.log_sd[0].detach().double().exp()
    draws = (
        cell[0]
        + cell[1] * torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)).double()
    )
    log_q = multivariate_normal(cell[0].numpy(), (cell[1] ** 2).numpy()).logpdf(draws.numpy())
    log_p = multivariate_normal([0, 0]).logpdf(draws.numpy())
    assert posterior.kl()[0].item() == pytest.approx((log_q - log_p).mean(), abs=0.01)


def test_generated_cells_have_the_depth_asked_for(model, generator):
    codes = torch.zeros(4000, 2, dtype=torch.int64)
    counts = model.sample(codes, torch.full((4000,), 500.0), generator)
    assert counts.sum(1).mean().item() == pytest.approx(500, rel=0.05)
    assert (counts == counts.round()).all()
    assert (counts >= 0).all()


def test_withholding_all_conditions_makes_a_marginal_model(store, batch, generator):
    from perturbgen.models import Conditions, Covariate

    conditions = Conditions(
        [Covariate("cell_type", 3, dropout=0.999999), Covariate("compound", 2, dropout=0.999999)]
    )
    model = NBVAE(2, (9,), conditions, decoder(conditions)).train()
    other = batch._replace(codes=torch.zeros_like(batch.codes))
    terms = [
        model(b, Draws(torch.Generator().manual_seed(1)))["reconstruction"] for b in (batch, other)
    ]
    torch.testing.assert_close(*terms)
    model.eval()
    assert not torch.equal(
        *[
            model(b, Draws(torch.Generator().manual_seed(1)))["reconstruction"]
            for b in (batch, other)
        ]
    )
