"""What a model needs of a batch of cells, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from perturbgen.nn import SparseCounts
from perturbgen.nn.scale import Scaling
from perturbgen.nn.shapes import cell_of_each


class CellBatch(Protocol):
    """Some cells: their numbers in the store they came from, their counts, the categories of their covariates."""

    @property
    def index(self) -> Tensor:
        """int64 (cells,)."""

    @property
    def counts(self) -> SparseCounts:
        """The non-zeros, (cells, genes)."""

    @property
    def codes(self) -> Tensor:
        """int64 (cells, covariates); −1 is a category withheld."""


class SparseValues(NamedTuple):
    """Non-zero values at the places of a batch's counts."""

    values: Tensor
    columns: Tensor
    offsets: Tensor
    n_genes: int


def mapped(counts: SparseCounts, function: Callable[[Tensor], Tensor]) -> SparseValues:
    """The counts with a function that keeps zero zero applied to each."""
    return SparseValues(function(counts.values), counts.columns, counts.offsets, counts.n_genes)


def sizes(counts: SparseCounts, scaling: Scaling) -> Tensor:
    """Each cell's total ("total") or largest ("max") count, (cells,)."""
    reduction = {"total": "sum", "max": "max"}[scaling]
    return torch.segment_reduce(counts.values, reduction, offsets=counts.offsets, initial=0)


def dense(counts: SparseCounts) -> Tensor:
    """The counts (cells, genes)."""
    out = counts.values.new_zeros(len(counts.offsets) - 1, counts.n_genes)
    out[cell_of_each(counts.offsets, len(counts.values)), counts.columns] = counts.values
    return out
