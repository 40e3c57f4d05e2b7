"""Embeddings too large to hold: from csv or parquet to a memory map, joined to their labels."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from perturbgen.core.console import progress
from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.export import write_table
from perturbgen.core.files import BROKEN, atomic_path, require_file
from perturbgen.core.tables import read_header, reading, require_unique
from perturbgen.profiles.readers import read_profiles
from perturbgen.profiles.table import FEATURES, META, VALUES, Profiles

log = logging.getLogger(__name__)

_BLOCK = 1 << 22  # bytes of csv parsed at a time; no line may be longer
_ROWS = 4096  # rows of parquet read at a time
_MISSING = frozenset(["", "na", "n/a", "nan", "-nan", "none", "null"])  # in any case

_Batch = tuple[np.ndarray, np.ndarray]  # ids (rows,) and float32 values (rows, features)
_Embeddings = tuple[list[str], Iterator[_Batch]]  # the features, and the rows in batches


@dataclass(frozen=True)
class Orphans:
    """Ids that one of two joined tables has and the other has not."""

    without_labels: tuple[str, ...]
    without_values: tuple[str, ...]


def _read_embeddings(paths: Sequence[Path], *, key: str) -> _Embeddings:
    """A csv(.gz), or parquet files with the same columns, all but the ids' ``key`` numbers."""
    if not paths:
        raise InputError("no file of embeddings", expected="one or more")
    if paths[0].suffix == ".parquet":
        return _read_parquet(paths, key=key)
    return _read_csv(paths[0], key=key)


def _read_csv(path: Path, *, key: str) -> _Embeddings:
    """Values are those of ``float32(float(text))``."""
    path = require_file(path, "embeddings table")
    header = read_header(path)
    features = _feature_columns(header, key, path)

    def batches() -> Iterator[_Batch]:
        rows = 0
        try:
            with reading(path, "csv"), _open_csv(path, header, key) as blocks:
                for batch in blocks:
                    yield _as_arrays(batch, key, features)
                    rows += batch.num_rows
        except pa.ArrowInvalid:
            # Arrow says neither the line nor the column, and knows fewer notations (+.25): what is
            # left is read by Python, which either can or names the place.
            yield from _read_slowly(path, header, key, rows)

    return features, batches()


def _open_csv(path: Path, header: Sequence[str], key: str) -> pc.CSVStreamingReader:
    """The table as record batches, ids as text and the rest as float64.

    float64 first: Arrow would round a decimal to float32 at once, numpy rounds twice.
    """
    types = {name: pa.string() if name == key else pa.float64() for name in header}
    words = {form(word) for word in _MISSING for form in (str, str.upper, str.capitalize)} | {"NaN"}
    return pc.open_csv(
        path,
        read_options=pc.ReadOptions(block_size=_BLOCK),
        convert_options=pc.ConvertOptions(column_types=types, null_values=sorted(words)),
    )


def _read_slowly(path: Path, header: Sequence[str], key: str, skip: int) -> Iterator[_Batch]:
    """The rows after the first ``skip``, by Python's reader; an error names line and column."""
    place = header.index(key)
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(path, "csv"), opener(path, "rt", newline="") as file:
        rows = _numbered_rows(file)
        for _ in islice(rows, skip + 1):
            pass
        while part := list(islice(rows, _ROWS)):
            values = np.empty((len(part), len(header)), np.float32)
            for filled, (line, row) in enumerate(part):
                for column in range(len(header)):
                    try:
                        values[filled, column] = 0 if column == place else _number(row[column])
                    except (ValueError, IndexError):
                        raise _bad_field(path, header, key, line, column) from None
                if len(row) > len(header):
                    raise _bad_field(path, header, key, line, len(header))
            ids = np.array([row[place] for _, row in part], dtype=object)
            yield ids, np.delete(values, place, axis=1)


