"""The likelihood of a batch as a function of latent points alone, and the search that uses it."""

import pytest
import torch

from perturbgen.models import DGD
from perturbgen.models.given import CountsGiven
from perturbgen.models.newton import minimise
from perturbgen.nn import GaussianMixture
from tests.models.conftest import decoder


def _dgd(conditions, *, latent=2, category=None, **options) -> DGD:
    torch.manual_seed(0)
    mixture = GaussianMixture(2, latent, sd=0.7, generator=torch.Generator().manual_seed(1))
    model = DGD(
        mixture, conditions, decoder(conditions, latent, **options), n_cells=40, category=category
    )
    for parameter in model.decoder.parameters():  # away from where they start: r and the shifts
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("options", "fast"),
    [
        ({}, True),
        ({"additive": True, "scaling": "max"}, True),
        ({"dispersion": "gene-category", "n_categories": 3, "category": 0}, True),
        ({"dispersion": "predicted"}, False),
    ],
)
def test_it_is_the_models_likelihood_and_its_gradient(conditions, batch, options, fast):
    model = _dgd(conditions, **options)
    given = model.given(batch)
    assert isinstance(given, CountsGiven) == fast
    z = torch.randn(16, 2, generator=torch.Generator().manual_seed(3)).requires_grad_()
    expected = model.log_likelihood(z, batch)
    value, slope = given.with_slope(z)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(given(z).detach(), value)
    gradient = torch.autograd.grad(expected.sum(), z)[0]
    torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=1e-3)


def test_a_likelihood_of_ones_own_is_asked_as_it_is(conditions, batch):
    class Own(DGD):
        def log_likelihood(self, z, batch, codes=None):
            return super().log_likelihood(z, batch, codes) - 1

    model = _dgd(conditions)
    model.__class__ = Own
    z = torch.zeros(16, 2)
    torch.testing.assert_close(model.given(batch)(z), model.log_likelihood(z, batch))


def test_parabolas_of_any_scale_are_solved_and_rows_do_not_mix():
    scales = torch.tensor([[1.0, 1e3], [1e-2, 1.0], [1e4, 1e-3]])
    target = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]])

    def slope(z, rows):
        away = z - target[rows]
        return (0.5 * scales[rows] * away.square()).sum(-1), scales[rows] * away

    def curvature(z, rows):
        return torch.diag_embed(scales[rows])

    found = minimise(torch.zeros(3, 2), slope, curvature, steps=60, tolerance=1e-6)
    torch.testing.assert_close(found.z, target, rtol=1e-3, atol=1e-3)


def test_no_search_ends_above_its_start_even_where_the_curvature_is_wrong():
    def slope(z, rows):  # |z|: a kink at the minimum, where Newton's steps find nothing
        return z.abs().sum(-1), z.sign()

    def curvature(z, rows):
        return torch.eye(2).expand(len(z), 2, 2) * 1e-3

    start = torch.tensor([[3.0, -1.0], [0.0, 0.0]])
    found = minimise(start, slope, curvature, steps=60, tolerance=1e-6)
    assert (found.loss <= start.abs().sum(-1)).all()
    torch.testing.assert_close(found.loss, found.z.abs().sum(-1))


def test_the_search_is_as_good_as_three_hundred_steps_of_adam(conditions, batch):
    """What it replaced, on a model with kinks and dimensions of unlike scales."""
    model = _dgd(conditions, latent=3)
    with torch.no_grad():
        model.mixture.log_precision.copy_(torch.tensor([[0.0, 4.0, 8.0], [1.0, 3.0, 9.0]]))
    found = model.infer(batch)
    with torch.no_grad():
        losses = torch.stack([model.loss(z.expand(16, -1), batch) for z in model.mixture.means])
    order = losses.argsort(dim=0)
    before = [model.refine(model.mixture.means[c], batch, steps=300).loss for c in order[:2]]
    assert (found.loss - torch.minimum(*before)).mean() < 0.01
    assert found.steps <= 3 * 68
