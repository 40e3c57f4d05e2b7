"""The likelihood of a batch as a function of latent points alone, and the search that uses it."""

import math
from typing import NamedTuple

import pytest
import torch

from perturbgen.models import DGD, CountDecoder
from perturbgen.models.batch import CellRows
from perturbgen.models.given import CountsGiven
from perturbgen.models.importance import even_normals
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


class _Parabolas(NamedTuple):
    target: torch.Tensor
    scales: torch.Tensor

    def slope(self, z):
        away = z - self.target
        return (0.5 * self.scales * away.square()).sum(-1), self.scales * away

    def of(self, keep):
        return _Parabolas(self.target[keep], self.scales[keep])


class _Kinks(NamedTuple):
    """|z|, where Newton's steps find nothing."""

    def slope(self, z):
        return z.abs().sum(-1), z.sign()

    def of(self, keep):
        return self


SCALES = torch.tensor([[1.0, 1e3], [1e-2, 1.0], [1e4, 1e-3]])
TARGET = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]])


@pytest.mark.parametrize("wrong", [1.0, 5.0, 0.2])
def test_parabolas_of_any_scale_are_solved(wrong):
    curvature = torch.diag_embed(SCALES) * wrong
    surface = _Parabolas(TARGET, SCALES)
    found = minimise(torch.zeros(3, 2), surface, curvature, steps=60, tolerance=1e-6)
    torch.testing.assert_close(found.z, TARGET, rtol=5e-3, atol=5e-3)


def test_where_a_row_ends_does_not_depend_on_the_others():
    curvature = torch.diag_embed(SCALES) * torch.tensor([1.0, 3.0, 9.0])[:, None, None]
    found = minimise(
        torch.zeros(3, 2), _Parabolas(TARGET, SCALES), curvature, steps=60, tolerance=1e-3
    )
    for row in range(3):
        one = slice(row, row + 1)
        surface = _Parabolas(TARGET[one], SCALES[one])
        alone = minimise(torch.zeros(1, 2), surface, curvature[one], steps=60, tolerance=1e-3)
        torch.testing.assert_close(alone.z, found.z[one])


def test_no_search_ends_above_its_start_even_where_the_curvature_is_wrong():
    start = torch.tensor([[3.0, -1.0], [0.0, 0.0]])
    curvature = torch.eye(2).expand(2, 2, 2) * 0.05
    found = minimise(start, _Kinks(), curvature, steps=60, tolerance=1e-6)
    assert (found.loss <= start.abs().sum(-1)).all()
    assert found.loss[0] < 0.1
    torch.testing.assert_close(found.loss, found.z.abs().sum(-1))


@pytest.fixture
def searched(conditions) -> DGD:
    """A model with kinks and dimensions of unlike scales."""
    model = _dgd(conditions, latent=3)
    with torch.no_grad():
        model.mixture.log_precision.copy_(torch.tensor([[0.0, 4.0, 8.0], [1.0, 3.0, 9.0]]))
    return model


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many cells each decoding is of, whatever asks for it."""
    rows: list[int] = []
    genes, information = CountDecoder.genes, CountsGiven.information

    def counted(decoder, hidden, shift):
        rows.append(hidden.shape[:-1].numel())
        return genes(decoder, hidden, shift)

    def curved(given, z):
        rows.append(z.numel())  # a product with the last layer for each dimension
        return information(given, z)

    monkeypatch.setattr(CountDecoder, "genes", counted)
    monkeypatch.setattr(CountsGiven, "information", curved)
    return rows


def test_the_search_is_as_good_as_three_hundred_steps_of_adam(searched, batch, decoded):
    """What it replaced, in a tenth of the decodings."""
    found = searched.infer(batch)
    ours = sum(decoded)
    decoded.clear()
    with torch.no_grad():
        means = searched.mixture.means
        losses = torch.stack([searched.loss(z.expand(16, -1), batch) for z in means])
    order = losses.argsort(dim=0)
    before = [searched.refine(means[c], batch, steps=300).loss for c in order[:2]]
    assert (found.loss - torch.minimum(*before)).mean() < 0.01
    assert ours <= 45 * 16  # cells; 602 of each by Adam, unless all rest early
    assert ours < 0.1 * sum(decoded)


def test_points_do_not_depend_on_the_cells_beside_them(searched, batch):
    together = searched.infer(batch)
    for first in range(0, 16, 5):
        keep = torch.zeros(16, dtype=torch.bool)
        keep[first : first + 5] = True
        alone = searched.infer(CellRows.of(batch, keep))
        torch.testing.assert_close(alone.loss, together.loss[keep], atol=2e-3, rtol=0)


def test_the_likelihood_takes_one_decoding_a_sample(searched, batch, generator, decoded):
    points = searched.encode(batch)
    decoded.clear()
    given = searched.log_evidence(batch, samples=8, generator=generator, points=points)
    # its curvature, the means there, and the samples: no second search
    assert sum(decoded) == 16 * (3 + 1 + 8)
    own = searched.log_evidence(batch, samples=8, generator=generator.manual_seed(0))
    again = searched.log_evidence(
        batch, samples=8, generator=generator.manual_seed(0), points=points
    )
    assert torch.equal(own, again)
    assert given.isfinite().all()


def test_draws_that_are_spread_are_normal_and_worth_twice_as_many():
    def errors(draw, samples):
        """Of the mean of exp(z₁/2 + z₂/2 ...), whose truth is known, over 400 cells."""
        generator = torch.Generator().manual_seed(5)
        noise = torch.stack(draw(samples, 400, 4, generator))
        return ((0.5 * noise.sum(-1)).exp().mean(0) - math.exp(0.5)).square().mean().sqrt(), noise

    def independent(samples, cells, width, generator):
        return [torch.randn(cells, width, generator=generator) for _ in range(samples)]

    def spread(*about):
        return list(even_normals(*about))

    error, noise = errors(spread, 64)
    assert error < errors(independent, 128)[0]
    torch.testing.assert_close(noise.mean((0, 1)), torch.zeros(4), atol=0.01, rtol=0)
    torch.testing.assert_close(noise.std((0, 1)), torch.ones(4), atol=0.01, rtol=0)
    assert torch.equal(noise, errors(spread, 64)[1])
