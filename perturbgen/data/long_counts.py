"""A long table of counts (cell, gene, count) in parquet, streamed into a CSR matrix without ever being pivoted.

Two passes over the file: the first counts the entries of each row, so that the matrix is allocated once at its final
size; the second drops every entry into its place. Neither pass assumes an order of the rows in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.core.console import progress
from perturbgen.core.errors import CountsError, SchemaError, shorten, suggest
from perturbgen.core.tables import open_parquet, parquet_errors

_BATCH = 1 << 18
_LARGEST = np.iinfo(np.int32).max
# Looking for the nearest name takes seconds beyond this, and cell barcodes have no meaningful neighbour.
_FEW = 50_000


@dataclass(frozen=True)
class LongCounts:
    """Where a long table lies, how its labels become positions, and which entries to leave out.

    ``target`` (column labels,) is the output column of each label, -1 to skip it; ``excluded`` is a table of
    (row label, column label) pairs that are left out.
    """

    path: Path
    rows: pd.Index
    columns: pd.Index
    row_key: str = "obs_id"
    column_key: str = "gene"
    count_key: str = "count"
    target: NDArray[np.int32] | None = None
    excluded: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def read(self) -> sparse.csr_matrix:
        """The counts (rows, columns) as CSR int32, indices sorted; a pair that occurs twice is an error."""
        with parquet_errors(self.path):
            matrix = _fill(self, _row_pointers(self))
        matrix.sort_indices()
        _require_no_duplicates(matrix, self)
        matrix.eliminate_zeros()
        return matrix

    @property
    def width(self) -> int:
        """The number of output columns."""
        return len(self.columns) if self.target is None else int((self.target >= 0).sum())

    def labels(self) -> tuple[pd.Index, pd.Index]:
        """Row and output column labels."""
        return self.rows, self.columns if self.target is None else self.columns[self.target >= 0]


@dataclass(frozen=True)
class _Entries:
    """The kept entries of a batch: row and column positions, and where in the batch they stood."""

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    kept: NDArray[np.bool_] | None


def _row_pointers(table: LongCounts) -> NDArray[np.int64]:
    """First pass: the CSR row pointers (rows + 1,)."""
    lengths = np.zeros(len(table.rows) + 1, np.int64)
    for batch in _batches(table, [table.row_key, table.column_key], "counting entries"):
        lengths[1:] += np.bincount(_encode(batch, table).rows, minlength=len(table.rows))
    return np.cumsum(lengths)


def _fill(table: LongCounts, pointers: NDArray[np.int64]) -> sparse.csr_matrix:
    """Second pass: every entry into its place."""
    size = int(pointers[-1])
    kind: type[np.int32 | np.int64] = np.int32 if max(size, table.width) <= _LARGEST else np.int64
    data, indices = np.empty(size, np.int32), np.empty(size, dtype=kind)
    cursor = pointers[:-1].copy()
    for batch in _batches(
        table, [table.row_key, table.column_key, table.count_key], "reading counts"
    ):
        entries = _encode(batch, table)
        counts = _checked_counts(batch, table)
        counts = counts if entries.kept is None else counts[entries.kept]
        order, at = _places(entries.rows, cursor)
        data[at], indices[at] = counts[order], entries.columns[order]
    shape = (len(table.rows), table.width)
    return sparse.csr_matrix((data, indices, pointers.astype(kind)), shape=shape, copy=False)


def _places(
    rows: NDArray[np.int32], cursor: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order that groups a batch by row and the position of each entry in the matrix; moves ``cursor`` on."""
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        if len(rows)
        else np.empty(0, np.int64)
    )
    lengths = np.diff(np.append(starts, len(rows)))
    first = cursor[rows[starts]]
    cursor[rows[starts]] += lengths
    return order, np.arange(len(rows)) + np.repeat(first - starts, lengths)


def _batches(table: LongCounts, columns: list[str], description: str) -> Iterator[pa.RecordBatch]:
    """The file's record batches, labels dictionary-encoded, with a progress bar in millions of entries."""
    keys = [table.row_key, table.column_key]
    file = open_parquet(table.path, columns=[*keys, table.count_key], dictionary=keys)
    with (
        file,
        progress(f"{description} (millions)", round(file.metadata.num_rows / 1e6, 1)) as tick,
    ):
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield batch
            tick(batch.num_rows / 1e6)


def _encode(batch: pa.RecordBatch, table: LongCounts) -> _Entries:
    """Labels to positions; skipped columns and excluded pairs are dropped."""
    rows = _positions(batch, table.row_key, table.rows, table.path)
    columns = _positions(batch, table.column_key, table.columns, table.path)
    keep = np.ones(len(rows), bool)
    if len(table.excluded):
        keys = rows.astype(np.int64) * len(table.columns) + columns
        nearest = np.minimum(np.searchsorted(table.excluded, keys), len(table.excluded) - 1)
        keep = table.excluded[nearest] != keys
    if table.target is not None:
        columns = table.target[columns]
        keep &= columns >= 0
    return (
        _Entries(rows, columns, None) if keep.all() else _Entries(rows[keep], columns[keep], keep)
    )


