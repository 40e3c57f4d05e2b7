"""GCT 1.2 and 1.3, the text form of CMap's matrices, one gene a line: read and written."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np

from perturbgen.core.errors import InputError
from perturbgen.core.files import BROKEN, atomic_path
from perturbgen.l1000.hdf5 import Axis, values_of
from perturbgen.l1000.schema import MISSING, MISSING_TEXT

if TYPE_CHECKING:
    from anndata import AnnData

# Numbers that may be parsed from text; "1E10" is left alone, since wells and plates look like that.
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]\d+)?")
# Words that cmapPy takes for NaN.
_NA_WORDS: Final = "NA N/A #N/A #NA NaN nan -NaN -nan NULL null na n/a #VALUE! #N/A!"
_NA_TEXT: Final = frozenset(["", *_NA_WORDS.split()])


@dataclass(frozen=True)
class _Header:
    """The first lines of a GCT file; ``first_row`` is the line (from 0) of the first gene."""

    version: str
    genes: int
    samples: list[str]
    gene_fields: list[str]
    sample_fields: dict[str, list[str]]
    first_row: int


class GctText:
    """A GCT file, read line by line: the header at once, genes when they are asked for."""

    dtype = np.dtype(np.float32)
    chunks: tuple[int, int] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        with _open_text(path) as handle:
            self.header = _read_header(handle, path)
        self.version = self.header.version
        self.format = f"gct {self.version.lstrip('#')}"
        self.shape = (len(self.header.samples), self.header.genes)
        # cells of a line: the gene's id, its fields, its values
        self.columns = 1 + len(self.header.gene_fields) + self.shape[0]
        self.kept: tuple[np.ndarray, np.ndarray] | None = None

    @cached_property
    def gene_table(self) -> list[list[str]]:
        """The id and the fields of every gene; this pass also checks that the file is complete."""
        width = 1 + len(self.header.gene_fields)
        # no further than the fields: behind them a line has a cell for every sample
        return [line.split("\t", width)[:width] for line in self.rows()]

    def rows(self) -> Iterator[str]:
        """The lines of the genes, each with as many cells as the header promises."""
        found = 0
        with _open_text(self.path) as handle:
            for number, line in enumerate(handle):
                text = line.rstrip("\r\n")
                if number < self.header.first_row or not text.strip():
                    continue
                # counted, not split: of most genes no value is wanted
                cells = text.count("\t") + 1
                if cells != self.columns:
                    text = self.trimmed(text, number, cells)
                found += 1
                yield text
        if found != self.header.genes:
            above = self.header.first_row
            raise self.broken(
                f"line 2 promises {above - 3} lines of sample metadata and "
                f"{self.header.genes:,} genes, "
                f"{above + self.header.genes:,} lines in all; the file holds {above + found:,}"
            )

    def trimmed(self, text: str, number: int, cells: int) -> str:
        """A line without the empty cells a spreadsheet adds at its end."""
        parts = text.split("\t")
        if cells < self.columns or "".join(parts[self.columns :]).strip():
            raise self.broken(
                f"line {number + 1} has {cells:,} cells, the header says {self.columns:,}"
            )
        return "\t".join(parts[: self.columns])

    def broken(self, what: str) -> InputError:
        """An incomplete file."""
        return InputError(
            f"{self.path}: {what}",
            expected="a complete GCT",
            cause="a copy that broke off or was cut",
        )

    def raw_ids(self, axis: Axis) -> np.ndarray:
        """The ids of an axis, in file order."""
        genes = axis == "genes"
        ids = [row[0].strip() for row in self.gene_table] if genes else self.header.samples
        return np.array(ids, dtype=object)

    def field_names(self, axis: Axis) -> list[str]:
        """The metadata fields of an axis."""
        return [*(self.header.sample_fields if axis == "samples" else self.header.gene_fields)]

    def field(self, axis: Axis, name: str, *, convert_missing: bool = True) -> np.ndarray:
        """One metadata field: numbers where all that is not missing is a number, else text."""
        if axis == "samples":
            cells = self.header.sample_fields[name]
        else:
            place = 1 + self.header.gene_fields.index(name)
            cells = [row[place] for row in self.gene_table]
        text: list[str | None] = [value.strip() for value in cells]
        if convert_missing:
            text = [None if MISSING_TEXT.fullmatch(str(value)) else value for value in text]
        known = [value for value in text if value is not None and value not in _NA_TEXT]
        if not known or not all(_NUMBER.fullmatch(value.lower()) for value in known):
            return np.array(text, dtype=object)
        numbers = np.array([math.nan if v is None or v in _NA_TEXT else float(v) for v in text])
        whole = len(known) == len(numbers) and all(value.lstrip("+-").isdigit() for value in known)
        return numbers.astype(np.int64) if whole else numbers

    def block(self, samples: slice, genes: np.ndarray | None) -> np.ndarray:
        """Values of consecutive samples; the wanted genes of all are parsed once and kept."""
        wanted = np.arange(self.shape[1]) if genes is None else genes
        # a line is a gene: without this each block of samples would be a pass over the whole file
        if self.kept is None or not np.array_equal(self.kept[0], wanted):
            self.kept = (wanted.copy(), self.parse(wanted))
        return self.kept[1][:, samples].T

    def parse(self, genes: np.ndarray) -> np.ndarray:
        """The values of some genes, (genes, samples); only they are ever in memory."""
        values = np.empty((len(genes), self.shape[0]), np.float32)
        places: dict[int, list[int]] = {}
        for place, gene in enumerate(genes.tolist()):
            # a list, since a gene may be asked for twice
            places.setdefault(gene, []).append(place)
        for position, line in enumerate(self.rows()):
            if position in places:
                values[places[position]] = self.numbers(line)
        return values

    def numbers(self, line: str) -> np.ndarray:
        """The values of a line; an empty cell and the usual words for missing are NaN."""
        cells = line.split("\t")
        text = cells[1 + len(self.header.gene_fields) :]
        try:
            # the usual line at once; words for missing are looked for only where this fails
            return np.array(text, dtype=np.float32)
        except ValueError:
            known = ["nan" if value.strip() in _NA_TEXT else value for value in text]
        for sample, value in zip(self.header.samples, known, strict=True):
            try:
                float(value)
            except ValueError:
                raise InputError(
                    f"{self.path}: gene {cells[0]!r} has {value!r} in sample {sample!r}",
                    expected="a number",
                ) from None
        return np.array(known, dtype=np.float32)

    def close(self) -> None:
        """Forget the values; the file is open only while it is read."""
        self.kept = None


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """A text file, gzipped or not, in UTF-8 or in Latin-1, which reads every byte."""
    with open(path, "rb") as probe:
        # by its first bytes: names of files lie
        zipped = probe.read(2) == b"\x1f\x8b"
    try:
        with (gzip.open if zipped else open)(
            path, "rt", encoding=_text_encoding(path, zipped), newline=""
        ) as handle:
            yield handle
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged: {error}", cause=BROKEN) from error


def _text_encoding(path: Path, zipped: bool) -> str:
    """UTF-8 where the first megabyte is UTF-8 (metadata come first), else Latin-1."""
    with (gzip.open if zipped else open)(path, "rb") as handle:
        start = handle.read(1 << 20)
    try:
        # to the last line end, since the megabyte may cut a character in two
        start[: start.rfind(b"\n") + 1].decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    # takes off the mark that a spreadsheet puts at the beginning
    return "utf-8-sig"


def _read_header(handle: IO[str], path: Path) -> _Header:
    """The version, the sizes, the names, and for 1.3 the lines of sample metadata."""
    # a spreadsheet adds quotes, and blank cells to the right
    version = handle.readline().split("\t")[0].strip().strip('"')
    if version not in ("#1.2", "#1.3"):
        raise InputError(f"{path} begins with {version[:20]!r}", expected="#1.2 or #1.3 (GCT)")
    line, count = handle.readline(), 4 if version == "#1.3" else 2
    sizes = [cell.strip() for cell in line.split("\t")][:count]
    if len(sizes) < count or not all(map(str.isdigit, sizes)):
        raise InputError(
            f"{path}: line 2 is {line.strip()!r}",
            expected=f"{count} whole numbers separated by tabs",
        )
    # 1.2 has one field of the genes, Description, and none of the samples
    genes, samples, gene_fields, sample_fields = (*map(int, sizes), 1, 0)[:4]
    names = [name.strip() for name in handle.readline().rstrip("\r\n").split("\t")]
    while len(names) > 1 + gene_fields + samples and not names[-1]:
        names.pop()
    if len(names) != 1 + gene_fields + samples:
        raise InputError(
            f"{path}: {len(names)} column names, but line 2 promises {1 + gene_fields + samples}",
            expected=f"an id, {gene_fields} gene fields and {samples} samples",
        )
    first = 1 + gene_fields
    fields: dict[str, list[str]] = {}
    for _ in range(sample_fields):
        cells = handle.readline().rstrip("\r\n").split("\t")
        if len(cells) < len(names):
            raise InputError(
                f"{path} ends within the sample metadata", cause="a copy that broke off"
            )
        # what lies between, na or -666, fills the columns of the gene fields
        fields[cells[0].strip()] = cells[first : len(names)]
    return _Header(version, genes, names[first:], names[1:first], fields, 3 + sample_fields)


def write_gct(data: AnnData, path: str | Path, *, version: str = "1.3") -> None:
    """Write an AnnData as GCT text; 1.2 keeps one field of the genes and none of the samples."""
    if version not in ("1.2", "1.3"):
        raise InputError(f"GCT {version} does not exist", expected="1.2 or 1.3")
    var, obs = data.var, data.obs
    if version == "1.2":
        # the column Description is not optional in 1.2
        var = var.iloc[:, :1] if var.shape[1] else var.assign(Description="na")
        sizes, names = [data.n_vars, data.n_obs], ["Name", "Description", *data.obs_names]
    else:
        sizes = [data.n_vars, data.n_obs, var.shape[1], obs.shape[1]]
        names = ["id", *var.columns, *data.obs_names]
    with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="\n") as handle:
        for cells in ([f"#{version}"], sizes, names):
            handle.write("\t".join(map(str, cells)) + "\n")
        for name in obs.columns if version == "1.3" else ():
            cells = ["na"] * var.shape[1] + [_cell(value) for value in obs[name]]
            handle.write("\t".join([str(name), *cells]) + "\n")
        rows = var.astype(object).itertuples(index=False)
        for gene, about, values in zip(var.index, rows, values_of(data).T, strict=True):
            # nine digits give every float32 back to the bit
            cells = [*map(_cell, about), *(f"{value:.9g}" for value in values)]
            handle.write("\t".join([str(gene), *cells]) + "\n")


def _cell(value: object) -> str:
    """A cell of a text file; what is missing is -666, a tab or a line break becomes a blank."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return str(MISSING)
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)
