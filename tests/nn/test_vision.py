"""Stems for many channels, backbones, and what is done against batch effects in them."""

from __future__ import annotations

import copy
import importlib.util
import sys

import pytest
import torch
from torch import nn

from perturbgen.core.errors import MissingDependencyError
from perturbgen.nn.likelihoods import ShapeError
from perturbgen.nn.vision import (
    _RESNETS,
    ChannelMix,
    ColourMap,
    _replace_first,
    _SmallCNN,
    backbone,
    own_statistics,
)

MONAI = importlib.util.find_spec("monai") is not None


def test_a_colour_map_adds_colours_up_to_white() -> None:
    adapter = ColourMap([[1, 0, 0], [0, 0.5, 1]], [0.5, 1.0])
    images = torch.tensor([[[[0.25]], [[0.5]]], [[[2.0]], [[3.0]]]])  # (2, 2, 1, 1)
    assert adapter(images)[:, :, 0, 0].tolist() == [[0.5, 0.25, 0.5], [1.0, 0.5, 1.0]]
    assert not list(adapter.parameters())
    with pytest.raises(ShapeError, match=r"expected +\(images, 2, height, width\)"):
        adapter(torch.zeros(1, 3, 4, 4))


def test_a_mix_gives_three_channels_and_learns() -> None:
    mix = ChannelMix(6)
    out = mix(torch.ones(2, 6, 4, 4))
    assert out.shape == (2, 3, 4, 4)
    assert out.mean().item() == pytest.approx(1, abs=0.2)  # the scale is kept
    assert all(p.requires_grad for p in mix.parameters())


def test_a_widened_convolution_keeps_the_answer_to_grey_images() -> None:
    three = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=True))
    six = copy.deepcopy(three)
    _replace_first(six, 6)
    grey = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(six(grey.expand(2, 6, 16, 16)), three(grey.expand(2, 3, 16, 16)))


def test_the_small_network_says_what_it_gives() -> None:
    network, wide = backbone("small", 6, widths=(4, 8))
    assert network(torch.rand(3, 6, 16, 20)).shape == (3, wide) == (3, 8)
    with pytest.raises(ShapeError, match="6"):
        network(torch.rand(3, 5, 16, 16))


@pytest.mark.skipif(not MONAI, reason="MONAI is an extra, and not installed")
@pytest.mark.parametrize("name", ["resnet18", "DenseNet121"])
def test_monai_networks_read_six_channels(name: str) -> None:
    network, wide = backbone(name, 6)
    assert network(torch.rand(2, 6, 64, 64)).shape == (2, wide)
    assert backbone(name, 3)[1] == wide


@pytest.mark.parametrize("name", [*_RESNETS, "DenseNet121"])
def test_without_monai_its_networks_say_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("monai", "monai.networks"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"perturbgen\[images\]"):
        backbone(name, 6)


def test_the_first_convolution_is_found_wherever_it_is() -> None:
    network = nn.Sequential(nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    _replace_first(network, 5)
    assert network(torch.rand(1, 5, 8, 8)).shape == (1, 4, 4, 4)


def shifted(gain: float) -> torch.Tensor:
    return gain * torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + gain


def test_own_statistics_take_gain_and_offset_away_and_leave_the_network_as_it_was() -> None:
    network = _SmallCNN(2, (4,))
    network.train()
    network(shifted(1.0))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.eval()
    plain = [network(shifted(gain)) for gain in (1.0, 3.0)]
    assert not torch.allclose(plain[0], plain[1], rtol=0.1)
    found = []
    for gain in (1.0, 3.0):
        images = shifted(gain)
        with own_statistics(
            network, lambda images=images: [network(part) for part in images.split(16)]
        ):
            found.append(network(images))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    for gain in (1.0, 3.0):
        with own_statistics(network):
            torch.testing.assert_close(network(shifted(gain)), found[0], rtol=0.05, atol=0.02)
    for key, value in network.state_dict().items():
        assert value.equal(before[key]), key
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1]
    assert not network.training
