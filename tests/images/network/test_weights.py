"""Weights from a file: torchvision's names, other channels, and files that are not what they should
be."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from perturbgen.core.errors import ConfigError, InputError
from perturbgen.images.network.model import _load_backbone, _renamed
from perturbgen.nn.vision import _SmallCNN, backbone

monai = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None, reason="MONAI is an extra, and not installed"
)


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def drawn(network: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.is_floating_point():
            # or the activations of a hundred layers overflow
            size = 0.1 if value.ndim == 4 else 1.0
            value.copy_(size * (0.5 + torch.rand(value.shape, generator=generator)))
    return network.eval()


def test_the_same_network_answers_as_the_one_that_was_saved(tmp_path: Path) -> None:
    one, two = drawn(_SmallCNN(3, (4, 6)), 1), drawn(_SmallCNN(3, (4, 6)), 2)
    images = torch.rand(2, 3, 16, 16)
    assert not torch.allclose(one(images), two(images))
    state = {f"module.{name}": value for name, value in one.state_dict().items()}
    _load_backbone(two, saved({"state_dict": state, "epoch": 3}, tmp_path / "small.pt"))
    torch.testing.assert_close(one(images), two(images))


def test_six_channels_answer_grey_images_as_three_did(tmp_path: Path) -> None:
    three, six = drawn(_SmallCNN(3, (4,)), 1), _SmallCNN(6, (4,)).eval()
    _load_backbone(six, saved(three.state_dict(), tmp_path / "small.pt"))
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(six(grey.expand(2, 6, 8, 8)), three(grey.expand(2, 3, 8, 8)))


@monai
@pytest.mark.parametrize("name", ["resnet18", "DenseNet121"])
def test_torchvision_files_fit(name: str, tmp_path: Path) -> None:
    given = drawn(backbone(name, 3)[0], 1)
    photograph = {
        re.sub(r"\.layers\.", ".", key): value for key, value in given.state_dict().items()
    }
    last = "fc." if name == "resnet18" else "classifier."
    photograph |= {f"{last}weight": torch.rand(1000, 8), f"{last}bias": torch.rand(1000)}
    network = backbone(name, 3)[0].eval()
    _load_backbone(network, saved(photograph, tmp_path / "weights.pth"))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network(images), given(images))


@monai
def test_a_bias_before_normalisation_is_swallowed_by_its_mean(tmp_path: Path) -> None:
    from monai.networks.nets import resnet18

    old = drawn(
        resnet18(
            spatial_dims=2, n_input_channels=3, conv1_t_size=7, conv1_t_stride=2, feed_forward=False
        ),
        1,
    )
    assert "layer2.0.downsample.0.bias" in old.state_dict()
    network = backbone("resnet18", 3)[0].eval()
    _load_backbone(network, saved(old.state_dict(), tmp_path / "weights.pt"))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network(images), old(images), rtol=1e-4, atol=1e-4)


def test_names_of_dense_layers() -> None:
    for name in (
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.norm.1.weight",
    ):
        assert _renamed(name) == "features.denseblock1.denselayer2.layers.norm1.weight"


def test_another_backbone_and_broken_files_are_explained(tmp_path: Path) -> None:
    path = saved(_SmallCNN(3, (4, 8)).state_dict(), tmp_path / "small.pt")
    with pytest.raises(
        ConfigError, match=r"has no 'layers\.4\.weight'.*of the shape of this network"
    ):
        _load_backbone(_SmallCNN(3, (4, 6)), path)
    with pytest.raises(InputError, match="no file of weights at"):
        _load_backbone(_SmallCNN(3, (4, 6)), tmp_path / "none.pt")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as weights"):
        _load_backbone(_SmallCNN(3, (4, 8)), path)
    with pytest.raises(InputError, match="cannot be read as weights"):
        _load_backbone(_SmallCNN(3), saved(_SmallCNN(3), tmp_path / "whole.pt"))
    with pytest.raises(InputError, match="no dictionary of tensors"):
        _load_backbone(_SmallCNN(3), saved([1, 2], tmp_path / "list.pt"))
