"""``GctxFile``: profiles in GCTX or GCT, read lazily, by label, in the order asked for."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import require_file
from perturbgen.l1000.gct import GctText
from perturbgen.l1000.hdf5 import Axis, Hdf5Matrix, runs
from perturbgen.l1000.schema import decode

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK_BYTES: Final = 32 << 20
# Unwanted samples that are read rather than skipped.
_ROW_GAP: Final = 64
# A million ids as text take much memory: this many are decoded at a time.
_IDS_AT_ONCE: Final = 1 << 16
_GENE_IDS: Final = ("pr_gene_id", "gene_id", "pr_gene_symbol", "gene_symbol")
_log = logging.getLogger(__name__)


class GctxFile:
    """A file of profiles, samples x genes: GCTX, GCT 1.3 or GCT 1.2, told by its first bytes.

    Nothing but the header is read until it is asked for. ``shape`` and the stored ``chunks`` (None
    where the matrix is in one piece) are (samples, genes), ``dtype`` is the stored type.
    ``transposed`` is for files whose rows are samples. GCT is text, in which a line is a gene: what
    is read of it is parsed for all samples at once and kept, whatever the block.
    """

    def __init__(self, path: str | Path, *, transposed: bool = False) -> None:
        self.path = require_file(path, "GCTX or GCT file")
        self.backend = _open_backend(self.path, transposed=transposed)
        self.format, self.dtype = self.backend.format, self.backend.dtype
        self.shape, self.chunks = self.backend.shape, self.backend.chunks
        for note in self.backend.notes:
            _log.warning("%s: %s", self.path, note)

    @cached_property
    def genes(self) -> pd.Index:
        """Gene ids as text, in file order."""
        return pd.Index(_decode_ids(self.backend.raw_ids("genes")), dtype=object, name="gene")

    @cached_property
    def samples(self) -> pd.Index:
        """Sample (or signature) ids as text, in file order."""
        return pd.Index(_decode_ids(self.backend.raw_ids("samples")), dtype=object, name="sample")

    @cached_property
    def var(self) -> pd.DataFrame:
        """The metadata of the genes."""
        return self.metadata("genes")

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The metadata of the samples."""
        return self.metadata("samples")

    def arrow_samples(self) -> pa.Array:
        """The sample ids in Arrow's compact form, decoded part by part."""
        raw = self.backend.raw_ids("samples")
        starts = range(0, len(raw), _IDS_AT_ONCE)
        parts = [pa.array(_decode_ids(raw[i : i + _IDS_AT_ONCE]), pa.string()) for i in starts]
        return pa.concat_arrays([*parts, pa.array([], pa.string())])

    def fields(self, axis: Axis) -> list[str]:
        """The names of the metadata fields."""
        return self.backend.field_names(axis)

    def metadata(
        self, axis: Axis, fields: Sequence[str] | None = None, *, convert_missing: bool = True
    ) -> pd.DataFrame:
        """Metadata of an axis, indexed by id; -666 is missing unless ``convert_missing`` is off."""
        known = self.fields(axis)
        wanted = known if fields is None else list(fields)
        for name in wanted:
            if name not in known:
                raise SchemaError(
                    f"{self.path} has no field {name!r} of {axis}", fix=suggest(name, known)
                )
        columns = {
            name: self.backend.field(axis, name, convert_missing=convert_missing) for name in wanted
        }
        return pd.DataFrame(columns, index=self.genes if axis == "genes" else self.samples)

    def locate(self, axis: Axis, ids: Sequence[object]) -> np.ndarray:
        """Positions of ids, in the order asked for; whole numbers match their text."""
        known = self.genes if axis == "genes" else self.samples
        wanted = pd.Index([decode(name) for name in ids], dtype=object)
        # repeated ids do no harm until one of them is asked for
        places = np.flatnonzero(~known.duplicated(keep=False))
        found = known[places].get_indexer(wanted)
        missing = wanted[found < 0].unique()
        twice = missing[missing.isin(known)]
        if len(twice):
            raise SchemaError(
                f"{self.path}: {len(twice)} of the wanted {axis} occur more than once: "
                f"{shorten(twice)}",
                expected="unique ids",
                cause="ids that an export shortened",
            )
        if len(missing):
            raise SchemaError(
                f"{self.path} lacks {len(missing):,} of the wanted {axis}: {shorten(missing)}",
                expected=f"{axis} such as {shorten(known, 2)}",
                cause="signature ids asked of a file of samples, symbols asked of a file of Entrez "
                "ids, or a typing error",
                fix=suggest(missing[0], known[:100_000]),
            )
        return places[found]

    def find_genes(self, wanted: pd.DataFrame) -> np.ndarray:
        """Positions of genes (``gene_id``, ``gene_symbol``), -1 where there is none.

        They are looked for by either, in the ids and in the fields that are ids as well; what finds
        most counts.
        """
        fields = [name for name in _GENE_IDS if name in self.fields("genes")]
        table = self.metadata("genes", fields)
        best = np.full(len(wanted), -1)
        for names in (
            self.genes,
            *(pd.Index([*map(decode, table[f])], dtype=object) for f in fields),
        ):
            places = np.flatnonzero(~names.duplicated())
            for column in ("gene_id", "gene_symbol"):
                found = names[places].get_indexer(pd.Index(wanted[column], dtype=object))
                found = np.where(found >= 0, places[found], -1)
                if (found >= 0).sum() > (best >= 0).sum():
                    best = found
        return best

    def read(
        self, *, genes: Sequence[object] | None = None, samples: Sequence[object] | None = None
    ) -> np.ndarray:
        """Values (samples, genes) as float32, in the order of the ids, which may repeat."""
        columns = None if genes is None else self.locate("genes", genes)
        if samples is None:
            return self.values(slice(0, self.shape[0]), columns)
        return self.take(self.locate("samples", samples), columns)

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Values of samples by position, in any order; neighbours are read together."""
        # sorted, and once each: rows may be asked for in any order, and again
        wanted, back = np.unique(rows, return_inverse=True)
        # HDF5 reads whole chunks, so skipping less than one gains nothing
        gap = self.chunks[0] if self.chunks else _ROW_GAP
        parts = [np.empty((0, self.shape[1] if columns is None else len(columns)), np.float32)]
        for run, inside in runs(wanted, gap):
            # block by block: a long sparse run is never in memory as a whole
            for block in self.slices(run):
                within = inside + run.start - block.start
                within = within[(within >= 0) & (within < block.stop - block.start)]
                if len(within):
                    parts.append(self.values(block, columns)[within])
        return np.concatenate(parts)[back]

    def values(self, samples: slice, columns: np.ndarray | None = None) -> np.ndarray:
        """Values of consecutive samples as float32."""
        # some files hold float64
        return np.asarray(self.backend.block(samples, columns), dtype=np.float32)

    def slices(
        self, within: slice | None = None, *, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[slice]:
        """Consecutive samples in blocks of whole chunks, about ``block_bytes`` over all genes."""
        within = within or slice(0, self.shape[0])
        unit = self.chunks[0] if self.chunks else 1
        rows = max(1, block_bytes // max(1, self.shape[1] * self.dtype.itemsize) // unit) * unit
        start = within.start
        while start < within.stop:
            # on a border of chunks, wherever it began: no chunk is read for two blocks
            stop = min((start // rows + 1) * rows, within.stop)
            yield slice(start, stop)
            start = stop

    def blocks(
        self, *, genes: Sequence[object] | None = None, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """All samples, block by block in bounded memory: the place and the values of each.

        Of GCT text, which lies gene by gene, the wanted genes of all samples are held.
        """
        columns = None if genes is None else self.locate("genes", genes)
        for block in self.slices(block_bytes=block_bytes):
            yield block, self.values(block, columns)

    def to_anndata(
        self, *, genes: Sequence[object] | None = None, samples: Sequence[object] | None = None
    ) -> AnnData:
        """AnnData of samples x genes (float32) with their metadata, in the order asked for."""
        import anndata

        obs = self.obs if samples is None else self.obs.iloc[self.locate("samples", samples)]
        var = self.var if genes is None else self.var.iloc[self.locate("genes", genes)]
        values = self.read(genes=genes, samples=samples)
        if obs.index.has_duplicates or var.index.has_duplicates:
            _log.warning(
                "%s: ids repeat; AnnData holds them, but finds them by position only", self.path
            )
        # without names of the indices, as AnnData wants them
        obs, var = obs.rename_axis(None), var.rename_axis(None)
        return anndata.AnnData(values, obs=obs, var=var, uns={"source": str(self.path.name)})

    def close(self) -> None:
        """Let go of the file."""
        self.backend.close()

    def __enter__(self) -> GctxFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.shape[0]:,} samples x {self.shape[1]:,} genes"
        return f"GctxFile({self.path.name!r}, {size}, {self.format})"


def _decode_ids(values: np.ndarray) -> list[str]:
    """Ids as text, otherwise untouched: ``LJP005_A375_24H:DMSO:-666`` keeps its -666."""
    return [decode(value).strip() for value in values.tolist()]


def say_repeated(ids: pa.Array, what: str) -> str:
    """How many ids occur more than once, and which."""
    twice = [row["values"].as_py() for row in pc.value_counts(ids) if row["counts"].as_py() > 1]
    return f"{len(twice):,} {what} occur more than once: {shorten(twice)}"


def _open_backend(path: Path, *, transposed: bool = False) -> GctText | Hdf5Matrix:
    """The reader for what the file is, not for what it is called."""
    with open(path, "rb") as handle:
        # names lie: cmapPy's own test_l1000.gctx is GCT text
        start = handle.read(64)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return Hdf5Matrix(path, transposed=transposed)
    plain = start.removeprefix(b"\xef\xbb\xbf").lstrip(b'"').startswith(b"#1.")
    zipped = start.startswith(b"\x1f\x8b")
    if plain or (zipped and _holds_gct(path)):
        if transposed:
            raise InputError(
                f"{path} is GCT text, which is never transposed", fix="leave transposed out"
            )
        return GctText(path)
    if zipped:
        raise InputError(
            f"{path} is gzipped, and not GCT text",
            expected="a GCTX file itself: HDF5 cannot be read through gzip",
            fix=f"gunzip --keep {path}",
        )
    raise InputError(
        f"{path} is neither GCTX nor GCT: it begins with {start[:12]!r}",
        expected="HDF5 with CMap's layout, or text that begins with #1.2 or #1.3",
        cause="an error page saved under the file's name, or an interrupted download",
    )


def _holds_gct(path: Path) -> bool:
    """Whether a gzipped file holds GCT text."""
    try:
        with gzip.open(path, "rb") as handle:
            return handle.read(3) == b"#1."
    except (OSError, EOFError, zlib.error):
        return False