def _positions(batch: pa.RecordBatch, key: str, index: pd.Index, path: Path) -> NDArray[np.int32]:
    """The position in ``index`` of each label of a column (entries,); only the distinct ones are looked up."""
    column = batch.column(batch.schema.get_field_index(key))
    column = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    if column.null_count:
        raise SchemaError(
            f"{path}: {key!r} is missing in {column.null_count} rows",
            expected="a label in every row",
        )
    labels = column.dictionary.to_numpy(zero_copy_only=False)
    found = index.get_indexer(pd.Index(labels, dtype=object)).astype(np.int32)
    codes = found[column.indices.to_numpy()]
    if (found < 0).any() and (codes < 0).any():
        used = np.unique(column.indices.to_numpy()[codes < 0])
        raise _unknown_label(key, [str(label) for label in labels[used]], index, path)
    return codes


def _unknown_label(key: str, names: list[str], index: pd.Index, path: Path) -> SchemaError:
    """The error for labels that the companion table does not know."""
    return SchemaError(
        f"{path} names an unknown {key}: {shorten(names, 3)}",
        expected=f"every {key} is one of the {len(index):,} in the companion table",
        cause="files of two releases mixed, a renamed gene, or a truncated companion table",
        fix=suggest(names[0], index[:_FEW].astype(str)) if len(index) <= _FEW else None,
    )


def _checked_counts(batch: pa.RecordBatch, table: LongCounts) -> NDArray[np.int32]:
    """The batch's counts (entries,), or an error naming the first cell and gene whose count is not one."""
    column = batch.column(batch.schema.get_field_index(table.count_key))
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise CountsError(
            f"{table.path}: {table.count_key!r} is of type {column.type}", expected="integers"
        )
    values = column.to_numpy(zero_copy_only=False)
    bad = ~((values >= 0) & (values <= _LARGEST))
    if values.dtype.kind == "f":
        bad |= values != np.rint(values)
    if bad.any():
        first = int(np.argmax(bad))
        cell, gene = (
            batch.column(batch.schema.get_field_index(k))[first]
            for k in (table.row_key, table.column_key)
        )
        raise CountsError(
            f"{table.path}: cell '{cell}' has {column[first]} in gene '{gene}', one of {int(bad.sum())}.",
            expected="raw UMI counts (non-negative integers)",
            cause="the counts were normalised, corrected for background, or hold missing values",
            fix=f"put the raw counts into {table.count_key!r}",
        )
    return values.astype(np.int32, copy=False)


def _require_no_duplicates(
    matrix: sparse.csr_matrix, table: LongCounts, block: int = 1 << 22
) -> None:
    """No (row, column) pair twice; ``matrix`` has sorted indices."""
    for start in range(0, matrix.nnz - 1, block):
        stop = min(start + block, matrix.nnz - 1)
        same = (
            np.flatnonzero(matrix.indices[start:stop] == matrix.indices[start + 1 : stop + 1])
            + start
        )
        rows = np.searchsorted(matrix.indptr, same, side="right") - 1
        twice = same + 1 < matrix.indptr[rows + 1]
        if twice.any():
            row_labels, column_labels = table.labels()
            pairs = zip(rows[twice][:3], matrix.indices[same[twice][:3]], strict=True)
            named = ", ".join(f"({row_labels[r]}, {column_labels[c]})" for r, c in pairs)
            raise SchemaError(
                f"{table.path} holds a ({table.row_key}, {table.column_key}) pair more than once: {named}",
                expected="one count for each pair",
                cause="a file concatenated twice, or two genes given one name",
                fix="sum or drop the repeated rows before ingesting",
            )


def distinct_labels(path: Path, key: str) -> pd.Index:
    """The distinct labels of a column, sorted."""
    names: dict[str, None] = {}
    with parquet_errors(path), open_parquet(path, columns=[key], dictionary=[key]) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=[key]):
            column = batch.column(0)
            column = (
                column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
            )
            names.update(dict.fromkeys(column.dictionary.to_pylist()))
    names.pop(None, None)  # type: ignore[call-overload]
    return pd.Index(sorted(names), dtype=object)


def excluded_keys(pairs: pd.DataFrame, rows: pd.Index, columns: pd.Index) -> NDArray[np.int64]:
    """Pairs of (row label, column label) as sorted keys ``row * len(columns) + column``; unknown labels drop out."""
    row, column = (
        index.get_indexer(pd.Index(pairs.iloc[:, i], dtype=object))
        for i, index in enumerate((rows, columns))
    )
    known = (row >= 0) & (column >= 0)
    return np.unique(row[known].astype(np.int64) * len(columns) + column[known])
