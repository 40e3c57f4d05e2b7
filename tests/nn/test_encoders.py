"""Encoders: equal to their plain definitions, as large as published, learning, without hidden
state.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from perturbgen.core.errors import ConfigError
from perturbgen.nn.encoders import (
    _ENCODERS,
    _DenselyConnected,
    _SelfNormalising,
    _sparsemax,
    make_encoder,
)

SMALL = {
    "dense": {"depth": 5, "growth": 4},
    "mlp": {"widths": (16,), "dropout": 0.1},
    "three_stage": {"width": 16},
    "soft_ordering": {"channels": 8, "places": 8, "pooled": 4},
    "tabnet": {"width": 8, "steps": 2},
}


def test_densely_connected_layers_equal_concatenation():
    torch.manual_seed(0)
    net = _DenselyConnected(7, 3, depth=4, growth=2)
    x = torch.randn(6, 7)
    seen, place = x, 0
    for layer in range(5):
        width = 2 if layer < 4 else 3
        blocks = [net.first[place : place + width]]
        for before in range(layer):
            start = place - 2 * (before + 1)
            blocks.append(net.rest[before][start : start + width])
        out = functional.linear(seen, torch.cat(blocks, 1), net.bias[place : place + width])
        seen, place = torch.cat([seen, functional.selu(out)], 1), place + width
    torch.testing.assert_close(net(x), out)


def test_the_published_network_has_its_published_size():
    net = _DenselyConnected(978, 32, depth=64, growth=16)
    weights = net.first[:-32].numel() + sum(part[:-32].numel() for part in net.rest)
    assert weights == 978 * 16 * 64 + 16**2 * 64 * 63 // 2 == 1_517_568


def test_what_is_kept_for_the_gradient_grows_linearly_with_depth():
    def kept(depth):
        net, sizes = _DenselyConnected(50, 8, depth=depth, growth=16), {}
        parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}

        def note(t):
            if t.untyped_storage().data_ptr() not in parameters:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 4
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = net(torch.randn(64, 50))
        assert out.shape == (64, 8)
        return sum(sizes.values())

    assert kept(32) <= 64 * (50 + 2 * 32 * 16)


def test_selu_layers_keep_mean_and_variance():
    torch.manual_seed(0)
    net = _SelfNormalising(200, 200, widths=(200,) * 8)
    out = net.layers[:-1](torch.randn(2000, 200))
    assert abs(out.mean().item()) < 0.15
    assert 0.7 < out.std().item() < 1.3
    dense = _DenselyConnected(100, 100, depth=20, growth=16)
    assert 0.5 < dense(torch.randn(500, 100)).std().item() < 2


@pytest.mark.parametrize("kind", _ENCODERS)
def test_every_encoder_learns_and_gives_rows_back_in_their_order(kind):
    torch.manual_seed(0)
    net = make_encoder(kind, 12, 3, **SMALL[kind])
    x = torch.randn(300, 12)
    y = torch.stack([x[:, 0], x[:, 1] * 0.5, -x[:, 2]], 1)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        optimiser.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    net.eval()
    order = torch.randperm(300)
    torch.testing.assert_close(net(x)[order], net(x[order]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(x[:1]), net(x)[:1], atol=1e-4, rtol=1e-4)
    assert all(p.grad is not None for p in net.parameters())


def test_sparsemax_by_hand():
    z = torch.tensor([[0.5, 0.2, -1.0], [3.0, 0.0, 0.0], [0.1, 0.1, 0.1]])
    expected = torch.tensor([[0.65, 0.35, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(_sparsemax(z), expected)


def test_mistakes_are_explained():
    with pytest.raises(ConfigError, match="no encoder 'denze'"):
        make_encoder("denze", 3, 2)
    with pytest.raises(ConfigError, match="16 places pooled to 5"):
        make_encoder("soft_ordering", 3, 2, pooled=5)
