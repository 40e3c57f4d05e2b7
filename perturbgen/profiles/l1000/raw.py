"""Uncompressed HDF5 values read straight from the file, a chunk at a time into one small buffer.

HDF5 copies every chunk into an array of the whole block, of which an extraction wants a thirteenth. Here a chunk
stays in the processor's cache while its wanted columns are picked.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from perturbgen.errors import InputError


class RawReader:
    """Reads blocks of a two-dimensional data set without filters, of native numbers, at known places of the file."""

    def __init__(self, path: Path, matrix: h5py.Dataset) -> None:
        self.path, self.matrix, self.dtype, self.shape = path, matrix, matrix.dtype, matrix.shape
        self.chunks: tuple[int, int] | None = matrix.chunks
        self.handle = os.open(path, os.O_RDONLY)
        size = int(np.prod(self.chunks)) if self.chunks else 0
        self.buffer = np.empty(size, self.dtype)

    @staticmethod
    def fits(file: h5py.File, matrix: h5py.Dataset) -> bool:
        """Whether the values lie in the file as they are."""
        plain = matrix.compression is None and not (matrix.shuffle or matrix.fletcher32 or matrix.scaleoffset)
        native = matrix.dtype.isnative and matrix.dtype.kind == "f" and matrix.size > 0
        placed = matrix.chunks is not None or (matrix.id.get_offset() is not None and not matrix.external)
        return bool(plain and native and placed and file.userblock_size == 0 and file.driver == "sec2")

    def block(self, rows: slice, columns: np.ndarray) -> np.ndarray:
        """Values of consecutive rows and of sorted columns."""
        out = np.empty((rows.stop - rows.start, len(columns)), self.dtype)
        if self.chunks is None:
            self.fill_from_rows(out, rows, columns)
            return out
        height, width = self.chunks
        edges = np.searchsorted(columns, np.arange(0, self.shape[1] + width, width))
        for top in range(rows.start // height * height, rows.stop, height):
            first, last = max(rows.start, top), min(rows.stop, top + height)
            for number in np.flatnonzero(np.diff(edges)):
                left, right = edges[number], edges[number + 1]
                chunk = self.chunk(top, int(number) * width)
                part = chunk[first - top : last - top].take(columns[left:right] - number * width, axis=1)
                out[first - rows.start : last - rows.start, left:right] = part
        return out

    def chunk(self, top: int, left: int) -> np.ndarray:
        """The chunk (height, width) that begins there; valid until the next one is read."""
        values = self.buffer.reshape(self.chunks or (0, 0))
        place = self.matrix.id.get_chunk_info_by_coord((top, left)).byte_offset
        if place is None:  # never written: HDF5 knows what it holds
            values[...] = self.matrix.fillvalue
            return values
        self.fill(self.buffer, place)
        return values

    def fill_from_rows(self, out: np.ndarray, rows: slice, columns: np.ndarray) -> None:
        """Rows of a matrix in one piece, a few at a time."""
        start, width = self.matrix.id.get_offset(), self.shape[1]
        step = max(1, (1 << 20) // (width * self.dtype.itemsize))
        buffer = np.empty((step, width), self.dtype)
        for first in range(rows.start, rows.stop, step):
            last = min(first + step, rows.stop)
            part = buffer[: last - first]
            self.fill(part, start + first * width * self.dtype.itemsize)
            out[first - rows.start : last - rows.start] = part.take(columns, axis=1)

    def fill(self, buffer: np.ndarray, place: int) -> None:
        """Bytes of the file from a place on."""
        view, done = buffer.data.cast("B"), 0
        while done < len(view):
            found = os.preadv(self.handle, [view[done:]], place + done)
            if not found:
                raise InputError(
                    f"{self.path} is truncated: it ends within its matrix",
                    expected="a complete GCTX (HDF5) file",
                    cause="a download or a copy that broke off",
                )
            done += found

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.handle)
