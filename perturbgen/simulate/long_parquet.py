"""Sparse counts as the competition's long parquet (id, gene, count, normalized_count), written in row groups."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

MILLION: Final = 1e6


class LongParquet:
    """A long file of non-zero counts; holds at most one row group and one chunk in memory.

    ``normalized_count`` is log1p of counts per million of the cell's true total.
    """

    def __init__(self, path: Path, genes: list[str], *, row_group: int, gene_column: str = "gene") -> None:
        self._genes = pa.array(genes)
        self._names = ("obs_id", gene_column, "count", "normalized_count")
        text = pa.dictionary(pa.int32(), pa.string())
        types = (text, text, pa.int64(), pa.float64())
        self._schema = pa.schema(list(zip(self._names, types, strict=True)))
        self._row_group, self._pending, self._rows = row_group, list[pa.Table](), 0
        # Without the stored Arrow schema, readers see plain strings, as in the real file.
        self._writer = pq.ParquetWriter(path, self._schema, store_schema=False, compression="zstd")

    def __enter__(self) -> LongParquet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, ids: list[str], counts: sparse.csr_array, totals: np.ndarray) -> None:
        """Append cells: their ids, counts (cells, genes) and true totals (cells,)."""
        cell = np.repeat(np.arange(len(ids), dtype=np.int32), np.diff(counts.indptr))
        normalised = np.log1p(counts.data * (MILLION / totals[cell]))
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(cell), pa.array(ids, pa.string())),
            pa.DictionaryArray.from_arrays(pa.array(counts.indices.astype(np.int32)), self._genes),
            pa.array(counts.data.astype(np.int64)),
            pa.array(normalised),
        ]
        self._pending.append(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows += len(cell)
        if self._rows >= self._row_group:
            self._flush()

    def _flush(self) -> None:
        """Write what has gathered as one row group."""
        if self._pending:
            table = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=max(len(table), 1))
        self._pending, self._rows = [], 0
