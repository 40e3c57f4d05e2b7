"""Microscope images of any number of channels before networks that were made for three."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from perturbgen.nn.shapes import ShapeError

Adapter = Literal["stem", "mix", "colours"]


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
        require_channels(images, len(self.colours))
        shown = (images / self.full).clamp(max=1)
        return torch.einsum("nchw,cr->nrhw", shown, self.colours).clamp(max=1)


class ChannelMix(nn.Conv2d):
    """A learned 1 x 1 convolution to three channels; it begins with each channel in equal parts in all three."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, kernel_size=1)
        with torch.no_grad():
            self.weight.copy_(
                torch.full_like(self.weight, 1 / channels) + 0.1 / channels * torch.randn(3, channels, 1, 1)
            )
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # a Conv2d built with a bias has one

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, height, width)."""
        require_channels(images, self.in_channels)
        return super().forward(images)


def widened(first: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The first convolution of a network for another number of channels, with the mean of its weights for each.

    Times old / new channels, so that activations keep their scale and weights learned on photographs stay of use.
    """
    new = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )  # fmt: skip
    with torch.no_grad():
        new.weight.copy_(resized(first.weight, channels))
        if first.bias is not None and new.bias is not None:
            new.bias.copy_(first.bias)
    return new


def resized(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weights (out, in, height, width) for other input channels; the same ones if the number is."""
    if weight.shape[1] == channels:
        return weight
    return (weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)).repeat(1, channels, 1, 1)


def require_channels(images: Tensor, channels: int) -> None:
    """Images have the channels that a network was built for."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ShapeError(f"images of shape {tuple(images.shape)}", expected=f"(images, {channels}, height, width)")
