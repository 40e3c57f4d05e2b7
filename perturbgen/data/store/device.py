"""The store on a device: the whole CSR lives there, batches are gathered and densified there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from perturbgen.data.store.base import Backing, IntArray, SparseRows


@dataclass(frozen=True, eq=False)
class DeviceBacking:
    """CSR of raw counts (cells, genes) as tensors of one device: 8 bytes a non-zero."""

    values: torch.Tensor  # float32 (non-zeros,)
    columns: torch.Tensor  # int32 (non-zeros,)
    offsets: torch.Tensor  # int64 (cells + 1,)
    shape: tuple[int, int]
    memory: Backing  # where it came from: the way back to the CPU

    @property
    def device(self) -> torch.device:
        """Where the counts live."""
        return self.values.device

    def order(self, n: int, size: int, rng: np.random.Generator | None) -> IntArray:
        """A permutation, or the stored order."""
        return self.memory.order(n, size, rng)

    def parts(
        self, rows: IntArray, size: int, first: int
    ) -> Iterator[tuple[DeviceBacking, IntArray]]:
        """One part: everything is at hand."""
        yield self, rows[first:]

    def to(self, device: torch.device) -> Backing:
        """The same rows elsewhere."""
        return self if device == self.device else self.memory.to(device)

    def scipy(self, rows: IntArray) -> sparse.csr_matrix:
        """The rows as CSR int64."""
        return self.memory.scipy(rows)

    def dense(self, rows: IntArray, pool: ThreadPoolExecutor) -> torch.Tensor:
        """Float32 (cells, genes)."""
        return self.sparse(rows).dense()

    def sparse(self, rows: IntArray) -> SparseRows:
        """The non-zeros of the rows."""
        chosen = torch.from_numpy(rows).to(self.device)
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        total = int(offsets[-1])
        shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
        source = torch.arange(total, device=self.device) + shift
        return SparseRows(self.values[source], self.columns[source].long(), offsets, self.shape[1])
