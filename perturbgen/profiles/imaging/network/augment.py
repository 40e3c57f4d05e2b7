"""Random changes of training images that no label depends on, on tensors, drawn by the loop."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from perturbgen.nn.draws import Draws
from perturbgen.profiles.imaging.network.settings import AugmentSettings


def augmented(images: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Turned, enlarged, and with brightness changed, (images, channels, height, width); each image by itself."""
    n, channels = images.shape[:2]
    if settings.turn:
        images = turned(images, draws.uniform(n, 3) < 0.5)
    if settings.zoom:
        images = zoomed(images, settings.zoom * draws.uniform(n, 1)[:, 0], draws.uniform(n, 2))
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


def all_turns(images: Tensor) -> list[Tensor]:
    """The images flipped and turned in every way that keeps their shape: eight ways if they are square, else four."""
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-2, -1)]
    square = images.shape[-2] == images.shape[-1]
    return flips + [image.transpose(-2, -1) for image in flips] if square else flips


def zoomed(images: Tensor, lost: Tensor, place: Tensor) -> Tensor:
    """A window of each image, enlarged to its size: ``lost`` (images,) of the width is left out.

    ``place`` (images, 2) from 0 to 1 is where the window lies, across and down.
    """
    shift = lost[:, None] * (2 * place - 1)
    matrix = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 - lost
    matrix[:, :, 2] = shift
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def cutmix(images: Tensor, label: Tensor, chance: float, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """A rectangle of another image of the batch in each (Yun et al. 2019), with the label and share of that image.

    The rectangle has a share of the area that is uniform (a Beta(1, 1)) before its parts outside are cut off; an image
    stays whole with probability 1 - ``chance``. Returns (images, ...), the other label (images,), its share (images,).
    """
    n, _, height, width = images.shape
    numbers = draws.uniform(n, 5)
    partner = numbers[:, 0].argsort()
    side = numbers[:, 1].sqrt() * (numbers[:, 2] < chance)
    inside = [
        (torch.arange(size, device=images.device)[None] + 0.5 - size * centre[:, None]).abs() < size * side[:, None] / 2
        for size, centre in ((height, numbers[:, 3]), (width, numbers[:, 4]))
    ]
    mask = inside[0][:, :, None] & inside[1][:, None]
    mixed = torch.where(mask[:, None], images[partner], images)
    return mixed, label[partner], mask.float().mean(dim=(1, 2))
