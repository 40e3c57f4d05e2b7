"""Writing GCTX block by block, with real chunks, and GCT text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import h5py
import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.files import atomic_path, disk_errors, remove, require_writable
from perturbgen.l1000.fields import MISSING
from perturbgen.l1000.hdf5 import GROUPS, MATRIX

if TYPE_CHECKING:
    from anndata import AnnData

_CHUNK_VALUES: Final = 1024 * 256  # CMap's own chunks: 1 MB of float32
_CHUNK_GENES: Final = 1000


def chunk_shape(samples: int, genes: int) -> tuple[int, int]:
    """CMap's chunks, (samples, genes): 262 x 1,000 for the whole transcriptome."""
    columns = max(1, min(genes, _CHUNK_GENES))
    return max(1, min(_CHUNK_VALUES // columns, samples)), columns


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
        self.path = Path(path)
        self.var, self.source, self.dtype, self.compression = var, source, dtype, compression
        self.expected = samples
        self.parts: list[pd.DataFrame] = []
        self.written = 0

    def __enter__(self) -> GctxWriter:
        self.atomic = atomic_path(self.path)
        with disk_errors(self.path):
            self.part = self.atomic.__enter__()
            self.file = h5py.File(self.part, "w")
        # bytes, as in CMap's own files
        self.file.attrs["version"] = np.bytes_(b"GCTX1.0")
        self.file.attrs["src"] = self.source
        genes = len(self.var)
        self.matrix = self.file.create_dataset(
            MATRIX,
            (0, genes),
            self.dtype,
            maxshape=(None, genes),
            # cmapPy computes chunks and does not pass them on: its files are in one piece
            chunks=chunk_shape(self.expected, genes),
            compression=None if self.compression is None else "gzip",
            compression_opts=self.compression,
        )
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
        self.written += len(obs)
        self.parts.append(obs)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with disk_errors(self.path):
                    self.write_metadata()
                    self.file.close()
        except BaseException as problem:
            self.abandon()
            self.atomic.__exit__(type(problem), problem, problem.__traceback__)
            raise
        if kind is not None:
            self.abandon()
        self.atomic.__exit__(kind, error, trace)

    def abandon(self) -> None:
        """Close what cannot be finished; HDF5 may want to write once more to a full disk."""
        try:
            self.file.close()
        except (OSError, RuntimeError):
            remove(self.part)

    def write_metadata(self) -> None:
        """Ids and fields of both axes."""
        obs = (
            pd.concat(self.parts) if self.parts else pd.DataFrame(index=pd.Index([], dtype=object))
        )
        for group, table in ((GROUPS["genes"], self.var), (GROUPS["samples"], obs)):
            self.write_field(f"{group}/id", _encode_text(table.index))
            for name in table.columns:
                self.write_field(
                    # HDF5 takes / for a folder; cmapPy writes | too
                    f"{group}/{str(name).replace('/', '|')}",
                    _encode_field(table[name]),
                )

    def write_field(self, name: str, values: np.ndarray) -> None:
        """One field, chunked and compressed as CMap does."""
        chunks = (min(1000, len(values)),) if len(values) else None
        self.file.create_dataset(
            name, data=values, chunks=chunks, compression="gzip" if chunks else None
        )


def write_gctx(
    data: AnnData, path: str | Path, *, dtype: str = "float32", compression: int | None = None
) -> None:
    """Write an AnnData of samples x genes as GCTX."""
    with GctxWriter(
        path, data.var, samples=data.n_obs, dtype=dtype, compression=compression
    ) as writer:
        writer.append(_dense(data), data.obs)


def write_gct(data: AnnData, path: str | Path, *, version: str = "1.3") -> None:
    """Write an AnnData as GCT text; 1.2 keeps one field of the genes and none of the samples."""
    if version not in ("1.2", "1.3"):
        raise InputError(f"GCT {version} does not exist", expected="1.2 or 1.3")
    values = _dense(data).T
    header = _gct_header_12(data) if version == "1.2" else _gct_header_13(data)
    # the column Description is not optional in 1.2
    fields = data.var.iloc[:, :1].assign(**({} if data.var.shape[1] else {"Description": "na"}))
    table = fields if version == "1.2" else data.var
    with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="\n") as handle:
        handle.write("\n".join(header) + "\n")
        # nine digits give every float32 back to the bit
        for gene, about, row in zip(
            table.index, table.astype(object).itertuples(index=False), values, strict=True
        ):
            handle.write(
                "\t".join([str(gene), *map(_cell, about), *(f"{value:.9g}" for value in row)])
                + "\n"
            )


def _gct_header_12(data: AnnData) -> list[str]:
    """Three lines: version, sizes, names."""
    return [
        "#1.2",
        f"{data.n_vars}\t{data.n_obs}",
        "\t".join(["Name", "Description", *data.obs_names]),
    ]


def _gct_header_13(data: AnnData) -> list[str]:
    """Version, sizes, names, and a line for every field of the samples."""
    filler = ["na"] * data.var.shape[1]
    lines = [
        "#1.3",
        f"{data.n_vars}\t{data.n_obs}\t{data.var.shape[1]}\t{data.obs.shape[1]}",
        "\t".join(["id", *map(str, data.var.columns), *data.obs_names]),
    ]
    return lines + [
        "\t".join([str(name), *filler, *map(_cell, data.obs[name])]) for name in data.obs.columns
    ]


def _cell(value: object) -> str:
    """A cell of a text file; what is missing is -666, a tab or a line break becomes a blank."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return str(MISSING)
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)


def _dense(data: AnnData) -> np.ndarray:
    """The values as an array."""
    values = data.X
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def _gene_table(ids: Sequence[object]) -> pd.DataFrame:
    """A table of genes that are known by id only."""
    return pd.DataFrame(index=pd.Index([str(name) for name in ids], dtype=object))


def _encode_field(values: pd.Series) -> np.ndarray:
    """A column as HDF5 stores it: numbers, or fixed-length bytes; what is missing as -666."""
    if pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=np.int32)
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy()
        return (
            np.where(np.isnan(numbers), MISSING, numbers) if numbers.dtype.kind == "f" else numbers
        )
    return _encode_text(
        str(MISSING) if missing else value
        for value, missing in zip(values, values.isna(), strict=True)
    )


def _encode_text(values: Iterable[object]) -> np.ndarray:
    """Text as fixed-length UTF-8 bytes."""
    encoded = [str(value).encode() for value in values]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")
