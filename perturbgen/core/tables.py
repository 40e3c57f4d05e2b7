"""Reading tables (CSV, gzip CSV, parquet, h5ad) so that a broken file says what is broken.

And the labels that tables are joined by: a condition is (cell type, compound).
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import BROKEN, require_file, require_folder

CONDITION: Final = ("cell_type", "compound")
VEHICLE: Final = "Dimethyl Sulfoxide"
NAMES: Final = {"sm_name": "compound"}  # Kaggle's and Open Problems' word
_UNPACKED: Final = 1 << 30  # bytes of a gzip file that are always read
_RATIO: Final = 200
_ADVICE: Final = {
    "csv": {"expected": "comma-separated columns with a header"},
    "parquet": {
        "expected": "a whole parquet file",
        "cause": BROKEN,
        "fix": "fetch it again and compare its size with the source's",
    },
    "h5ad": {
        "expected": "an AnnData file (HDF5)",
        "cause": f"another format under this name, or {BROKEN}",
        "fix": "compare its size with the source's, or open it with h5ls",
    },
}


def find_table(path: str | Path, name: str) -> Path:
    """The table ``name`` of a folder, plain or gzipped; a path that is no folder is the table."""
    path = Path(path)
    if not path.is_dir():
        return path
    return find_optional(path, name) or require_file(path / name, "table")


def find_optional(folder: str | Path, name: str) -> Path | None:
    """The table ``name`` or ``name.gz`` of a folder, or None where it has neither."""
    folder = require_folder(folder)
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.exists()]
    return require_file(found[0], "table") if found else None


def read_frame(
    path: str | Path,
    *,
    columns: Sequence[str] = (),
    text: Iterable[str] = (),
    may_be_empty: bool = False,
    missing: Sequence[str] = ("",),
) -> pd.DataFrame:
    """A table that holds ``columns``: parquet, CSV or CSV.gz.

    What follows concerns a CSV, whose fields have no types: ``text`` columns are never taken for
    numbers, and of ``missing`` fields there is only the empty one by default.
    """
    path = require_file(path, "table")
    with open(path, "rb") as start:  # the name may say something else
        is_parquet = path.suffix == ".parquet" or start.read(4) == b"PAR1"
    if is_parquet:
        with open_parquet(path, columns=columns) as file, reading(path, "parquet"):
            return file.read().to_pandas()
    with reading(path, "csv"), _opened(path) as source:
        frame = pd.read_csv(
            source,
            dtype=dict.fromkeys(text, str),
            # A compound or a gene may well be called NA, which pandas would take for a missing
            # value.
            keep_default_na=False,
            na_values=list(missing),
        )
    if not isinstance(frame.index, pd.RangeIndex):
        # pandas takes the surplus for an index, and every field slips one column to the left
        raise InputError(
            f"{path}: rows have more fields than the header, from the first one on: "
            f"{shorten(map(str, [*np.atleast_1d(frame.index[0]), *frame.iloc[0]]), 8)}",
            expected=f"{len(frame.columns)} fields a row",
            cause="an unquoted comma in a name",
            fix='put such a name in "quotes"',
        )
    if path.suffix != ".gz":  # which has a checksum
        _require_whole_text(path, len(frame.columns))
    require_columns(frame.columns, columns, path)
    if frame.empty and not may_be_empty:
        what = f"{path} has a header but no rows"
        raise InputError(what, expected="at least one row", cause=BROKEN)
    return frame


def _require_whole_text(path: Path, fields: int) -> None:
    """There is no NUL in a CSV, and its last row is not cut off.

    pandas reads both without a word. Short rows elsewhere pass: Excel leaves out trailing commas.
    """
    commas, quoted, last = 0, False, b""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if b"\0" in block:
                raise InputError(
                    f"{path} holds NUL bytes",
                    expected="text, in UTF-8",
                    cause=f"text in UTF-16, or {BROKEN}",
                    fix="save it as UTF-8, or fetch it again",
                )
            row = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
            before = 0 if row else commas
            # a quoted name may hold commas and ends of lines, which only a parser tells apart
            quoted = b'"' in block[row:] or (quoted and not row)
            commas, last = before + block.count(b",", row), block[row:]
    if last.strip() and not quoted and commas + 1 < fields:
        raise InputError(
            f"{path} ends within a row: its last one has {commas + 1:,} of {fields:,} fields, and "
            "no end of line",
            expected="whole rows",
            cause=BROKEN,
            fix="fetch it again; of a row that you wrote yourself, end the line",
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A CSV for pandas: its path, or a stream of what gzip unpacks."""
    if path.suffix != ".gz":
        yield path
        return
    with _Unpacked(path) as stream:
        yield stream


