import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from perturbgen.core.errors import ConfigError
from perturbgen.models import DGD, Conditions, Covariate, Draws
from perturbgen.nn import GaussianMixture
from tests.models.conftest import decoder


def make(conditions, *, components=3, latent=2, n_cells=40, **options):
    torch.manual_seed(0)
    mixture = GaussianMixture(
        components, latent, sd=0.7, generator=torch.Generator().manual_seed(1)
    )
    model = DGD(mixture, conditions, decoder(conditions, latent), n_cells=n_cells, **options)
    torch.nn.init.normal_(model.representations.weight)
    return model


def test_the_prior_is_scipys_mixture_density(conditions):
    model = make(conditions)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(2))
    mixture = model.mixture
    weights = mixture.weight_logits.softmax(0).detach().numpy()
    variances = (-mixture.log_precision).exp().detach().numpy()
    density = sum(
        w * multivariate_normal(m, np.diag(v)).pdf(z.numpy())
        for w, m, v in zip(weights, mixture.means.detach().numpy(), variances, strict=True)
    )
    np.testing.assert_allclose(model.prior_log_prob(z).detach().numpy(), np.log(density), rtol=1e-5)


def test_the_objective_is_pyros_elbo_with_points_for_posteriors(conditions, batch):
    import pyro
    from pyro.infer import Trace_ELBO

    model = make(conditions)
    terms = model(batch, Draws(torch.Generator()))
    pyro.clear_param_store()
    loss = Trace_ELBO().differentiable_loss(model.pyro_model, model.pyro_guide, batch)
    torch.testing.assert_close(
        (terms["reconstruction"] + terms["representation"]).sum(), loss, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize(("weight", "times"), [(1.0, 1.0), (40.0, 40.0)])
def test_the_prior_of_the_mixture_counts_once_over_an_epoch_unless_told(
    conditions, store, weight, times
):
    model = make(conditions, prior_weight=weight)
    total = sum(
        model(b, Draws(torch.Generator()))["mixture"].sum().item()
        for b in store.batches(16, dense=False)
    )
    assert total == pytest.approx(-times * model.mixture.prior_log_prob().item(), rel=1e-5)


def test_a_label_chooses_the_component(conditions, batch):
    model = make(conditions, components=3, label=0)
    terms = model(batch, Draws(torch.Generator()))
    z = model.representations(batch.index)
    expected = [
        -model.mixture.component_log_prob(z[i])[batch.codes[i, 0]].item() for i in range(16)
    ]
    np.testing.assert_allclose(terms["representation"].detach().numpy(), expected, rtol=1e-5)


def test_a_covariate_space_adds_two_supervised_dimensions(batch):
    conditions = Conditions([Covariate("cell_type", 3, "label"), Covariate("compound", 2)])
    torch.manual_seed(0)
    mixture, covariate = GaussianMixture(2, 4), GaussianMixture(3, 2, covariance="isotropic")
    model = DGD(
        mixture,
        conditions,
        decoder(conditions, 6),
        n_cells=40,
        covariate=0,
        covariate_mixture=covariate,
    )
    assert model.representations.weight.shape == (40, 6)
    assert model.prior_sample(7, torch.Generator().manual_seed(0)).shape == (7, 6)
    assert model.encode(batch).shape == (16, 6)
    with pytest.raises(ConfigError, match="both"):
        DGD(mixture, conditions, decoder(conditions, 6), n_cells=40, covariate=0)


def test_inference_finds_the_mode(conditions, batch):
    """Where the search ends no step in any direction lowers the loss, and a longer search gains
    nothing.
    """
    model = make(conditions)
    fit = model.infer(batch)
    with torch.no_grad():
        for direction in torch.eye(2):
            for step in (-0.1, 0.1):
                assert (model.loss(fit.z + step * direction, batch) > fit.loss - 0.02).all()
    longer = model.infer(batch, starts=3, steps=800, tolerance=0)
    assert (fit.loss - longer.loss).max().item() < 0.05


def test_validation_cells_follow_the_decoder_without_teaching_it(conditions, batch):
    model = make(conditions, n_held_out=16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = model.validate(batch, Draws(torch.Generator()))["reconstruction"].sum()
    for _ in range(20):
        last = model.validate(batch, Draws(torch.Generator()))["reconstruction"].sum()
    assert last < first
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.held_out.abs().sum() > 0


def test_only_the_rows_of_a_batch_get_a_gradient(conditions, batch):
    model = make(conditions)
    sum(term.sum() for term in model(batch, Draws(torch.Generator())).values()).backward()
    grad = model.representations.weight.grad
    assert grad.is_sparse
    assert sorted(grad.coalesce().indices()[0].tolist()) == batch.index.tolist()
