"""Shapes that must agree: a cell-wise vector that broadcasts against a column silently makes (cells, cells)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from perturbgen.errors import PerturbgenError


class ShapeError(PerturbgenError, ValueError):
    """Two arrays do not fit together."""


class SparseCounts(Protocol):
    """The non-zeros of a batch, cell after cell; cell ``i`` owns ``offsets[i]`` up to ``offsets[i + 1]``."""

    @property
    def values(self) -> Tensor:
        """(non-zeros,)."""

    @property
    def columns(self) -> Tensor:
        """The gene of each, int64 (non-zeros,)."""

    @property
    def offsets(self) -> Tensor:
        """int64 (cells + 1,)."""

    @property
    def n_genes(self) -> int:
        """How many genes."""


def cell_of_each(offsets: Tensor, n: int) -> Tensor:
    """The cell of each of ``n`` non-zeros, int64 (non-zeros,)."""
    cells = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(cells, offsets.diff(), output_size=n)


def common_shape(counts: Tensor, log_mean: Tensor, **parameters: Tensor) -> torch.Size:
    """The shape of the likelihood of counts given means: that of the two, which may differ in leading (draw) axes only.

    Further parameters may broadcast into that shape but not widen it.
    """
    shape = max(counts.shape, log_mean.shape, key=len)
    shared = min(counts.ndim, log_mean.ndim)
    if counts.shape[counts.ndim - shared :] != log_mean.shape[log_mean.ndim - shared :]:
        raise ShapeError(
            f"counts of shape {tuple(counts.shape)} with means of shape {tuple(log_mean.shape)}",
            expected="the same shape, (cells, genes), or further leading axes in one of them",
            cause="a vector (cells,) met a column (cells, 1), which would broadcast to (cells, cells)",
            fix="reshape one of them: x[:, None] makes the column, x.squeeze(-1) the vector",
        )
    for name, value in parameters.items():
        check_fits(name, value, shape)
    return shape


def check_fits(name: str, value: Tensor, shape: torch.Size) -> None:
    """Refuse a parameter that does not broadcast into ``shape``."""
    shared = zip(reversed(value.shape), reversed(shape), strict=False)
    if value.ndim > len(shape) or any(own not in (1, full) for own, full in shared):
        raise ShapeError(
            f"{name} of shape {tuple(value.shape)} does not fit into {tuple(shape)}",
            expected="one value, one per gene (genes,), one per cell (cells, 1), or one of each (cells, genes)",
            fix=f"reshape it; {name}[:, None] makes a column of a vector of cells",
        )
