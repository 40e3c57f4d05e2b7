"""The store in memory: compact CSR, densified by a compiled loop into recycled buffers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from perturbgen.data.counts import counts_error, first_bad_count
from perturbgen.data.store.base import IntArray, SparseRows

if TYPE_CHECKING:
    import torch

    from perturbgen.data.store.base import Backing


@dataclass(frozen=True, eq=False)
class MemoryBacking:
    """CSR of raw counts (cells, genes) in the smallest types that hold it."""

    values: np.ndarray  # uint16 or int32 (non-zeros,)
    columns: np.ndarray  # uint16 or int32 (non-zeros,)
    offsets: IntArray  # (cells + 1,)
    shape: tuple[int, int]
    buffers: _Buffers = field(default_factory=lambda: _Buffers())

    @classmethod
    def pack(cls, matrix: Any, *, where: str, cells: Any, genes: Any) -> MemoryBacking:
        """Any matrix of raw counts; duplicate entries are summed first. The labels are for the error message."""
        counts = sparse.csr_matrix(matrix)
        bad = first_bad_count(counts)
        if bad is not None:
            raise counts_error(bad, cells, genes, where)
        if not counts.has_canonical_format:
            counts = counts.copy()
            counts.sum_duplicates()
        columns = counts.indices.astype(np.uint16 if counts.shape[1] <= 2**16 else np.int32)
        return cls(_compact(counts.data), columns, counts.indptr.astype(np.int64), counts.shape)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        import torch

        return torch.device("cpu")

    def order(self, n: int, size: int, rng: np.random.Generator | None) -> IntArray:
        """A permutation, or the stored order."""
        return np.arange(n) if rng is None else rng.permutation(n)

    def parts(
        self, rows: IntArray, size: int, first: int
    ) -> Iterator[tuple[MemoryBacking, IntArray]]:
        """One part: everything is at hand."""
        yield self, rows[first:]

    def to(self, device: torch.device) -> Backing:
        """Itself on the CPU, otherwise a copy on the device."""
        from perturbgen.data.store.device import DeviceBacking

        return self if device.type == "cpu" else DeviceBacking.load(self, device)

    def scipy(self, rows: IntArray) -> sparse.csr_matrix:
        """The rows as CSR int64."""
        values, columns, offsets = self.take(rows, np.int64, np.int32)
        return sparse.csr_matrix((values, columns, offsets), shape=(len(rows), self.shape[1]))

    def dense(self, rows: IntArray, pool: ThreadPoolExecutor) -> torch.Tensor:
        """Float32 (cells, genes), in a buffer that is recycled once nobody holds the tensor or a view of it."""
        import torch

        from perturbgen.data.counts import densify

        out = self.buffers.lend(len(rows), self.shape[1])
        tasks = [
            pool.submit(densify, self.values, self.columns, self.offsets, rows[part], out[part])
            for part in _spread(len(rows), torch.get_num_threads())
        ]
        for task in tasks:
            task.result()
        return torch.from_numpy(out)

    def sparse(self, rows: IntArray) -> SparseRows:
        """The non-zeros of the rows."""
        import torch

        values, columns, offsets = (
            torch.from_numpy(part) for part in self.take(rows, np.float32, np.int64)
        )
        return SparseRows(values, columns, offsets, self.shape[1])

    def take(
        self, rows: IntArray, kind: type, column_kind: type
    ) -> tuple[np.ndarray, np.ndarray, IntArray]:
        """CSR arrays of the rows, in the types asked for."""
        from perturbgen.data.counts import gather

        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values, columns = np.empty(offsets[-1], kind), np.empty(offsets[-1], column_kind)
        gather(self.values, self.columns, self.offsets, rows, offsets, values, columns)
        return values, columns, offsets


class _Buffers:
    """Dense buffers that come back by themselves when their borrower is garbage.

    Fresh memory costs more than filling it (the kernel must zero and map 37 MB a batch), so batches are written to old
    buffers; but only to those that no tensor, view or autograd graph refers to any more, so keeping a batch is safe.
    """

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def lend(self, rows: int, columns: int) -> np.ndarray:
        """An uninitialised float32 array (rows, columns)."""
        size = rows * columns
        buffer = next(
            (self.free.pop(i) for i, free in enumerate(self.free) if free.size >= size), None
        )
        if buffer is None:
            self.free.clear()
            buffer = np.empty(size, np.float32)
        lent = buffer[:size].reshape(rows, columns)
        weakref.finalize(lent, self.take_back, buffer).atexit = False
        return lent

    def take_back(self, buffer: np.ndarray) -> None:
        """Keep a few for the next batches."""
        if len(self.free) < 3:
            self.free.append(buffer)


def _compact(values: np.ndarray) -> np.ndarray:
    """Counts as uint16 where they fit, else int32."""
    largest = values.max() if len(values) else 0
    return values.astype(np.uint16 if largest < 2**16 else np.int32)


def _spread(n: int, parts: int) -> list[slice]:
    """0..n-1 in so many slices, none of them empty."""
    edges = np.linspace(0, n, min(parts, n) + 1).astype(int)
    return [slice(start, stop) for start, stop in pairwise(edges)]
