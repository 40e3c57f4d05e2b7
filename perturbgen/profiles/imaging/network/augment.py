"""Random changes of training images that no label depends on, on tensors, drawn by the loop."""

from __future__ import annotations

import torch
from torch import Tensor

from perturbgen.nn.draws import Draws
from perturbgen.profiles.imaging.network.settings import AugmentSettings


def augmented(images: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Turned, and with brightness changed, (images, channels, height, width); each image by itself."""
    n, channels = images.shape[:2]
    if settings.turn:
        images = turned(images, draws.uniform(n, 3) < 0.5)
    if settings.gain:
        images = images * (1 + settings.gain * draws.normal(n, channels))[:, :, None, None]
    if settings.offset:
        images = images + settings.offset * draws.normal(n, channels)[:, :, None, None]
    if settings.noise:
        pixels = images.shape[1] * images.shape[2] * images.shape[3]
        images = images + settings.noise * draws.normal(n, pixels).view_as(images)
    return images


def turned(images: Tensor, choices: Tensor) -> Tensor:
    """Flipped up and down, left and right, and across the diagonal (square images), as ``choices`` (images, 3) say."""
    up, left, across = (choice[:, None, None, None] for choice in choices.T)
    images = torch.where(up, images.flip(-2), images)
    images = torch.where(left, images.flip(-1), images)
    return torch.where(across, images.transpose(-2, -1), images) if images.shape[-2] == images.shape[-1] else images
