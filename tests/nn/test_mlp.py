"""The first layer reads a sparse batch as it reads the dense one, and conditions as if appended."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from perturbgen.nn import MLP, ShapeError
from perturbgen.nn.layers import _CountLinear

CELLS, GENES, CONDITIONS = 6, 30, 4


class Sparse(NamedTuple):
    """As the store's sparse batches."""

    values: Tensor
    columns: Tensor
    offsets: Tensor
    n_genes: int


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def batch(generator) -> tuple[Tensor, Sparse, Tensor]:
    """Counts (the second cell empty), the same sparse, conditions."""
    counts = torch.poisson(
        torch.rand(CELLS, GENES, generator=generator) ** 4 * 3, generator=generator
    )
    counts[1] = 0
    rows, columns = counts.nonzero(as_tuple=True)
    offsets = torch.searchsorted(rows, torch.arange(CELLS + 1))
    conditions = torch.randn(CELLS, CONDITIONS, generator=generator)
    return counts, Sparse(counts[rows, columns], columns, offsets, GENES), conditions


def test_sparse_equals_dense_with_its_gradients(batch):
    counts, sparse, conditions = batch
    network = MLP(GENES, [8, 5], n_conditions=CONDITIONS)
    gradients = []
    for x in (counts, sparse):
        network.zero_grad()
        output = network(x, conditions)
        output.square().sum().backward()
        gradients.append([output.detach(), *(p.grad.clone() for p in network.parameters())])
    for dense, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, dense, rtol=1e-5, atol=1e-5)


def test_conditions_enter_as_if_appended(batch):
    counts, _, conditions = batch
    layer = _CountLinear(GENES, 8, n_conditions=CONDITIONS)
    whole = nn.Linear(GENES + CONDITIONS, 8)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([layer.weight.T, layer.conditions.weight], dim=1))
        whole.bias.copy_(layer.bias)
    torch.testing.assert_close(
        layer(counts, conditions), whole(torch.cat([counts, conditions], dim=1))
    )


def test_layers_are_the_widths_with_activations_between():
    network = MLP(GENES, [8, 7, 5], layer_norm=True, dropout=0.1, activation=nn.SiLU)
    kinds = [type(layer).__name__ for layer in network.rest]
    assert kinds == ["LayerNorm", "SiLU", "Dropout", "Linear"] * 2
    assert network(torch.zeros(2, GENES)).shape == (2, 5)
    assert MLP(GENES, [5])(torch.zeros(2, GENES)).shape == (2, 5)


def test_what_does_not_fit_is_refused(batch):
    counts, sparse, conditions = batch
    with pytest.raises(ShapeError, match="30 inputs for a layer built for 29"):
        _CountLinear(29, 8)(sparse)
    with pytest.raises(ShapeError, match="without conditions"):
        MLP(GENES, [8])(counts, conditions)
    with pytest.raises(ShapeError, match="for conditions"):
        MLP(GENES, [8], n_conditions=CONDITIONS)(counts)
