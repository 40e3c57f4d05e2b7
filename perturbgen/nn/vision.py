"""Networks from images to features: a small one for a CPU, and MONAI's residual and dense ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from torch import Tensor, nn

from perturbgen.errors import MissingDependencyError
from perturbgen.nn.channels import require_channels, widened

Make = Callable[[], tuple[nn.Module, int]]
PHOTOGRAPH: Final = 3  # channels of the networks that weights are published for


class SmallCNN(nn.Module):
    """3 x 3 convolutions with batch normalisation, each halving the image; the mean over what is left is the feature.

    (images, channels, height, width) to (images, widths[-1]); the image must be at least 2 ** len(widths) wide.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.channels, self.width = channels, widths[-1]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features (images, width)."""
        require_channels(images, self.channels)
        return self.layers(images).mean(dim=(2, 3))


def residual(name: str) -> Make:
    """MONAI's ResNet of a name, from scratch, without its classifier."""

    def make() -> tuple[nn.Module, int]:
        nets = monai_nets()
        wide = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}[name]
        build: Any = getattr(nets, name)
        return build(
            spatial_dims=2, n_input_channels=PHOTOGRAPH, conv1_t_size=7, conv1_t_stride=2, feed_forward=False,
            bias_downsample=False,  # as torchvision, whose weights then fit; batch normalisation takes a bias away
        ), wide  # fmt: skip

    return make


def dense(name: str) -> Make:
    """MONAI's DenseNet of a name, from scratch, without its classifier."""

    def make() -> tuple[nn.Module, int]:
        network: Any = getattr(monai_nets(), name)(spatial_dims=2, in_channels=PHOTOGRAPH, out_channels=1)
        wide = network.class_layers.out.in_features
        network.class_layers.out = nn.Identity()
        return network, wide

    return make


BACKBONES: Final[dict[str, Make]] = {
    **{name: residual(name) for name in ("resnet18", "resnet34", "resnet50")},
    **{name: dense(name) for name in ("DenseNet121", "DenseNet161")},
}


def monai_nets() -> Any:
    """MONAI's networks; an extra, since only images need them."""
    try:
        from monai.networks import nets
    except ImportError:
        raise MissingDependencyError(
            "MONAI is not installed, whose networks these are",
            fix='pip install "perturbgen[images]", or the small network: model.backbone = "small"',
        ) from None
    return nets


def backbone(name: str, channels: int, *, widths: Sequence[int] = (16, 32, 64)) -> tuple[nn.Module, int]:
    """A network for images of so many channels, and how many features it gives.

    The networks of MONAI are built for three channels; for another number their first convolution is replaced.
    """
    if name == "small":
        return SmallCNN(channels, widths), widths[-1]
    network, wide = BACKBONES[name]()
    if channels != PHOTOGRAPH:
        replace_first(network, channels)
    return network, wide


def replace_first(network: nn.Module, channels: int) -> None:
    """Put a convolution of other input channels in the place of the first one."""
    name = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    parent, _, leaf = name.rpartition(".")
    holder = network.get_submodule(parent) if parent else network
    first = network.get_submodule(name)
    assert isinstance(first, nn.Conv2d)
    setattr(holder, leaf, widened(first, channels))
