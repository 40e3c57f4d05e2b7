"""Embeddings too large to hold: from csv or parquet to a float32 memory map, joined to their labels on the way."""

from __future__ import annotations

import gzip
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perturbgen.core.console import progress
from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.tables import BROKEN, csv_errors, parquet_errors, read_header, require_unique
from perturbgen.profiles.table import Orphans, Profiles, read_profiles, require_replaceable

log = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes of csv parsed at a time: they stay in the cache
_ROWS = 4096  # rows of parquet read at a time
_MISSING = frozenset(["", "na", "n/a", "nan", "-nan", "none", "null"])  # in any case

_Batch = tuple[np.ndarray, np.ndarray]  # ids (rows,) and float32 values (rows, features)
_Parsed = tuple[
    np.ndarray, np.ndarray, tuple[int, int] | None
]  # the same, and line and column of a bad field


def csv_batches(
    path: str | Path, *, key: str, chunk: int = _CHUNK
) -> tuple[list[str], Iterator[_Batch]]:
    """The features of an embeddings csv(.gz) and its rows in batches; ``key`` is the column of ids.

    One header, then ids and decimal numbers, which may be quoted; no id holds a line end. ``chunk`` bytes are parsed at
    a time. Values are those of ``float32(float(text))``.
    """
    path = require_file(path, "embeddings table")
    header = read_header(path)
    features = _feature_columns(header, key, path)

    def batches() -> Iterator[_Batch]:
        place = header.index(key)
        for piece, (ids, values, bad) in enumerate(
            _parsed_ahead(_whole_lines(path, chunk), len(header), place)
        ):
            if bad is not None:
                before = sum(
                    lines.count(b"\n") for lines in islice(_whole_lines(path, chunk), piece)
                )
                raise _bad_field(path, header, place, before + bad[0] + 2, bad[1])
            yield ids, values

    return features, batches()


def _parsed_ahead(
    pieces: Iterator[bytes], columns: int, place: int, *, workers: int = 2
) -> Iterator[_Parsed]:
    """Each piece parsed, in order; the next ones are parsed meanwhile (the kernel lets other threads run)."""
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Parsed]] = deque()
        for piece in pieces:
            waiting.append(pool.submit(parse_lines, piece, columns, place))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _whole_lines(path: Path, chunk: int) -> Iterator[bytes]:
    """The file after its header, in pieces of about ``chunk`` bytes that end with a line, each followed by PAD."""
    from perturbgen.images.csv_kernel import PAD

    with csv_errors(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        file.readline()
        rest = b""
        while piece := file.read(chunk):
            end = piece.rfind(b"\n") + 1
            if end:
                yield b"".join((rest, memoryview(piece)[:end], PAD))
            rest = piece[end:] if end else rest + piece
        if rest:
            yield b"".join((rest, b"\n", PAD))


def parse_lines(text: bytes, columns: int, place: int) -> _Parsed:
    """Ids and values of whole lines, and the line and column of the first field that is no number, or None.

    ``text`` ends with PAD.
    """
    from perturbgen.images.csv_kernel import parse_rows

    most = len(text) // columns + 1  # a row has a byte for each comma and the line end
    values, spans = np.empty((most, columns - 1), np.float32), np.empty((most, 2), np.int64)
    unsure = np.empty((values.size, 4), np.int32)
    rows, column, left = parse_rows(
        np.frombuffer(text, np.uint8), columns, place, values, spans, unsure
    )
    bad = (rows, column) if column >= 0 else None
    for row, at, start, end in unsure[:left].tolist():
        try:
            values[row, at] = _number(text[start:end])
        except ValueError:
            bad = (row, at + (at >= place))
            break
    if bad is not None:
        filled = [i for i, line in enumerate(text.split(b"\n")) if line.strip(b"\r")]
        return np.empty(0, object), values, (filled[bad[0]], bad[1])
    ids = [_plain(text[start:end]) for start, end in spans[:rows].tolist()]
    return np.array(ids, dtype=object), values[:rows], None


def _number(field: bytes) -> np.float32:
    """A field that is a word, quoted or hard to round; ValueError if it is no number."""
    text = _plain(field).strip()
    if text.lower() in _MISSING:
        return np.float32(np.nan)
    if "_" in text:  # which Python allows in numbers, and nobody else
        raise ValueError(text)
    with np.errstate(over="ignore"):
        return np.float32(float(text))


def _plain(field: bytes) -> str:
    """The text of a field, without quotes around it."""
    text = field.decode()
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def _bad_field(path: Path, header: Sequence[str], place: int, line: int, column: int) -> InputError:
    """The error that names the line and the column."""
    what = (
        f"column {header[column]!r} is missing or no number"
        if column < len(header)
        else "there are too many fields"
    )
    return InputError(
        f"{path}, line {line}: {what}",
        expected=f"{header[place]} and {len(header) - 1} numbers in every line",
        cause=BROKEN,
        fix="compare the file's size with the source's",
    )


def parquet_batches(
    paths: Sequence[Path], *, key: str, rows: int = _ROWS
) -> tuple[list[str], Iterator[_Batch]]:
    """The same for one or more parquet files, which must have the same columns."""
    if not paths:
        raise InputError("no parquet file of embeddings", expected="one or more")
    with parquet_errors(paths[0]):
        features = _feature_columns(
            pq.read_schema(require_file(paths[0], "embeddings")).names, key, paths[0]
        )

    def batches() -> Iterator[_Batch]:
        for path in paths:
            with parquet_errors(path):
                file = pq.ParquetFile(path)
                absent = {key, *features} - set(file.schema_arrow.names)
                if absent:
                    raise SchemaError(
                        f"{path} has not the columns of {paths[0].name}: {shorten(sorted(absent))}"
                    )
                for batch in file.iter_batches(batch_size=rows, columns=[key, *features]):
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
    for i, name in enumerate(features):
        values[:, i] = batch.column(name).to_numpy(zero_copy_only=False)
    return batch.column(key).to_numpy(zero_copy_only=False), values


def stream_profiles(
    features: Sequence[str],
    batches: Iterable[_Batch],
    meta: pd.DataFrame,
    *,
    key: str,
    out: str | Path,
    where: str,
) -> tuple[Profiles, Orphans]:
    """Write a profile folder of the rows whose id is in ``meta``, in the order they come; who has no partner is
    reported.

    Memory is that of a batch, the labels and the ids; the values go to disk as they are read.
    """
    require_replaceable(out)
    require_unique(meta[key], key, f"{where} (metadata)")
    place = {name: row for row, name in enumerate(meta[key])}
    positions, stray, total = [], [], 0
    with atomic_path(out) as part, progress("embeddings", len(meta)) as tick:
        part.mkdir()
        with open(part / "values.npy", "wb") as file:
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
            file.seek(0)
            _write_header(file, len(rows), len(features))
        _check_joined(rows, meta[key], stray, total, where)
        meta.iloc[rows].to_parquet(part / "meta.parquet", index=False)
        (part / "features.json").write_text(json.dumps(list(features)))
    absent = np.ones(len(meta), bool)
    absent[rows] = False
    orphans = Orphans(tuple(stray), tuple(meta[key][absent]), key)
    orphans.report()
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


def _write_header(file, rows: int, features: int) -> None:  # type: ignore[no-untyped-def]  # a binary file
    """The header of a C-ordered float32 .npy; numpy pads it so that the number of rows can be written at the end."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (rows, features)}
    )