class _Unpacked(gzip.GzipFile):
    """A gzip file that ends with an error where it unpacks to more than text ever does.

    Ten kilobytes can unpack to ten gigabytes of zeros, and would take all memory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._path = path
        self._limit = max(_UNPACKED, _RATIO * path.stat().st_size)

    def read1(self, size: int = -1) -> bytes:
        """Some bytes; what pandas calls."""
        if self.tell() > self._limit:
            raise InputError(
                f"{self._path} unpacks to more than {_RATIO} times its size",
                expected="text, which gzip makes 5 to 50 times smaller",
                cause="a file made to fill memory, or one that repeats a single value",
                fix="unpack it with gunzip if it is what you want",
            )
        return super().read1(size)


def read_header(path: str | Path) -> list[str]:
    """The column names of a CSV or CSV.gz, as they stand (pandas would rename repeated ones)."""
    path = require_file(path, "table")
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(path, "csv"), opener(path, "rt", newline="") as handle:
        return next(csv.reader(handle))


def require_columns(found: Iterable[object], wanted: Iterable[str], where: str | Path) -> None:
    """Every wanted column is found; absent ones are named, each with the nearest that is there."""
    names, wanted = [str(name) for name in found], list(wanted)
    absent = [name for name in wanted if name not in names]
    if absent:
        hints = "; ".join(f"{name!r}: {suggest(name, names)}" for name in absent)
        raise SchemaError(
            f"{where} has no column {shorten(absent, 20)}",
            expected=f"columns {shorten(wanted, 20)}",
            cause="a renamed column, or another file under this name",
            fix=hints,
        )


def require_unique(values: pd.Series | pd.Index, what: str, where: str | Path) -> None:
    """No value occurs twice."""
    twice = values[values.duplicated()]
    if len(twice):
        raise SchemaError(
            f"{where} holds {len(twice)} duplicated {what}: {shorten(pd.unique(twice))}",
            expected=f"every {what} once",
            cause="two files were concatenated",
            fix="drop or rename the repeated rows",
        )


def with_compound(table: pd.DataFrame, where: str | Path) -> pd.DataFrame:
    """The table with our name for ``sm_name``; of two columns that disagree neither is taken."""
    if {"sm_name", "compound"} <= set(table.columns):
        one, other = (table[name].astype(str).to_numpy() for name in ("compound", "sm_name"))
        differs = one != other
        if differs.any():
            row = int(differs.argmax())
            raise SchemaError(
                f"{where} has compound {one[row]!r} and sm_name {other[row]!r} in row {row}",
                expected="one column that names the compound, or two that agree",
                fix="drop one of the columns",
            )
        return table.drop(columns="sm_name")
    return table.rename(columns=NAMES)


def conditions_of(
    table: pd.DataFrame, *, compound: str = "compound", unique_in: str | Path = ""
) -> pd.MultiIndex:
    """The condition of each row of obs or of any table that has both columns, as text.

    ``compound`` is what the table calls that column; a condition that occurs twice in the file
    ``unique_in``, where one is named, is an error.
    """
    labels = table[["cell_type", compound]].set_axis(CONDITION, axis=1)
    if unique_in:
        for column, other in (CONDITION, CONDITION[::-1]):
            require_values(labels, [column], other, unique_in)
    index = pd.MultiIndex.from_frame(labels.astype(str))
    if unique_in:
        require_unique(index, "condition", unique_in)
    return index


def require_values(
    frame: pd.DataFrame, columns: Iterable[str], label: str, where: str | Path
) -> None:
    """No missing value in ``columns``; the first offender is named by its ``label`` column."""
    for column in columns:
        # a parquet file can hold empty text, which in a CSV is a missing value
        absent = frame[column].isna() | (frame[column].astype(object) == "")
        if absent.any():
            names = shorten(frame.loc[absent, label], 3)
            raise SchemaError(
                f"{where}: {column!r} is missing in {absent.sum()} rows ({label} {names})",
                expected="a value in every row",
                cause="a truncated file, or a left join that found no partner",
                fix="complete or drop these rows",
            )


def open_parquet(
    path: str | Path, *, columns: Sequence[str] = (), dictionary: Sequence[str] | None = None
) -> pq.ParquetFile:
    """A parquet file with rows and ``columns``; its ``dictionary`` columns are read as codes."""
    path = require_file(path, "parquet file")
    with reading(path, "parquet"):
        metadata = pq.read_metadata(path)
        require_columns(metadata.schema.to_arrow_schema().names, columns, path)
        if metadata.num_rows == 0:
            what = f"{path} has columns but no rows"
            raise InputError(what, expected="at least one row", cause=BROKEN)
        _check_layout(path, metadata)
        # A buffered stream keeps memory small even when the whole file is one row group.
        how = {"read_dictionary": dictionary, "buffer_size": 1 << 20, "pre_buffer": False}
        # of files that have checksums; others are read as they are
        return pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True, **how)


def _check_layout(path: Path, metadata: pq.FileMetaData) -> None:
    """No column ends behind the beginning of the footer.

    Where bytes are missing Arrow takes others for a page's size, and gigabytes of memory for them.
    """
    last = metadata.row_group(metadata.num_row_groups - 1).column(metadata.num_columns - 1)
    begin = last.dictionary_page_offset or last.data_page_offset
    end = begin + last.total_compressed_size
    footer = path.stat().st_size - metadata.serialized_size - len("PAR1") - 4
    if end > footer:
        raise InputError(
            f"{path} is damaged: its last column ends at byte {end:,}, its footer begins at "
            f"{footer:,}",
            **_ADVICE["parquet"],
        )


_Form = Literal["csv", "parquet", "h5ad"]


@contextmanager
def reading(path: Path, form: _Form) -> Iterator[None]:
    """Turn what pandas, Arrow or h5py say of a broken file into an error of ours."""
    try:
        yield
    except MemoryError:  # Arrow's own, too: the file is not to blame
        raise
    except _raised_by(form) as error:
        raise _unreadable(path, form, error) from None


def _raised_by(form: _Form) -> tuple[type[Exception], ...]:
    """What the readers of this form raise; asked only once something was raised."""
    if form == "csv":
        parsing = (pd.errors.EmptyDataError, pd.errors.ParserError, csv.Error, StopIteration)
        return (EOFError, OSError, zlib.error, UnicodeDecodeError, *parsing)
    if form == "parquet":
        # what pandas wrote about types lies beside the data, and is read by Python
        described = (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError)
        return (pa.ArrowException, OSError, *described)
    # anndata raises this for an element it does not know (a newer or a damaged file), and does not
    # export it.
    from anndata._io.specs.registry import IORegistryError

    # What h5py raises depends on where the file is damaged.
    known = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)
    return (*known, IORegistryError)


def _unreadable(path: Path, form: _Form, error: Exception) -> InputError:
    said = str(error).strip()
    if form != "csv":
        first_line = (said or type(error).__name__).splitlines()[0]
        what = f"{path} is not a readable {form} file: {first_line}"
    elif isinstance(error, (EOFError, OSError, zlib.error)):
        what = f"{path} cannot be decompressed: {error}"
        return InputError(what, expected="a whole .csv.gz", cause=BROKEN)
    else:
        what = f"{path} is not a readable CSV: {said}"
    return InputError(what, **_ADVICE[form])
