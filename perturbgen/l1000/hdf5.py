"""What a file of profiles offers, whatever its format, and how wanted rows become few long reads.

GCTX: the HDF5 form of CMap's matrices, stored (samples, genes), whole blocks at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import h5py
import numpy as np

from perturbgen.core.errors import InputError
from perturbgen.l1000.fields import clean_field, decode, decode_ids

Axis = Literal["genes", "samples"]


class Backend(Protocol):
    """A matrix of (samples, genes) with ids and metadata fields on either axis."""

    format: str
    version: str
    shape: tuple[int, int]
    dtype: np.dtype
    chunks: tuple[int, int] | None
    notes: list[str]

    def ids(self, axis: Axis) -> list[str]:
        """The ids of an axis, in file order."""

    def raw_ids(self, axis: Axis) -> np.ndarray:
        """The ids as they are stored, bytes in half the memory of text where the file has bytes."""

    def field_names(self, axis: Axis) -> list[str]:
        """The metadata fields of an axis, without the ids."""

    def field(self, axis: Axis, name: str, *, convert_missing: bool) -> np.ndarray:
        """One metadata field."""

    def block(self, samples: slice, genes: np.ndarray | None) -> np.ndarray:
        """Values (samples, genes) of consecutive samples; ``genes`` are positions, None is all."""

    def close(self) -> None:
        """Let go of the file."""


def runs(positions: np.ndarray, gap: int) -> Iterator[slice]:
    """Sorted positions as slices that cover them, joined over at most ``gap`` unwanted ones."""
    if not len(positions):
        return
    breaks = np.flatnonzero(np.diff(positions) > gap + 1) + 1
    for part in np.split(positions, breaks):
        yield slice(int(part[0]), int(part[-1]) + 1)


MATRIX: Final = "0/DATA/0/matrix"
GROUPS: Final[dict[Axis, str]] = {"genes": "0/META/ROW", "samples": "0/META/COL"}
_NEAR: Final = 256  # genes apart that are still read in one go from a matrix without chunks


class Hdf5Matrix:
    """A GCTX file; ``transposed`` says that its rows are samples, against the convention."""

    format = "gctx"

    def __init__(self, path: Path, *, transposed: bool = False) -> None:
        self.path = path
        with _hdf5_errors(path):
            self.file = h5py.File(path, "r")
            self.groups = dict(GROUPS)
            if transposed:
                self.groups = {"genes": GROUPS["samples"], "samples": GROUPS["genes"]}
            self.notes: list[str] = []
            self.version = _read_version(self.file)
            self.matrix = self.find_matrix()
            # CMap speaks of genes x samples, but HDF5 holds the transpose
            self.sample_axis = self.find_sample_axis(0 if not transposed else 1)
        self.bytes = path.stat().st_size
        self.dtype = self.matrix.dtype
        self.shape = self.in_order(self.matrix.shape)
        self.chunks = self.in_order(self.matrix.chunks) if self.matrix.chunks else None

    def find_matrix(self) -> h5py.Dataset:
        """The matrix and both id lists are there and numeric."""
        wanted = [MATRIX, *(f"{group}/id" for group in GROUPS.values())]
        missing = [
            f"/{name}" for name in wanted if not isinstance(self.file.get(name), h5py.Dataset)
        ]
        if missing:
            raise InputError(
                f"{self.path} is HDF5 but no complete GCTX: it lacks {', '.join(missing)}",
                expected="/0/DATA/0/matrix, /0/META/ROW/id and /0/META/COL/id",
                cause="a file of metadata or of values only, or HDF5 of another kind (h5ad, loom)",
            )
        matrix = self.file[MATRIX]
        if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
            raise InputError(
                f"{self.path}: the matrix is {matrix.ndim}-dimensional of type {matrix.dtype}",
                expected="a 2-dimensional matrix of numbers",
            )
        return matrix

    def find_sample_axis(self, usual: int) -> int:
        """Which axis of the stored matrix the samples are on; some writers transpose it."""
        counts = (
            len(self.file[f"{self.groups['samples']}/id"]),
            len(self.file[f"{self.groups['genes']}/id"]),
        )
        expected = counts if usual == 0 else counts[::-1]
        if self.matrix.shape == expected:
            return usual
        if self.matrix.shape == expected[::-1]:
            self.notes.append(
                "the matrix is stored the other way round (genes x samples); it is read as it "
                "should be"
            )
            return 1 - usual
        raise InputError(
            f"{self.path}: the matrix is {self.matrix.shape[0]:,} x {self.matrix.shape[1]:,}, "
            f"but there are {counts[0]:,} sample ids and {counts[1]:,} gene ids",
            expected="one id for every row and column",
            cause="a file that was cut or put together by hand",
        )

    def in_order(self, shape: tuple[int, int]) -> tuple[int, int]:
        """A stored shape as (samples, genes)."""
        return shape if self.sample_axis == 0 else shape[::-1]

    def raw_ids(self, axis: Axis) -> np.ndarray:
        """The ids as stored, usually fixed-length bytes: half the memory of text."""
        with _hdf5_errors(self.path):
            return self.file[f"{self.groups[axis]}/id"][:]

    def ids(self, axis: Axis) -> list[str]:
        """The ids of an axis, in file order."""
        return decode_ids(self.raw_ids(axis))

    def field_names(self, axis: Axis) -> list[str]:
        """The metadata fields of an axis that hold one value for every id."""
        group, length = self.file[self.groups[axis]], self.shape[axis == "genes"]
        return [
            n
            for n in group
            if n != "id" and isinstance(group[n], h5py.Dataset) and group[n].shape == (length,)
        ]

    def field(self, axis: Axis, name: str, *, convert_missing: bool = True) -> np.ndarray:
        """One metadata field."""
        with _hdf5_errors(self.path):
            return clean_field(
                self.file[f"{self.groups[axis]}/{name}"][:], convert_missing=convert_missing
            )

    def block(self, samples: slice, genes: np.ndarray | None) -> np.ndarray:
        """Values of consecutive samples; scattered genes come from a few slabs."""
        # HDF5 would read zeros past the end
        if self.path.stat().st_size < self.bytes:
            raise _broken(self.path, "truncated", "it became shorter while it was read")
        with _hdf5_errors(self.path):
            if genes is None:
                return self.slab(samples, slice(0, self.shape[1]))
            # slabs, since HDF5 picks single columns slowly
            wanted, back = np.unique(genes, return_inverse=True)
            gap = max(_NEAR, self.chunks[1] if self.chunks else 0)
            parts = []
            for run in runs(wanted, gap):
                inside = wanted[(wanted >= run.start) & (wanted < run.stop)] - run.start
                slab = self.slab(samples, run)
                parts.append(slab if len(inside) == slab.shape[1] else slab.take(inside, axis=1))
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        # a copy of every block is saved where the file has the order wanted
        return values if _in_place(back) else values.take(back, axis=1)

    def slab(self, samples: slice, genes: slice) -> np.ndarray:
        """A rectangle of the matrix, as (samples, genes)."""
        return (
            self.matrix[samples, genes] if self.sample_axis == 0 else self.matrix[genes, samples].T
        )

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def _in_place(order: np.ndarray) -> bool:
    """Whether an order changes nothing."""
    return np.array_equal(order, np.arange(len(order)))


def _read_version(file: h5py.File) -> str:
    """The root attribute ``version``: bytes, text or an array of one; empty where there is none."""
    # CMap and cmapPy write one value, R and PyTables an array of one
    value: Any = file.attrs.get("version", "")
    return decode(np.ravel(value)[0].item() if isinstance(value, np.ndarray) else value)


@contextmanager
def _hdf5_errors(path: Path) -> Iterator[None]:
    """What HDF5 says of a broken file, as an error of ours."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None):  # the system's own, such as a permission
            raise
        what = "truncated" if "truncated" in str(error) else "damaged"
        raise _broken(path, what, str(error).partition("(")[2] or str(error)) from error


def _broken(path: Path, what: str, why: str) -> InputError:
    return InputError(
        f"{path} is {what}: {why}",
        expected="a complete GCTX (HDF5) file",
        cause="a download or a copy that broke off",
        fix="fetch it again and compare its size with the source's",
    )
