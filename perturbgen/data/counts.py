"""Raw counts, from a matrix or from a long table in parquet, checked and in one form (CSR, int32).

A long table (cell, gene, count) is streamed, never pivoted, in two passes over the file: the first
counts the entries of each row, so that the matrix is allocated once at its final size; the second
drops every entry into its place. Neither pass assumes an order of the rows in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.core.console import progress
from perturbgen.core.errors import CountsError, SchemaError, shorten, suggest
from perturbgen.core.tables import open_parquet, reading

_Array = np.ndarray[Any, Any]
_LARGEST = np.iinfo(np.int32).max
_BLOCK = 1 << 22  # values looked at together: the masks of a whole data set would take gigabytes
_BATCH = 1 << 18
# Looking for the nearest name takes seconds beyond this, and cell barcodes have no meaningful
# neighbour.
_FEW = 50_000


def to_counts(matrix: Any, cells: pd.Index, genes: pd.Index, where: str) -> sparse.csr_matrix:
    """A matrix (cells, genes) as CSR int32, sorted, no stored zeros; or an error."""
    if error := count_problem(matrix, cells, genes, where):
        raise error
    counts = sparse.csr_matrix(matrix).astype(np.int32, copy=False)
    # One form for all, so that the same counts have the same bytes whatever file they came from.
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def count_problem(
    matrix: Any, cells: Sequence[Any] | pd.Index, genes: Sequence[Any] | pd.Index, where: str
) -> CountsError | None:
    """The error that names the first entry that is no count, a non-negative integer of 32 bits."""
    if matrix.dtype.kind not in "biuf":
        what = f"the counts are of type {matrix.dtype}"
        raise CountsError(what, expected="numbers", cause="a matrix of text")
    is_sparse: bool = sparse.issparse(matrix)
    if is_sparse:
        csr = matrix.tocsr()
        at = _first_bad(csr.data[i : i + _BLOCK] for i in range(0, len(csr.data), _BLOCK))
        if at is None:
            return None
        row, column = int(np.searchsorted(csr.indptr, at, side="right")) - 1, int(csr.indices[at])
        value = csr.data[at]
    else:
        dense = np.asarray(matrix)
        rows = max(1, _BLOCK // max(dense.shape[1], 1))
        at = _first_bad(dense[i : i + rows].ravel() for i in range(0, len(dense), rows))
        if at is None:
            return None
        row, column = divmod(at, dense.shape[1])
        value = dense[row, column]
    if not np.isfinite(value):
        kind = "missing or infinite values"
    elif value < 0:
        kind = "negative values"
    else:
        kind = "non-integers" if value != np.rint(value) else "values beyond 32 bits"
    return CountsError(
        f"{where} holds {kind}: cell '{cells[row]}' has {float(value):.6g} "
        f"in gene '{genes[column]}'.",
        expected="raw UMI counts (non-negative integers)",
        cause="the matrix was normalised, log-transformed or corrected",
        fix="pass the raw matrix, or name its layer (--layer); perturbgen init finds it",
    )


def _bad_counts(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are NaN, infinite, negative, fractional or beyond 32 bits."""
    bad = ~((values >= 0) & (values <= _LARGEST))  # so that NaN is bad, too
    if values.dtype.kind == "f":
        bad |= values != np.rint(values)
    return bad


def _first_bad(blocks: Iterable[NDArray[Any]]) -> int | None:
    """The position of the first value that is no count, in blocks that follow each other."""
    start = 0
    for values in blocks:
        bad = _bad_counts(values)
        if bad.any():
            return start + int(np.argmax(bad))
        start += len(values)
    return None


def distinct_labels(path: Path, key: str) -> pd.Index:
    """The distinct labels of a column, sorted."""
    names: set[str | None] = set()
    with reading(path, "parquet"), open_parquet(path, columns=[key], dictionary=[key]) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=[key]):
            names.update(_encoded(batch, key).dictionary.to_pylist())
    return pd.Index(sorted(name for name in names if name is not None), dtype=object)


@dataclass(frozen=True)
class LongTable:
    """Where a long table lies, how its labels become positions, and which entries are dropped.

    ``wanted`` (columns,) is a mask of those to keep; ``excluded`` are entries to drop, as
    sorted keys ``row * len(columns) + column``.
    """

    path: Path
    rows: pd.Index
    columns: pd.Index
    column_key: str = "gene"
    wanted: _Array | None = None
    excluded: _Array | None = None
    row_key: str = "obs_id"
    count_key: str = "count"

    def read(self) -> sparse.csr_matrix:
        """The counts (rows, columns) as CSR int32, sorted; a pair that occurs twice is an error."""
        with reading(self.path, "parquet"):
            matrix = _fill(self)
        matrix.sort_indices()
        _require_no_duplicates(matrix, self)
        matrix.eliminate_zeros()
        return matrix

    @property
    def output_columns(self) -> pd.Index:
        """The labels of the matrix's columns."""
        return self.columns if self.wanted is None else self.columns[self.wanted]

    def batches(self, *more: str, description: str) -> Iterator[pa.RecordBatch]:
        """The labels, as codes of a dictionary, and ``more`` columns, with a progress bar."""
        keys = [self.row_key, self.column_key]
        file = open_parquet(self.path, columns=[*keys, self.count_key], dictionary=keys)
        total = round(file.metadata.num_rows / 1e6, 1)
        with file, progress(f"{description} (millions)", total) as tick:
            for batch in file.iter_batches(batch_size=_BATCH, columns=[*keys, *more]):
                yield batch
                tick(batch.num_rows / 1e6)


