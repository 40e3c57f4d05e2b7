"""GCTX, the HDF5 form of CMap's matrices, stored (samples, genes): whole blocks read and written.

``GctxFile`` reads it as it reads GCT; ``GctxWriter`` writes it with real chunks and checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import h5py
import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.files import BROKEN, atomic_path, disk_errors, require_writable
from perturbgen.core.h5ad import open_hdf5
from perturbgen.l1000.checksums import MatrixSums, require_signed, sign
from perturbgen.l1000.schema import MISSING, MISSING_TEXT, decode

if TYPE_CHECKING:
    from anndata import AnnData

Axis = Literal["genes", "samples"]

_MATRIX: Final = "0/DATA/0/matrix"
_GROUPS: Final[dict[Axis, str]] = {"genes": "0/META/ROW", "samples": "0/META/COL"}
_NEAR: Final = 256  # genes apart that are still read in one go from a matrix without chunks
_CHUNK_VALUES: Final = 1024 * 256  # CMap's own chunks: 1 MB of float32
_CHUNK_GENES: Final = 1000
# Headers and links have checksums from HDF5 1.8 (2008) on, which whatever reads GCTX can read.
_VERSIONS: Final = ("v108", "latest")


def runs(positions: np.ndarray, gap: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Sorted positions as runs over at most ``gap`` unwanted ones, and their places in each run."""
    if len(positions):
        for part in np.split(positions, np.flatnonzero(np.diff(positions) > gap + 1) + 1):
            yield slice(int(part[0]), int(part[-1]) + 1), part - part[0]


