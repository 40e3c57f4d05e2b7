"""Some cells as a model reads them: their counts without the zeros, and their categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from perturbgen.nn import SparseCounts
from perturbgen.nn.layers import Scaling
from perturbgen.nn.likelihoods import cell_of_each


class CellBatch(Protocol):
    """Some cells: their numbers in the store, their counts, their covariates' categories."""

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

    @classmethod
    def of(cls, counts: SparseCounts, function: Callable[[Tensor], Tensor]) -> Self:
        """The counts with a function that keeps zero zero applied to each."""
        return cls(function(counts.values), counts.columns, counts.offsets, counts.n_genes)


class CellRows(NamedTuple):
    """Some cells of a batch."""

    index: Tensor  # type: ignore[assignment]
    counts: SparseValues
    codes: Tensor

    @classmethod
    def of(cls, batch: CellBatch, keep: Tensor) -> Self:
        """The cells of a batch where ``keep``, bool (cells,), says so."""
        counts = batch.counts
        own = keep[cell_of_each(counts.offsets, len(counts.values))]
        lengths = counts.offsets.diff()[keep]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        part = SparseValues(counts.values[own], counts.columns[own], offsets, counts.n_genes)
        return cls(batch.index[keep], part, batch.codes[keep])


def sizes(counts: SparseCounts, scaling: Scaling) -> Tensor:
    """Each cell's total ("total") or largest ("max") count, (cells,)."""
    reduction = {"total": "sum", "max": "max"}[scaling]
    return torch.segment_reduce(counts.values, reduction, offsets=counts.offsets, initial=0)


def dense(counts: SparseCounts) -> Tensor:
    """The counts (cells, genes)."""
    out = counts.values.new_zeros(len(counts.offsets) - 1, counts.n_genes)
    out[cell_of_each(counts.offsets, len(counts.values)), counts.columns] = counts.values
    return out
