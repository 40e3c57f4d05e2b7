"""Networks from images to features: a small one for a CPU, and MONAI's residual and dense ones.

Microscope images of any number of channels before networks that were made for three.

Against batch effects in networks: the batch's own statistics, and penalties on features that tell batches apart.

AdaBN (Li et al. 2018) estimates the statistics of batch normalisation anew on each experiment. CORAL (Sun and Saenko
2016) punishes differences of means and covariances between domains; DANN (Ganin et al. 2016) features from which a
second classifier can read the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from perturbgen.core.errors import MissingDependencyError
from perturbgen.nn.likelihoods import ShapeError

_Adapter = Literal["stem", "mix", "colours"]


class ColourMap(nn.Module):
    """Each channel x_c in a fixed colour: RGB = min(1, sum_c min(1, x_c / full_c) colour_c); nothing is learned."""

    colours: Tensor
    full: Tensor

    def __init__(self, colours: Sequence[Sequence[float]], full: Sequence[float]) -> None:
        """``colours`` (channels, 3) and ``full`` (channels,), the brightness that is shown in full, from 0 to 1."""
        super().__init__()
        self.register_buffer("colours", torch.tensor(colours, dtype=torch.float32))
        self.register_buffer("full", torch.tensor(full, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, height, width) from (images, channels, height, width)."""
        _require_channels(images, len(self.colours))
        shown = (images / self.full).clamp(max=1)
        return torch.einsum("nchw,cr->nrhw", shown, self.colours).clamp(max=1)


class ChannelMix(nn.Conv2d):
    """A learned 1 x 1 convolution to three channels; it begins with each channel in equal parts in all three."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, kernel_size=1)
        with torch.no_grad():
            self.weight.copy_(
                torch.full_like(self.weight, 1 / channels)
                + 0.1 / channels * torch.randn(3, channels, 1, 1)
            )
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # a Conv2d built with a bias has one

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, height, width)."""
        _require_channels(images, self.in_channels)
        return super().forward(images)


def _widened(first: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The first convolution of a network for another number of channels, with the mean of its weights for each.

    Times old / new channels, so that activations keep their scale and weights learned on photographs stay of use.
    """
    new = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(resized(first.weight, channels))
        if first.bias is not None and new.bias is not None:
            new.bias.copy_(first.bias)
    return new


def resized(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weights (out, in, height, width) for other input channels; the same ones if the number is."""
    if weight.shape[1] == channels:
        return weight
    return (weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)).repeat(
        1, channels, 1, 1
    )


def _require_channels(images: Tensor, channels: int) -> None:
    """Images have the channels that a network was built for."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ShapeError(
            f"images of shape {tuple(images.shape)}",
            expected=f"(images, {channels}, height, width)",
        )


_Make = Callable[[], tuple[nn.Module, int]]
_PHOTOGRAPH: Final = 3  # channels of the networks that weights are published for


class _SmallCNN(nn.Module):
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
        _require_channels(images, self.channels)
        return self.layers(images).mean(dim=(2, 3))


def _residual(name: str) -> _Make:
    """MONAI's ResNet of a name, from scratch, without its classifier."""

    def make() -> tuple[nn.Module, int]:
        nets = _monai_nets()
        wide = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}[name]
        build: Any = getattr(nets, name)
        return (
            build(
                spatial_dims=2,
                n_input_channels=_PHOTOGRAPH,
                conv1_t_size=7,
                conv1_t_stride=2,
                feed_forward=False,
                bias_downsample=False,  # as torchvision, whose weights then fit; batch normalisation takes a bias away
            ),
            wide,
        )

    return make


def _dense(name: str) -> _Make:
    """MONAI's DenseNet of a name, from scratch, without its classifier."""

    def make() -> tuple[nn.Module, int]:
        network: Any = getattr(_monai_nets(), name)(
            spatial_dims=2, in_channels=_PHOTOGRAPH, out_channels=1
        )
        wide = network.class_layers.out.in_features
        network.class_layers.out = nn.Identity()
        return network, wide

    return make


