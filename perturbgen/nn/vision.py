"""Networks from images to features: a small one for a CPU, and MONAI's residual and dense ones.

Before networks that were made for three channels stand stems for any number; against batch effects
in them stand the batch's own statistics. AdaBN (Li et al. 2018) estimates the statistics of batch
normalisation anew on each experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perturbgen.core.errors import MissingDependencyError
from perturbgen.nn.likelihoods import ShapeError

_PHOTOGRAPH: Final = 3  # channels of the networks that weights are published for
_STATISTICS: Final = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "momentum",
    "track_running_stats",
)
_RESNETS: Final = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}  # with their features


class ColourMap(nn.Module):
    """Channels in fixed colours: RGB = min(1, sum_c min(1, x_c / full_c) colour_c)."""

    colours: Tensor
    full: Tensor

    def __init__(self, colours: Sequence[Sequence[float]], full: Sequence[float]) -> None:
        """``colours`` (channels, 3); ``full`` (channels,) is shown at full brightness, 0 to 1."""
        super().__init__()
        self.register_buffer("colours", torch.tensor(colours, dtype=torch.float32))
        self.register_buffer("full", torch.tensor(full, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, height, width) from (images, channels, height, width)."""
        _require_channels(images, len(self.colours))
        shown = (images / self.full).clamp(max=1)
        return torch.einsum("nchw,cr->nrhw", shown, self.colours).clamp(max=1)


class ChannelMix(nn.Conv2d):
    """A learned 1 x 1 convolution to three channels; it begins with equal parts in all three."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, kernel_size=1)
        with torch.no_grad():
            # Not exactly equal, or the three channels would learn the same for ever.
            equal = torch.full_like(self.weight, 1 / channels)
            self.weight.copy_(equal + 0.1 / channels * torch.randn(3, channels, 1, 1))
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # a Conv2d with a bias has one

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, height, width)."""
        _require_channels(images, self.in_channels)
        return super().forward(images)


def _require_channels(images: Tensor, channels: int) -> None:
    """Images have the channels that a network was built for."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ShapeError(
            f"images of shape {tuple(images.shape)}",
            expected=f"(images, {channels}, height, width)",
        )


class _SmallCNN(nn.Module):
    """3 x 3 convolutions with batch normalisation, each halving the image, and a mean.

    (images, channels, height, width) to (images, widths[-1]); the image must be at least 2 **
    len(widths) wide.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((channels, *widths)):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.channels, self.width = channels, widths[-1]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features (images, width)."""
        _require_channels(images, self.channels)
        return self.layers(images).mean(dim=(2, 3))


def backbone(
    name: str, channels: int, *, widths: Sequence[int] = (16, 32, 64)
) -> tuple[nn.Module, int]:
    """A network for images of so many channels, from scratch, and how many features it gives.

    ``name`` is small, or one of MONAI's (resnet18, DenseNet121, ...), without its classifier. Those
    are built for three channels; for another number their first convolution is replaced.
    """
    if name == "small":
        return _SmallCNN(channels, widths), widths[-1]
    try:
        from monai.networks import nets
    except ImportError:
        raise MissingDependencyError(
            "MONAI is not installed, and the network is one of its",
            fix='pip install "perturbgen[images]", or the small network: model.backbone = "small"',
        ) from None
    network: Any
    if name in _RESNETS:
        wide = _RESNETS[name]
        network = getattr(nets, name)(
            spatial_dims=2,
            n_input_channels=_PHOTOGRAPH,
            conv1_t_size=7,
            conv1_t_stride=2,
            feed_forward=False,
            # As torchvision, so that its weights fit; batch normalisation takes a bias away.
            bias_downsample=False,
        )
    else:
        network = getattr(nets, name)(spatial_dims=2, in_channels=_PHOTOGRAPH, out_channels=1)
        wide = network.class_layers.out.in_features
        network.class_layers.out = nn.Identity()
    if channels != _PHOTOGRAPH:
        _replace_first(network, channels)
    return network, wide


def _replace_first(network: nn.Module, channels: int) -> None:
    """Put a convolution of other input channels, of fitting weights, in the first one's place."""
    name, first = next(
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)
    )
    new = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(resized(first.weight, channels))
        if first.bias is not None and new.bias is not None:
            new.bias.copy_(first.bias)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)


def resized(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weights (out, in, height, width) for other input channels: their mean.

    Times old / new channels, so that activations keep their scale and weights learned on
    photographs stay of use. Unchanged for as many channels as it has.
    """
    if weight.shape[1] == channels:
        return weight
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return mean.repeat(1, channels, 1, 1)


@contextmanager
def own_statistics(network: nn.Module, show: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block, norms have statistics of their own, and after it those of training again.

    They are those of all that ``show`` sends through the network or, without it, each batch's.
    Nothing is learned from labels, and no weight changes.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    kept = [{name: getattr(layer, name) for name in _STATISTICS} for layer in layers]
    was_training = network.training
    try:
        network.eval()
        for layer in layers:
            if show is None:
                # Without running statistics a norm uses those of the batch, in evaluation, too.
                layer.running_mean, layer.running_var = None, None
                continue
            for name, buffer in list(layer.named_buffers()):
                setattr(layer, name, buffer.clone())  # what is kept must not change
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches, not a moving one
            layer.train()
        if show is not None:
            with torch.no_grad():
                show()
            network.eval()
        yield
    finally:
        for layer, state in zip(layers, kept, strict=True):
            for name, value in state.items():
                setattr(layer, name, value)
        network.train(was_training)
