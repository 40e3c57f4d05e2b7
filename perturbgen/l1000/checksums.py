"""Checksums of what our GCTX files hold, so that changed bytes are no other numbers in silence.

Of every row of the matrix there is a sum over each block of columns, in a dataset beside CMap's
groups, where other readers do not look; ids and metadata have a CRC-32 as an attribute. Files
without them are read as they are.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from perturbgen.core.errors import InputError

# not within META, of which cmapPy takes every dataset for a field
_SUMS: Final = "checksums/matrix"
_COLUMNS: Final = "columns"  # attribute: columns a block
_CRC: Final = "crc32"
_PIECE: Final = 1 << 23  # bytes of blocks that are read for a part of their columns


class MatrixSums:
    """Sums of the words of each row, by blocks of columns, modulo 2^32: (rows, blocks).

    Not a CRC, since a sum is taken at the speed of memory everywhere; one that is kept for each
    row finds rows that changed places, too.
    """

    def __init__(self, sums: h5py.Dataset, matrix: h5py.Dataset, path: Path) -> None:
        self.path, self.matrix = path, matrix
        self.width = max(1, int(sums.attrs[_COLUMNS]))
        self.known = sums[:]
        blocks = -(-matrix.shape[1] // self.width)
        if self.known.shape != (len(matrix), blocks):
            raise _changed(path, "the matrix has another shape than its checksums")

    @classmethod
    def of(cls, file: h5py.File, matrix: h5py.Dataset, path: Path) -> MatrixSums | None:
        """Those that the file holds, if any."""
        sums = file.get(_SUMS)
        return cls(sums, matrix, path) if isinstance(sums, h5py.Dataset) else None

    @staticmethod
    def create(file: h5py.File, matrix: h5py.Dataset) -> h5py.Dataset:
        """An empty dataset for a matrix that grows by rows; a block is as wide as its chunks."""
        rows, width = matrix.chunks
        blocks = -(-matrix.shape[1] // width)
        grows = {"maxshape": (None, blocks), "chunks": (rows, max(1, blocks))}
        sums = file.create_dataset(_SUMS, (0, blocks), "u4", **grows)
        sums.attrs[_COLUMNS] = width
        return sums

    @staticmethod
    def compute(values: np.ndarray, width: int) -> np.ndarray:
        """The sums (rows, blocks) of values as they are stored."""
        size, rows = values.dtype.itemsize, len(values)
        words = np.ascontiguousarray(values).view(f"u{4 if size % 4 == 0 else size}")
        step = width * words.shape[1] // values.shape[1]
        # all whole blocks in one pass over the memory, which takes a third of a pass for each
        whole = words.shape[1] // step
        sums = words[:, : whole * step].reshape(rows, whole, step).sum(axis=2, dtype=np.uint32)
        rest = words[:, whole * step :]
        if not rest.shape[1]:
            return sums
        last = rest.sum(axis=1, dtype=np.uint32, keepdims=True)
        return np.concatenate([sums, last], axis=1)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """A rectangle of the matrix; of blocks that it cuts the rest is read as well."""
        count = self.matrix.shape[1]
        start = columns.start // self.width * self.width
        whole = slice(start, min(-(-columns.stop // self.width) * self.width, count))
        if whole == columns:
            return self.checked(rows, columns)
        asked = columns.stop - columns.start
        wanted = slice(columns.start - start, columns.stop - start)
        if whole.stop - start <= 2 * asked:
            return self.checked(rows, whole)[:, wanted]
        # piece by piece: a gene of a million samples is 4 MB, its block is 4 GB
        found = np.empty((rows.stop - rows.start, asked), self.matrix.dtype)
        step = max(1, _PIECE // ((whole.stop - start) * self.matrix.dtype.itemsize))
        for first in range(rows.start, rows.stop, step):
            piece = slice(first, min(first + step, rows.stop))
            place = slice(first - rows.start, piece.stop - rows.start)
            found[place] = self.checked(piece, whole)[:, wanted]
        return found

    def checked(self, rows: slice, columns: slice) -> np.ndarray:
        """Whole blocks, which sum up to what was written."""
        values = self.matrix[rows, columns]
        blocks = slice(columns.start // self.width, -(-columns.stop // self.width))
        wrong = (self.compute(values, self.width) != self.known[rows, blocks]).any(axis=1)
        if wrong.any():
            first = rows.start + int(wrong.argmax())
            raise _changed(self.path, f"{int(wrong.sum()):,} rows of the matrix, from {first:,} on")
        return values


def sign(dataset: h5py.Dataset, values: np.ndarray) -> None:
    """Keep the CRC of ids or of a field with them."""
    dataset.attrs[_CRC] = zlib.crc32(np.ascontiguousarray(values).data)


def require_signed(values: np.ndarray, dataset: h5py.Dataset, path: Path) -> np.ndarray:
    """Ids or a field as they were written; the same, for files whose datasets have no CRC."""
    known: Any = dataset.attrs.get(_CRC)
    if known is not None and known != zlib.crc32(np.ascontiguousarray(values).data):
        raise _changed(path, dataset.name)
    return values


def _changed(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is damaged: {what}: not what was written",
        expected="a file as perturbgen wrote it, by the checksums in it",
        cause="bytes that changed in a copy or a download, or a program that edited it in place",
        fix="fetch or write it again; after an edit of your own, remove /checksums and the "
        "attribute crc32 of what you changed",
    )
