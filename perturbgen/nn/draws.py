"""Random numbers for a batch, the same whether one process holds the batch or several share it."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Standard normals for the cells ``rank``, ``rank + ranks``, ... of a batch of ``total`` cells.

    All of the batch's numbers are drawn and our share is taken, so that two processes use what one would have used.
    """

    def __init__(self, generator: torch.Generator, *, rank: int = 0, ranks: int = 1, total: int | None = None) -> None:
        self.generator, self.rank, self.ranks, self.total = generator, rank, ranks, total

    def normal(self, cells: int, width: int) -> Tensor:
        """(cells, width), on the generator's device."""
        whole = torch.randn(self.total or cells, width, generator=self.generator, device=self.generator.device)
        return whole[self.rank :: self.ranks]

    def uniform(self, cells: int, width: int) -> Tensor:
        """(cells, width) in [0, 1)."""
        whole = torch.rand(self.total or cells, width, generator=self.generator, device=self.generator.device)
        return whole[self.rank :: self.ranks]
