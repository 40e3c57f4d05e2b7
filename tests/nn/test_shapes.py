"""The sparse form equals the dense one, and shapes that would broadcast to (cells, cells) are
refused.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perturbgen.nn import (
    ShapeError,
    gaussian_log_prob,
    nb_log_prob,
    nb_log_prob_sparse,
    zinb_log_prob,
)

CELLS, GENES = 7, 40


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Counts (cells, genes), the third cell empty, and log means."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(
        torch.rand(CELLS, GENES, generator=generator) ** 6 * 4, generator=generator
    )
    counts[2] = 0
    return counts, torch.randn(CELLS, GENES, generator=generator)


def sparse(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, columns and offsets."""
    rows, columns = counts.nonzero(as_tuple=True)
    ends = torch.bincount(rows, minlength=len(counts)).cumsum(0)
    return counts[rows, columns], columns, torch.cat([torch.zeros(1, dtype=torch.int64), ends])


@pytest.mark.parametrize("shape", [(), (GENES,), (CELLS, 1), (CELLS, GENES)])
def test_sparse_equals_dense_with_its_gradients(batch, shape):
    counts, log_mean = batch
    log_r = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    weight = torch.linspace(-1, 2, CELLS)
    results = []
    for form in (
        lambda m, r: nb_log_prob(counts, m, r).sum(1),
        lambda m, r: nb_log_prob_sparse(*sparse(counts), m, r),
    ):
        m, r = log_mean.clone().requires_grad_(), log_r.clone().requires_grad_()
        per_cell = form(m, r)
        results.append((per_cell.detach(), *torch.autograd.grad((per_cell * weight).sum(), [m, r])))
    for dense_result, sparse_result in zip(*results, strict=True):
        assert dense_result.shape == sparse_result.shape
        torch.testing.assert_close(sparse_result, dense_result, rtol=1e-6, atol=1e-6)


def test_sparse_counts_may_store_zeros(batch):
    counts, log_mean = batch
    values, columns, offsets = sparse(counts)
    first = counts[0].eq(0).nonzero()[0]
    padded = (
        torch.cat([torch.zeros(1), values]),
        torch.cat([first, columns]),
        offsets + (torch.arange(CELLS + 1) > 0),
    )
    torch.testing.assert_close(
        nb_log_prob_sparse(*padded, log_mean, 0.5),
        nb_log_prob_sparse(values, columns, offsets, log_mean, 0.5),
    )


def test_counts_broadcast_over_draws_and_draws_over_counts(batch):
    counts, log_mean = batch
    draws = torch.stack([log_mean, log_mean + 1])
    assert torch.equal(nb_log_prob(counts, draws, 0.5)[1], nb_log_prob(counts, log_mean + 1, 0.5))
    many = torch.stack([counts, counts + 1])
    assert torch.equal(nb_log_prob(many, log_mean, 0.5)[1], nb_log_prob(counts + 1, log_mean, 0.5))


@pytest.mark.parametrize(
    "call",
    [
        lambda: nb_log_prob(torch.ones(5), torch.zeros(5, 1), 0.0),
        lambda: nb_log_prob(torch.ones(5, 1), torch.zeros(5), 0.0),
        lambda: nb_log_prob(torch.ones(5, 1), torch.zeros(5, 3), 0.0),
        lambda: nb_log_prob(torch.ones(5), torch.zeros(5), torch.zeros(5, 1)),
        lambda: zinb_log_prob(torch.ones(5), torch.zeros(5), 0.0, torch.zeros(5, 1)),
        lambda: gaussian_log_prob(torch.ones(5), torch.zeros(5, 1), 0.0),
        lambda: nb_log_prob_sparse(
            torch.ones(1), torch.zeros(1).long(), torch.tensor([0, 1]), torch.zeros(5, 3), 0.0
        ),
    ],
)
def test_shapes_that_widen_the_result_are_refused(call):
    with pytest.raises(ShapeError, match=r"\(5, |\(5,\)"):
        call()


def test_the_error_says_how_to_mend_it():
    with pytest.raises(ShapeError) as caught:
        nb_log_prob(torch.ones(5), torch.zeros(5, 1), 0.0)
    assert "counts of shape (5,) with means of shape (5, 1)" in str(caught.value)
    assert "x[:, None]" in str(caught.value)
