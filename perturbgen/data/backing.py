"""Where the rows of a store live: in memory or on a GPU (a file is in ``disk.py``).

In memory they are compact CSR, densified by a compiled loop into recycled buffers; a device holds
the whole CSR, and batches are gathered and densified there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from scipy import sparse

from perturbgen.data.counts import count_problem

if TYPE_CHECKING:
    import torch

IntArray = np.ndarray[Any, np.dtype[np.int64]]
_Array = np.ndarray[Any, Any]
_KEPT_BUFFERS = 3


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

    def order(self, n: int, size: int, rng: np.random.Generator | None) -> IntArray:
        """A permutation, or the stored order."""
        return np.arange(n) if rng is None else rng.permutation(n)

    def parts(self, rows: IntArray, size: int, first: int) -> Iterator[tuple[_Resident, IntArray]]:
        """One part: everything is at hand."""
        yield self, rows[first:]


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


@dataclass(frozen=True, eq=False)
class MemoryBacking(_Resident):
    """CSR of raw counts (cells, genes) in the smallest types that hold it."""

    values: _Array  # uint16 or int32 (non-zeros,)
    columns: _Array  # uint16 or int32 (non-zeros,)
    offsets: IntArray  # (cells + 1,)
    shape: tuple[int, int]
    buffers: _Buffers = field(default_factory=lambda: _Buffers())

    @classmethod
    def pack(cls, matrix: Any, *, where: str, cells: Any, genes: Any) -> MemoryBacking:
        """Any matrix of raw counts; duplicate entries are summed. The labels are for an error."""
        counts = sparse.csr_matrix(matrix)
        if error := count_problem(counts, cells, genes, where):
            raise error
        if not counts.has_canonical_format:
            counts = counts.copy()
            counts.sum_duplicates()
        # Half the bytes to move for each batch: nearly all counts, and all genes of OP3, fit 16
        # bits.
        small = counts.nnz == 0 or counts.data.max() < 2**16
        return cls(
            counts.data.astype(np.uint16 if small else np.int32),
            counts.indices.astype(np.uint16 if counts.shape[1] <= 2**16 else np.int32),
            counts.indptr.astype(np.int64),
            counts.shape,
        )

    @property
    def device(self) -> torch.device:
        """The CPU."""
        import torch

        return torch.device("cpu")

    def to(self, device: torch.device) -> Backing:
        """Itself on the CPU, otherwise a copy on the device."""
        import torch

        if device.type == "cpu":
            return self
        return _DeviceBacking(
            torch.from_numpy(self.values.astype(np.float32)).to(device),
            torch.from_numpy(self.columns.astype(np.int32)).to(device),
            torch.from_numpy(self.offsets).to(device),
            self.shape,
            self,
        )

    def scipy(self, rows: IntArray) -> sparse.csr_matrix:
        """The rows as CSR int64."""
        values, columns, offsets = self._take(rows, np.int64, np.int32)
        return sparse.csr_matrix((values, columns, offsets), shape=(len(rows), self.shape[1]))

    def dense(self, rows: IntArray, pool: ThreadPoolExecutor) -> torch.Tensor:
        """Float32 (cells, genes), in a buffer that is recycled once no tensor or view holds it."""
        import torch

        out = self.buffers.lend(len(rows), self.shape[1])
        edges = np.linspace(0, len(rows), min(torch.get_num_threads(), len(rows)) + 1).astype(int)
        tasks = [
            pool.submit(_densify, self.values, self.columns, self.offsets, rows[a:b], out[a:b])
            for a, b in pairwise(edges)
        ]
        for task in tasks:
            task.result()
        return torch.from_numpy(out)

    def sparse(self, rows: IntArray) -> SparseRows:
        """The non-zeros of the rows."""
        import torch

        values, columns, offsets = map(torch.from_numpy, self._take(rows, np.float32, np.int64))
        return SparseRows(values, columns, offsets, self.shape[1])

    def _take(
        self, rows: IntArray, kind: type, column_kind: type
    ) -> tuple[_Array, _Array, IntArray]:
        """CSR arrays of the rows, in the types asked for."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values, columns = np.empty(offsets[-1], kind), np.empty(offsets[-1], column_kind)
        _gather(self.values, self.columns, self.offsets, rows, offsets, values, columns)
        return values, columns, offsets


@dataclass(frozen=True, eq=False)
class _DeviceBacking(_Resident):
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
        import torch

        chosen = torch.from_numpy(rows).to(self.device)
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        total = int(offsets[-1])
        shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
        source = torch.arange(total, device=self.device) + shift
        return SparseRows(self.values[source], self.columns[source].long(), offsets, self.shape[1])


class _Buffers:
    """Dense buffers that come back by themselves when their borrower is garbage.

    Fresh memory costs more than filling it (the kernel must zero and map 37 MB a batch), so batches
    are written to old buffers; but only to those that no tensor, view or autograd graph refers to
    any more, so keeping a batch is safe.
    """

    def __init__(self) -> None:
        self.free: list[_Array] = []

    def lend(self, rows: int, columns: int) -> _Array:
        """An uninitialised float32 array (rows, columns)."""
        size = rows * columns
        fitting = (i for i, free in enumerate(self.free) if free.size >= size)
        place = next(fitting, None)
        if place is None:
            self.free.clear()
            buffer = np.empty(size, np.float32)
        else:
            buffer = self.free.pop(place)
        lent = buffer[:size].reshape(rows, columns)
        # At exit there is no next batch to keep it for, and the list may be gone.
        weakref.finalize(lent, self._take_back, buffer).atexit = False
        return lent

    def _take_back(self, buffer: _Array) -> None:
        if len(self.free) < _KEPT_BUFFERS:
            self.free.append(buffer)


# The two loops below run once for every batch of every epoch. In CSR, row ``r`` holds
# ``values[a:b]`` in the genes ``columns[a:b]``, with ``a, b = offsets[r], offsets[r + 1]``. They
# release the interpreter's lock, so that threads share a batch.


@njit(nogil=True, cache=True)
def _densify(values: _Array, columns: _Array, offsets: _Array, rows: _Array, out: _Array) -> None:
    """Write the rows into ``out`` (rows, genes)."""
    for k in range(len(rows)):
        row = out[k]
        row[:] = 0  # just before it is filled: it is then in the cache
        for j in range(offsets[rows[k]], offsets[rows[k] + 1]):
            row[columns[j]] = values[j]


@njit(nogil=True, cache=True)
def _gather(
    values: _Array,
    columns: _Array,
    offsets: _Array,
    rows: _Array,
    out_offsets: _Array,
    out_values: _Array,
    out_columns: _Array,
) -> None:
    """Copy the non-zeros of the rows, one row after the other."""
    for k in range(len(rows)):
        start, at = offsets[rows[k]], out_offsets[k]
        for j in range(out_offsets[k + 1] - at):
            out_values[at + j] = values[start + j]
            out_columns[at + j] = columns[start + j]