class Hdf5Matrix:
    """A GCTX file; ``transposed`` says that its rows are samples, against the convention."""

    format = "gctx"

    def __init__(self, path: Path, *, transposed: bool = False) -> None:
        self.path = path
        self.groups = dict(_GROUPS)
        if transposed:
            self.groups = {"genes": _GROUPS["samples"], "samples": _GROUPS["genes"]}
        self.notes: list[str] = []
        with _hdf5_errors(path):
            self.file = open_hdf5(path)
            # CMap and cmapPy write one value, R and PyTables an array of one
            version: Any = np.ravel(self.file.attrs.get("version", ""))[0]
            self.version = decode(version.item() if hasattr(version, "item") else version)
            self.matrix = self.find_matrix()
            self.sums = MatrixSums.of(self.file, self.matrix, path)
            # CMap speaks of genes x samples, but HDF5 holds the transpose
            self.sample_axis = self.find_sample_axis(int(transposed))
        self.bytes = path.stat().st_size
        self.dtype = self.matrix.dtype
        self.shape = self.in_order(self.matrix.shape)
        self.chunks = self.in_order(self.matrix.chunks) if self.matrix.chunks else None

    def find_matrix(self) -> h5py.Dataset:
        """The matrix and both id lists are there and numeric."""
        wanted = [_MATRIX, *(f"{group}/id" for group in _GROUPS.values())]
        absent = [f"/{n}" for n in wanted if not isinstance(self.file.get(n), h5py.Dataset)]
        if absent:
            raise InputError(
                f"{self.path} is HDF5 but no complete GCTX: it lacks {', '.join(absent)}",
                expected="/0/DATA/0/matrix, /0/META/ROW/id and /0/META/COL/id",
                cause="a file of metadata or of values only, or HDF5 of another kind (h5ad, loom)",
            )
        matrix = self.file[_MATRIX]
        if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
            raise InputError(
                f"{self.path}: the matrix is {matrix.ndim}-dimensional of type {matrix.dtype}",
                expected="a 2-dimensional matrix of numbers",
            )
        return matrix

    def find_sample_axis(self, usual: int) -> int:
        """Which axis of the stored matrix the samples are on; some writers transpose it."""
        samples, genes = (
            len(self.file[f"{self.groups[axis]}/id"]) for axis in ("samples", "genes")
        )
        expected = (genes, samples) if usual else (samples, genes)
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
            f"but there are {samples:,} sample ids and {genes:,} gene ids",
            expected="one id for every row and column",
            cause="a file that was cut or put together by hand",
        )

    def in_order(self, shape: tuple[int, int]) -> tuple[int, int]:
        """A stored shape as (samples, genes)."""
        return shape if self.sample_axis == 0 else shape[::-1]

    def raw_ids(self, axis: Axis) -> np.ndarray:
        """The ids in file order as stored, usually fixed-length bytes: half the memory of text."""
        with _hdf5_errors(self.path):
            return self.signed(f"{self.groups[axis]}/id")

    def signed(self, name: str) -> np.ndarray:
        """Ids or a field, which are what was written where the file can tell."""
        return require_signed(self.file[name][:], self.file[name], self.path)

    def field_names(self, axis: Axis) -> list[str]:
        """The metadata fields of an axis that hold one value for every id."""
        group, shape = self.file[self.groups[axis]], (self.shape[axis == "genes"],)
        found = {name: group[name] for name in group if name != "id"}
        return [n for n, f in found.items() if isinstance(f, h5py.Dataset) and f.shape == shape]

    def field(self, axis: Axis, name: str, *, convert_missing: bool = True) -> np.ndarray:
        """One metadata field as numbers or text, with -666 of any spelling as missing."""
        with _hdf5_errors(self.path):
            values = self.signed(f"{self.groups[axis]}/{name}")
        if values.dtype.kind in "SOU":
            text: list[str | None] = [decode(value).strip() for value in values.tolist()]
            if convert_missing:
                text = [None if MISSING_TEXT.fullmatch(str(value)) else value for value in text]
            return np.array(text, dtype=object)
        # whole numbers stay whole where none is missing, since NaN makes them floats
        if not convert_missing or not (values == MISSING).any():
            return values
        return np.where(values == MISSING, np.nan, values.astype(float))

    def block(self, samples: slice, genes: np.ndarray | None) -> np.ndarray:
        """Values (samples, genes) of consecutive samples; ``genes`` are positions, None is all."""
        # HDF5 would read zeros past the end
        if self.path.stat().st_size < self.bytes:
            raise _broken(self.path, "truncated", "it became shorter while it was read")
        with _hdf5_errors(self.path):
            if genes is None:
                return self.slab(samples, slice(0, self.shape[1]))
            # scattered genes come from a few slabs, since HDF5 picks single columns slowly
            wanted, back = np.unique(genes, return_inverse=True)
            gap = max(_NEAR, self.chunks[1] if self.chunks else 0)
            parts = []
            for run, inside in runs(wanted, gap):
                slab = self.slab(samples, run)
                parts.append(slab if len(inside) == slab.shape[1] else slab.take(inside, axis=1))
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        # a copy of every block is saved where the file has the order wanted
        in_place = np.array_equal(back, np.arange(len(back)))
        return values if in_place else values.take(back, axis=1)

    def slab(self, samples: slice, genes: slice) -> np.ndarray:
        """A rectangle of the matrix, as (samples, genes)."""
        rows, columns = (genes, samples) if self.sample_axis else (samples, genes)
        found = self.matrix[rows, columns] if self.sums is None else self.sums.read(rows, columns)
        return found.T if self.sample_axis else found

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


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
        cause=BROKEN,
        fix="fetch it again and compare its size with the source's",
    )


