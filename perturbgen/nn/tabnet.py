"""TabNet (Arik and Pfister 2021): steps that each look at a sparse choice of the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sparsemax(z: Tensor) -> Tensor:
    """The nearest point of the simplex to each row (Martins and Astudillo 2016): sums to 1, most entries zero."""
    ordered = z.sort(dim=-1, descending=True).values
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    above = ordered.cumsum(-1) - 1
    size = (rank * ordered > above).sum(-1, keepdim=True)
    return (z - above.gather(-1, size - 1) / size).clamp_min(0)


class GhostNorm(nn.Module):
    """Batch norm over small parts of a batch, as if it were smaller."""

    def __init__(self, width: int, *, part: int = 128) -> None:
        super().__init__()
        self.norm, self.part = nn.BatchNorm1d(width, momentum=0.05), part

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width)."""
        if not self.training or len(x) < 2 * self.part:
            return self.norm(x)
        return torch.cat([self.norm(some) for some in x.chunk(len(x) // self.part)])


class Gated(nn.Module):
    """Linear, norm, gate: GLU(norm(W x)), with a layer that may be shared by all steps."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.layer, self.norm = layer, GhostNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width)."""
        return nn.functional.glu(self.norm(self.layer(x)), dim=-1)


class TabNet(nn.Module):
    """``steps`` of feature selection: each masks the features by what is left of their allowance, and reads on.

    A feature used in one step may be used less in later ones (``relax`` 1: once; more: again). Each step reads
    ``width`` numbers for the embedding and ``width`` for the next mask.
    """

    def __init__(
        self, n_in: int, n_out: int, *, width: int = 64, steps: int = 3, relax: float = 1.3, shared: int = 2
    ) -> None:
        super().__init__()
        self.relax, self.width, both = relax, width, 2 * width
        sizes = [n_in, *[both] * (shared - 1)]
        common = [nn.Linear(size, 2 * both, bias=False) for size in sizes]
        self.norm = nn.BatchNorm1d(n_in)
        self.readers = nn.ModuleList(
            nn.ModuleList([*(Gated(layer, both) for layer in common), Gated(nn.Linear(both, 2 * both), both)])
            for _ in range(steps + 1)
        )
        self.masks = nn.ModuleList(nn.Sequential(nn.Linear(width, n_in), GhostNorm(n_in)) for _ in range(steps))
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, n_out)."""
        x = self.norm(x)
        allowance = torch.ones_like(x)
        attention = self.read(0, x)[:, self.width :]
        total = x.new_zeros(len(x), self.width)
        for step, choose in enumerate(self.masks, start=1):
            mask = sparsemax(choose(attention) * allowance)
            allowance = allowance * (self.relax - mask)
            read = self.read(step, mask * x)
            total = total + read[:, : self.width].relu()
            attention = read[:, self.width :]
        return self.out(total)

    def read(self, step: int, x: Tensor) -> Tensor:
        """(rows, 2 width), layers after the first added to what was before."""
        layers = list(self.readers[step].children())
        hidden = layers[0](x)
        for layer in layers[1:]:
            hidden = (hidden + layer(hidden)) * math.sqrt(0.5)
        return hidden