_BACKBONES: Final[dict[str, _Make]] = {
    **{name: _residual(name) for name in ("resnet18", "resnet34", "resnet50")},
    **{name: _dense(name) for name in ("DenseNet121", "DenseNet161")},
}


def _monai_nets() -> Any:
    """MONAI's networks; an extra, since only images need them."""
    try:
        from monai.networks import nets
    except ImportError:
        raise MissingDependencyError(
            "MONAI is not installed, whose networks these are",
            fix='pip install "perturbgen[images]", or the small network: model.backbone = "small"',
        ) from None
    return nets


def backbone(
    name: str, channels: int, *, widths: Sequence[int] = (16, 32, 64)
) -> tuple[nn.Module, int]:
    """A network for images of so many channels, and how many features it gives.

    The networks of MONAI are built for three channels; for another number their first convolution is replaced.
    """
    if name == "small":
        return _SmallCNN(channels, widths), widths[-1]
    network, wide = _BACKBONES[name]()
    if channels != _PHOTOGRAPH:
        _replace_first(network, channels)
    return network, wide


def _replace_first(network: nn.Module, channels: int) -> None:
    """Put a convolution of other input channels in the place of the first one."""
    name = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    parent, _, leaf = name.rpartition(".")
    holder = network.get_submodule(parent) if parent else network
    first = network.get_submodule(name)
    assert isinstance(first, nn.Conv2d)
    setattr(holder, leaf, _widened(first, channels))


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def _reversed_gradient(features: Tensor) -> Tensor:
    """The features themselves, whose gradient is turned round: what reads them learns, what makes them unlearns."""
    return _Reversal.apply(features)


class DomainHead(nn.Module):
    """A classifier of domains behind a reversed gradient: -log p(domain), (samples,)."""

    def __init__(self, features: int, domains: int, *, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, domains)
        )

    def forward(self, features: Tensor, domain: Tensor) -> Tensor:
        """Cross entropy (samples,) of the domains (samples,) read from features (samples, features)."""
        return functional.cross_entropy(
            self.layers(_reversed_gradient(features)), domain, reduction="none"
        )


def coral(features: Tensor, domain: Tensor) -> Tensor:
    """Mean over pairs of domains of mean |mu_i - mu_j|^2 + mean |C_i - C_j|^2, a scalar; 0 with one domain.

    ``features`` (samples, features), ``domain`` (samples,). Domains with one sample are left out.
    """
    moments = []
    for value in torch.unique(domain):
        rows = features[domain == value]
        if len(rows) > 1:
            moments.append((rows.mean(dim=0), torch.cov(rows.T)))
    pairs = [
        (mean - other).square().mean() + (covariance - spread).square().mean()
        for i, (mean, covariance) in enumerate(moments)
        for other, spread in moments[:i]
    ]
    return torch.stack(pairs).mean() if pairs else features.sum() * 0


def _norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers of batch normalisation."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def own_statistics(network: nn.Module, show: Callable[[], None]) -> Iterator[None]:
    """Within the block, batch normalisation uses the statistics of the images that ``show`` sends through the network.

    The statistics of training come back after it. Nothing is learned from labels, and no weight changes.
    """
    layers = _norms(network)
    kept = [
        (layer, layer.momentum, {k: v.clone() for k, v in layer.state_dict().items()})
        for layer in layers
    ]
    was_training = network.training
    try:
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches, not a moving one
            layer.train()
        with torch.no_grad():
            show()
        network.eval()
        yield
    finally:
        for layer, momentum, state in kept:
            layer.momentum = momentum
            layer.load_state_dict(state)
        network.train(was_training)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within the block, batch normalisation uses each batch's own statistics and remembers none of them."""
    layers = _norms(network)
    was_training = network.training
    network.eval()
    tracked = [layer.track_running_stats for layer in layers]
    statistics = [(layer.running_mean, layer.running_var) for layer in layers]
    try:
        for layer in layers:
            layer.running_mean, layer.running_var = None, None
        yield
    finally:
        for layer, (mean, variance), track in zip(layers, statistics, tracked, strict=True):
            layer.running_mean, layer.running_var, layer.track_running_stats = mean, variance, track
        network.train(was_training)