def _fill(table: LongTable) -> sparse.csr_matrix:
    """Both passes; indices are not sorted yet."""
    lengths = np.zeros(len(table.rows) + 1, np.int64)
    for batch in table.batches(description="counting entries"):
        lengths[1:] += np.bincount(_positions(batch, table)[0], minlength=len(table.rows))
    pointers = np.cumsum(lengths)

    size, width = int(pointers[-1]), len(table.output_columns)
    kind: type[np.int32 | np.int64] = np.int32 if max(size, width) <= _LARGEST else np.int64
    data, indices = np.empty(size, np.int32), np.empty(size, dtype=kind)
    cursor = pointers[:-1].copy()  # where the next entry of each row goes
    for batch in table.batches(table.count_key, description="reading counts"):
        rows, columns, kept = _positions(batch, table)
        counts = _checked_counts(batch, table)[kept]
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        first = np.flatnonzero(np.diff(rows, prepend=-1))  # where each row's entries begin
        repeats = np.diff(first, append=len(rows))
        at = np.arange(len(rows)) + np.repeat(cursor[rows[first]] - first, repeats)
        cursor[rows[first]] += repeats
        data[at], indices[at] = counts[order], columns[order]
    shape = (len(table.rows), width)
    return sparse.csr_matrix((data, indices, pointers.astype(kind)), shape=shape, copy=False)


def _positions(batch: pa.RecordBatch, table: LongTable) -> tuple[_Array, _Array, _Array]:
    """Row and output column of each entry that is kept, and which those are (a mask)."""
    rows = _codes(batch, table.row_key, table.rows, table.path)
    columns = _codes(batch, table.column_key, table.columns, table.path)
    keep = np.ones(len(rows), bool)
    if table.excluded is not None and len(table.excluded):
        keys = rows.astype(np.int64) * len(table.columns) + columns
        nearest = np.minimum(np.searchsorted(table.excluded, keys), len(table.excluded) - 1)
        keep = table.excluded[nearest] != keys
    if table.wanted is not None:
        keep &= table.wanted[columns]
        columns = (np.cumsum(table.wanted) - 1).astype(np.int32)[columns]
    return rows[keep], columns[keep], keep


def _encoded(batch: pa.RecordBatch, key: str) -> pa.DictionaryArray:
    column = batch.column(batch.schema.get_field_index(key))
    return column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()


def _codes(batch: pa.RecordBatch, key: str, index: pd.Index, path: Path) -> _Array:
    """The position in ``index`` of each label of a column (entries,) int32."""
    column = _encoded(batch, key)
    if column.null_count:
        what = f"{path}: {key!r} is missing in {column.null_count} rows"
        raise SchemaError(what, expected="a label in every row")
    labels = column.dictionary.to_numpy(zero_copy_only=False)
    found = index.get_indexer(pd.Index(labels, dtype=object)).astype(np.int32)
    codes = found[column.indices.to_numpy()]
    # A dictionary may hold labels that no row of this batch has.
    if (found < 0).any() and (codes < 0).any():
        names = [str(labels[i]) for i in np.unique(column.indices.to_numpy()[codes < 0])]
        raise SchemaError(
            f"{path} names an unknown {key}: {shorten(names, 3)}",
            expected=f"every {key} is one of the {len(index):,} in the companion table",
            cause="files of two releases mixed, a renamed gene, or a truncated companion table",
            fix=suggest(names[0], index.astype(str)) if len(index) <= _FEW else None,
        )
    return codes


def _checked_counts(batch: pa.RecordBatch, table: LongTable) -> _Array:
    """The batch's counts (entries,) int32; the first that is none is named by cell and gene."""
    column = batch.column(batch.schema.get_field_index(table.count_key))
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        what = f"{table.path}: {table.count_key!r} is of type {column.type}"
        raise CountsError(what, expected="integers")
    values = column.to_numpy(zero_copy_only=False)
    bad = _bad_counts(values)
    if bad.any():
        first = int(np.argmax(bad))
        keys = (table.row_key, table.column_key)
        cell, gene = (batch.column(batch.schema.get_field_index(key))[first] for key in keys)
        raise CountsError(
            f"{table.path}: cell '{cell}' has {column[first]} in gene '{gene}', "
            f"one of {int(bad.sum())}.",
            expected="raw UMI counts (non-negative integers)",
            cause="the counts were normalised, corrected for background, or hold missing values",
            fix=f"put the raw counts into {table.count_key!r}",
        )
    return values.astype(np.int32, copy=False)


def _require_no_duplicates(
    matrix: sparse.csr_matrix, table: LongTable, block: int = 1 << 22
) -> None:
    """No (row, column) pair twice; ``matrix`` has sorted indices."""
    for start in range(0, matrix.nnz - 1, block):
        stop = min(start + block, matrix.nnz - 1)
        alike = matrix.indices[start:stop] == matrix.indices[start + 1 : stop + 1]
        same = np.flatnonzero(alike) + start
        rows = np.searchsorted(matrix.indptr, same, side="right") - 1
        twice = same + 1 < matrix.indptr[rows + 1]  # else the next entry is another row's
        if twice.any():
            pairs = zip(rows[twice][:3], matrix.indices[same[twice][:3]], strict=True)
            named = ", ".join(f"({table.rows[r]}, {table.output_columns[c]})" for r, c in pairs)
            keys = f"({table.row_key}, {table.column_key})"
            raise SchemaError(
                f"{table.path} holds a {keys} pair more than once: {named}",
                expected="one count for each pair",
                cause="a file concatenated twice, or two genes given one name",
                fix="sum or drop the repeated rows before ingesting",
            )