class GctxWriter:
    """A GCTX file that grows by blocks of samples; it takes its name when the block succeeds.

    ``var`` (index: gene ids) is known from the start; the metadata of the samples come with their
    blocks and are held in memory until the end.
    """

    def __init__(
        self,
        path: str | Path,
        var: pd.DataFrame,
        *,
        samples: int = 1 << 20,
        dtype: str = "float32",
        compression: int | None = None,
        source: str = "",
    ) -> None:
        require_writable(path)
        self.path, self.var, self.source = Path(path), var, source
        self.dtype, self.compression, self.expected = dtype, compression, samples
        self.parts: list[pd.DataFrame] = []
        self.written = 0

    @staticmethod
    def chunk_shape(samples: int, genes: int) -> tuple[int, int]:
        """CMap's chunks, (samples, genes): 262 x 1,000 for the whole transcriptome."""
        columns = max(1, min(genes, _CHUNK_GENES))
        return max(1, min(_CHUNK_VALUES // columns, samples)), columns

    def __enter__(self) -> GctxWriter:
        with disk_errors(self.path), ExitStack() as stack:
            part = stack.enter_context(atomic_path(self.path))
            self.file = h5py.File(part, "w", libver=_VERSIONS)
            stack.push(self.finish)
            self.stack = stack.pop_all()
        # bytes, as in CMap's own files
        self.file.attrs["version"] = np.bytes_(b"GCTX1.0")
        self.file.attrs["src"] = self.source
        genes = len(self.var)
        self.matrix = self.file.create_dataset(
            _MATRIX,
            (0, genes),
            self.dtype,
            maxshape=(None, genes),
            # cmapPy computes chunks and does not pass them on: its files are in one piece
            chunks=self.chunk_shape(self.expected, genes),
            compression=None if self.compression is None else "gzip",
            compression_opts=self.compression,
        )
        self.sums = MatrixSums.create(self.file, self.matrix)
        return self

    def append(self, values: np.ndarray, obs: pd.DataFrame) -> None:
        """Add samples: values (samples, genes) and their metadata, indexed by id."""
        if values.shape != (len(obs), len(self.var)):
            raise SchemaError(
                f"a block of {values.shape[0]} x {values.shape[1]} values came with {len(obs)} ids",
                expected=f"one row for every id, one column for each of {len(self.var):,} genes",
            )
        with disk_errors(self.path):
            self.matrix.resize(self.written + len(obs), axis=0)
            self.matrix[self.written :] = values
            # HDF5 converts other types, and what it made of them is what will be read
            same = values.dtype == self.matrix.dtype
            stored = values if same else self.matrix[self.written :]
            self.sums.resize(self.written + len(obs), axis=0)
            self.sums[self.written :] = MatrixSums.compute(stored, self.matrix.chunks[1])
        self.written += len(obs)
        self.parts.append(obs)

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the metadata, unless something failed, and close the file."""
        try:
            if kind is None:
                with disk_errors(self.path):
                    self.write_metadata()
                    self.file.close()
        finally:
            # HDF5 may want to write once more to a full disk
            with suppress(OSError, RuntimeError):
                self.file.close()

    def write_metadata(self) -> None:
        """Ids and fields of both axes, chunked and compressed as CMap does."""
        nobody = pd.DataFrame(index=pd.Index([], dtype=object))
        obs = pd.concat(self.parts) if self.parts else nobody
        for group, table in ((_GROUPS["genes"], self.var), (_GROUPS["samples"], obs)):
            # HDF5 takes / for a folder; cmapPy writes | too
            names = [str(name).replace("/", "|") for name in table.columns]
            fields = [_encode_text(table.index), *(_encode_field(table[n]) for n in table.columns)]
            for name, values in zip(["id", *names], fields, strict=True):
                dataset = self.file.create_dataset(
                    f"{group}/{name}",
                    data=values,
                    chunks=(min(1000, len(values)),) if len(values) else None,
                    compression="gzip" if len(values) else None,
                )
                sign(dataset, values)


def write_gctx(
    data: AnnData, path: str | Path, *, dtype: str = "float32", compression: int | None = None
) -> None:
    """Write an AnnData of samples x genes as GCTX."""
    with GctxWriter(
        path, data.var, samples=data.n_obs, dtype=dtype, compression=compression
    ) as writer:
        writer.append(values_of(data), data.obs)


def values_of(data: AnnData) -> np.ndarray:
    """The values as an array."""
    values: Any = data.X
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def _encode_field(values: pd.Series) -> np.ndarray:
    """A column as HDF5 stores it: numbers, or fixed-length bytes; what is missing as -666."""
    if pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=np.int32)
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy()
        floats = numbers.dtype.kind == "f"
        return np.where(np.isnan(numbers), MISSING, numbers) if floats else numbers
    return _encode_text(values.astype(object).where(values.notna(), str(MISSING)))


def _encode_text(values: Iterable[object]) -> np.ndarray:
    """Text as fixed-length UTF-8 bytes."""
    encoded = [str(value).encode() for value in values]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")