def _numbered_rows(file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The line that each row begins in, and its fields; empty lines are passed over."""
    reader, before = csv.reader(file), 0
    for row in reader:
        if row:
            yield before + 1, row
        before = reader.line_num


def _number(text: str) -> np.float32:
    """A field as float32; ValueError if it is no number."""
    text = text.strip()
    if text.lower() in _MISSING:
        return np.float32(np.nan)
    if "_" in text:  # which Python allows in numbers, and no other reader
        raise ValueError(text)
    with np.errstate(over="ignore"):
        return np.float32(float(text))


def _bad_field(path: Path, header: Sequence[str], key: str, line: int, column: int) -> InputError:
    what = (
        f"column {header[column]!r} is missing or no number"
        if column < len(header)
        else "there are too many fields"
    )
    return InputError(
        f"{path}, line {line}: {what}",
        expected=f"{key} and {len(header) - 1} numbers in every line",
        cause=BROKEN,
        fix="compare the file's size with the source's",
    )


def _read_parquet(paths: Sequence[Path], *, key: str) -> _Embeddings:
    with reading(paths[0], "parquet"):
        names = pq.read_schema(require_file(paths[0], "embeddings")).names
    features = _feature_columns(names, key, paths[0])

    def batches() -> Iterator[_Batch]:
        for path in paths:
            with reading(path, "parquet"):
                file = pq.ParquetFile(path, page_checksum_verification=True)
                absent = {key, *features} - set(file.schema_arrow.names)
                if absent:
                    raise SchemaError(
                        f"{path} has not the columns of {paths[0].name}: {shorten(sorted(absent))}"
                    )
                for batch in file.iter_batches(batch_size=_ROWS, columns=[key, *features]):
                    yield _as_arrays(batch, key, features)

    return features, batches()


def _feature_columns(header: Sequence[str], key: str, path: Path) -> list[str]:
    """All columns but the ids', each once."""
    if key not in header:
        raise SchemaError(
            f"{path} has no column {key!r}",
            expected=f"{key}, feature_0, feature_1, ...",
            fix=f"its columns are {shorten(header)}",
        )
    require_unique(pd.Series(header), "column", path)
    return [name for name in header if name != key]


def _as_arrays(batch: pa.RecordBatch, key: str, features: Sequence[str]) -> _Batch:
    """Ids and values of a batch; an empty field is NaN."""
    values = np.empty((batch.num_rows, len(features)), np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which Profiles.tidy reports
        for i, name in enumerate(features):
            values[:, i] = batch.column(name).to_numpy(zero_copy_only=False)
    return batch.column(key).to_numpy(zero_copy_only=False), values


def stream_profiles(
    files: Sequence[Path], meta: pd.DataFrame, *, key: str, out: str | Path, where: str
) -> tuple[Profiles, Orphans]:
    """Write a profile folder of the rows whose id is in ``meta``, in the order in which they come.

    ``files`` are a csv(.gz), or parquet files with the same columns; ``key`` is the column of ids.
    Rows and labels without a partner are left out, said in the log and returned. Memory is that of
    a batch, the labels and the ids; values go to disk as they are read.
    """
    features, batches = _read_embeddings(files, key=key)
    Profiles.require_replaceable(out)
    require_unique(meta[key], key, f"{where} (metadata)")
    # the labels fit into memory, the values need not: each row finds its labels as it comes
    place = {name: row for row, name in enumerate(meta[key])}
    positions, stray, total = [], [], 0
    # a broken file ends the stream late: nothing half-written may bear the final name
    with atomic_path(out) as part, progress("embeddings", len(meta)) as tick:
        part.mkdir()
        with open(part / VALUES, "wb") as file:
            _write_header(file, 0, len(features))
            for ids, values in batches:
                found = np.array([place.get(name, -1) for name in ids], np.int64)
                joined = found >= 0
                file.write(np.ascontiguousarray(values if joined.all() else values[joined]).data)
                positions.append(found[joined])
                stray += [str(name) for name in ids[~joined]]
                total += len(ids)
                tick(len(ids))
            rows = np.concatenate(positions) if positions else np.empty(0, np.int64)
            # only now is it known how many rows there are; numpy pads the header for that
            file.seek(0)
            _write_header(file, len(rows), len(features))
        _check_joined(rows, meta[key], stray, total, where)
        write_table(meta.iloc[rows], part / META)
        (part / FEATURES).write_text(json.dumps(features))
    absent = np.ones(len(meta), bool)
    absent[rows] = False
    orphans = Orphans(tuple(stray), tuple(meta[key][absent]))
    for names, lack in ((orphans.without_labels, "metadata"), (orphans.without_values, "profile")):
        if names:
            what = (len(names), key, lack, shorten(names))
            log.warning("%d %s left out for want of a %s: %s", *what)
    return read_profiles(out), orphans


def _check_joined(
    rows: np.ndarray, ids: pd.Series, stray: Sequence[str], total: int, where: str
) -> None:
    """Something was joined, and no id twice."""
    if not total:
        raise InputError(
            f"{where} has a header but no rows", expected="at least one row", cause=BROKEN
        )
    if not len(rows):
        raise SchemaError(
            f"{where}: no id of the embeddings occurs in the metadata",
            expected=f"ids such as {shorten(ids.head(2))}",
            cause="files of two releases",
            fix=f"the embeddings have {shorten(stray[:2])}",
        )
    require_unique(pd.Series(ids.to_numpy()[rows]), "id", f"{where} (embeddings)")


def _write_header(file: BinaryIO, rows: int, features: int) -> None:
    """The header of a C-ordered float32 .npy."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (rows, features)}
    )
