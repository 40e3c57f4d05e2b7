"""Means that keep to the cell's depth, dispersions that stay in bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from perturbgen.core.errors import ConfigError
from perturbgen.nn import Dispersion, PredictedDispersion, ShapeError, nb_log_prob, scaled_log_mean
from perturbgen.nn.layers import _bounded_log_r

LOGITS = torch.tensor([[0.0, 1.0, -200.0], [3.0, 3.0, 3.0]])


def test_total_scaling_is_a_composition_of_the_total():
    found = scaled_log_mean(LOGITS, torch.tensor([100, 6]))
    np.testing.assert_allclose(
        found.exp(), softmax(LOGITS.double().numpy(), 1) * [[100], [6]], rtol=1e-6, atol=1e-30
    )
    assert found[0, 2].item() == pytest.approx(np.log(100) - 200 - np.log1p(np.e), rel=1e-6)


def test_max_scaling_is_a_share_of_the_largest_count():
    found = scaled_log_mean(LOGITS, torch.tensor([100.0, 6.0]), scaling="max")
    np.testing.assert_allclose(
        found.exp(), expit(LOGITS.numpy()) * [[100], [6]], rtol=1e-6, atol=1e-30
    )
    assert found[0, 2].item() == pytest.approx(np.log(100) - 200, rel=1e-6)


@pytest.mark.parametrize("scaling", ["total", "max"])
def test_an_empty_cell_has_no_likelihood_and_no_gradient(scaling):
    logits = LOGITS.clone().requires_grad_()
    log_mean = scaled_log_mean(logits, torch.tensor([0.0, 6.0]), scaling=scaling)
    log_prob = nb_log_prob(torch.tensor([[0.0, 0, 0], [1, 2, 3]]), log_mean, 0.5)
    log_prob.sum().backward()
    assert log_prob[0].tolist() == [0, 0, 0]
    assert logits.grad[0].tolist() == [0, 0, 0]
    assert logits.grad[1].abs().sum() > 0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("size", [torch.ones(2, 1), torch.ones(3), torch.tensor(1.0)])
def test_sizes_that_would_broadcast_are_refused(size):
    with pytest.raises(ShapeError, match="one size per cell"):
        scaled_log_mean(LOGITS, size)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ConfigError, match="total or max"):
        scaled_log_mean(LOGITS, torch.ones(2), scaling="mean")


def test_log_r_stays_between_its_bounds_with_a_gradient():
    raw = torch.tensor([-60.0, -20, 1, 20, 60], requires_grad=True)
    log_r = _bounded_log_r(raw)
    log_r.sum().backward()
    assert (log_r >= -7).all()
    assert (log_r <= 9).all()
    assert (raw.grad > 0).all()
    assert (log_r.diff() > 0).all()
    assert log_r[2] == 1
    assert raw.grad[2] == 1


def test_dispersion_per_gene_and_per_category():
    per_gene, per_type = Dispersion(3, r=2.0), Dispersion(3, n_categories=2, r=0.5)
    np.testing.assert_allclose(per_gene().exp().detach(), [2, 2, 2], rtol=1e-6)
    with torch.no_grad():
        per_type.raw[1] += 1
    found = per_type(torch.tensor([1, 0, 1])).detach()
    assert torch.equal(found[0], found[2])
    np.testing.assert_allclose(found[1].exp(), [0.5] * 3, rtol=1e-6)
    assert (found[0] > found[1]).all()


def test_dispersion_starts_within_its_bounds():
    with pytest.raises(ConfigError, match=r"e\^-7 and e\^9"):
        Dispersion(3, r=1e5)


def test_dispersion_refuses_categories_it_lacks_and_the_lack_of_its_categories():
    with pytest.raises(ShapeError, match="no categories"):
        Dispersion(3)(torch.tensor([0]))
    with pytest.raises(ShapeError, match="2 categories"):
        Dispersion(3, n_categories=2)()


def test_predicted_dispersion_starts_at_r_and_learns():
    head = PredictedDispersion(4, 3, r=5.0)
    log_r = head(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(log_r.exp().detach(), np.full((2, 3), 5.0), rtol=1e-5)
    nb_log_prob(torch.ones(2, 3), torch.zeros(2, 3), log_r).sum().backward()
    assert head.linear.weight.grad.abs().min() > 0
