"""Integrals over latent points by importance sampling, from draws that fill the space evenly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Where the posterior of a batch's latent points is looked for: standard normals (cells, latent)
# become z (cells, latent), and their log density (cells,).
Proposal = Callable[[Tensor], tuple[Tensor, Tensor]]

_SCRAMBLE = 0  # the seed of the points themselves; what is random is where each cell begins


def even_normals(
    samples: int, cells: int, width: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """``samples`` times standard normals (cells, width), which together cover each cell's space.

    Sobol's points, moved by a random vector of each cell's own (Cranley & Patterson 1976): means
    of functions of them are unbiased, errors of cells independent, and half as many points are as
    exact as independent draws.
    """
    device = generator.device
    points = torch.quasirandom.SobolEngine(width, scramble=True, seed=_SCRAMBLE)
    start = torch.rand(cells, width, generator=generator, device=device, dtype=torch.float64)
    least = torch.finfo(torch.float64).eps
    for point in points.draw(samples, dtype=torch.float64).to(device):
        uniform = (start + point).remainder(1).clamp(least, 1 - least)
        yield torch.special.ndtri(uniform).float()
