"""What every backing of a store offers, and the sparse rows that it delivers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from scipy import sparse

IntArray = np.ndarray[Any, np.dtype[np.int64]]


class SparseRows(NamedTuple):
    """The non-zeros of a batch; cell ``i`` owns those from ``offsets[i]`` to ``offsets[i + 1]``.

    As it is, it is the input of ``torch.nn.functional.embedding_bag(columns, weight, offsets,
    mode="sum", per_sample_weights=values, include_last_offset=True)``: a first layer that reads the
    sparse batch.
    """

    values: torch.Tensor  # float32 (non-zeros,)
    columns: torch.Tensor  # int64 (non-zeros,): the gene of each
    offsets: torch.Tensor  # int64 (cells + 1,)
    n_genes: int

    def rows(self) -> torch.Tensor:
        """The cell of each non-zero, int64 (non-zeros,)."""
        import torch

        cells = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        # Without output_size a GPU would have to be asked how many there are, and waited for.
        return torch.repeat_interleave(cells, self.offsets.diff(), output_size=len(self.values))

    def dense(self) -> torch.Tensor:
        """The same counts, float32 (cells, genes)."""
        out = self.values.new_zeros(len(self.offsets) - 1, self.n_genes)
        out.view(-1)[self.rows() * self.n_genes + self.columns] = self.values
        return out


class _Resident(Protocol):
    """Rows of counts at hand, in memory or on a device."""

    @property
    def device(self) -> torch.device:
        """Where its batches are made."""

    def dense(self, rows: IntArray, pool: ThreadPoolExecutor) -> torch.Tensor:
        """Float32 (cells, genes), with threads to share the work."""

    def sparse(self, rows: IntArray) -> SparseRows:
        """Their non-zeros."""


class Backing(Protocol):
    """Where the rows of a store live."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""

    def order(self, n: int, size: int, rng: np.random.Generator | None) -> IntArray:
        """The positions 0..n-1 in the order of one epoch of batches of ``size``."""

    def parts(self, rows: IntArray, size: int, first: int) -> Iterator[tuple[_Resident, IntArray]]:
        """The rows from ``first`` on, in parts of whole batches, and where in a part they are."""

    def to(self, device: torch.device) -> Backing:
        """The same rows, resident there."""

    def scipy(self, rows: IntArray) -> sparse.csr_matrix:
        """The rows as CSR int64 or float32."""
