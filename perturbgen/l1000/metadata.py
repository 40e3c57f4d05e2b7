"""CMap's metadata tables, of GEO or of LINCS2020, and what they say of the samples of a matrix.

Samples are found by id, whatever the ids are, never by place.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import require_file
from perturbgen.l1000.gctx import GctxFile, say_repeated
from perturbgen.l1000.schema import COLUMNS, core_id, decode, level_of, unify, without_missing

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger(__name__)

_SAMPLE_IDS: Final = ("inst_id", "sample_id", "distil_id_single", "cid", "id")
_SIGNATURE_ID: Final = "sig_id"
_NULLS: Final = ["-666", "-666.0", "-666.000000", ""]


def _read_arrow(path: str | Path) -> pa.Table:
    """A tab-separated table: ids as text, the rest as dictionaries, so that a million rows fit."""
    path = require_file(path, "metadata table")
    try:
        try:
            table = _parse_arrow(path, "utf8")
        except pa.ArrowInvalid as error:
            # another encoding mends only a wrong encoding, not a broken table
            if "UTF8" not in str(error):
                raise
            table = _parse_arrow(path, "latin1")
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path} cannot be read as a tab-separated table: {error}",
            expected="a header, and as many tab-separated cells in every line",
            cause="a download that broke off, or a file of another kind",
        ) from error
    if table.num_rows == 0:
        raise InputError(f"{path} has a header but no rows", expected="at least one row")
    return table


def _parse_arrow(path: Path, encoding: str) -> pa.Table:
    """The table in one encoding, gzipped or not."""
    with pa.input_stream(str(path), compression="detect") as probe:
        # whatever the encoding is: the names are ASCII, and Latin-1 reads every byte
        header = probe.read(1 << 16).split(b"\n")[0].decode("latin-1")
    names = [name.strip('"') for name in header.strip("\r\n\ufeff").split("\t")]
    types = dict.fromkeys(names, pa.dictionary(pa.int32(), pa.string()))
    types |= {name: pa.string() for name in names if name in (*_SAMPLE_IDS, _SIGNATURE_ID)}
    convert = pacsv.ConvertOptions(
        column_types=types,
        null_values=_NULLS,
        strings_can_be_null=True,
        # some tables quote every cell
        quoted_strings_can_be_null=True,
    )
    with pa.input_stream(str(path), compression="detect") as source:
        return pacsv.read_csv(
            source,
            read_options=pacsv.ReadOptions(encoding=encoding),
            parse_options=pacsv.ParseOptions(delimiter="\t"),
            convert_options=convert,
            # Arrow reads block by block, each with a dictionary of its own
        ).unify_dictionaries()


@dataclass(frozen=True)
class _Table:
    """A table of samples or signatures in our schema, its ids in Arrow's compact form."""

    path: Path
    kind: Literal["samples", "signatures"]
    ids: pa.Array
    table: pd.DataFrame


def read_metadata(path: str | Path) -> _Table:
    """A metadata file of GEO or LINCS2020, recognised by its columns; ids must be unique."""
    arrow = _read_arrow(path)
    columns = arrow.column_names
    column = next((name for name in (_SIGNATURE_ID, *_SAMPLE_IDS) if name in columns), None)
    if column is None:
        if "pert_id" in columns:
            raise SchemaError(
                f"{path} describes perturbagens, not samples",
                expected="a table with inst_id, sample_id or sig_id",
                fix="give inst_info (GEO) or instinfo_beta (LINCS2020)",
            )
        raise SchemaError(
            f"{path} has none of the id columns "
            f"{', '.join((*_SAMPLE_IDS, _SIGNATURE_ID, 'pert_id'))}",
            expected="inst_info, sig_info or pert_info of GEO, or instinfo, siginfo or "
            "compoundinfo of LINCS2020",
            cause=f"its columns are {shorten(columns, 8)}",
        )
    ids = arrow[column].combine_chunks()
    if len(pc.unique(ids)) < len(ids):
        raise SchemaError(f"{path}: {say_repeated(ids, 'ids')}", expected="unique ids")
    # an id of samples is in tables of either kind: its values tell which
    first = ids.slice(0, 1000).drop_null().to_pylist()
    signatures = column == _SIGNATURE_ID or level_of(first) == "signatures"
    table = unify(arrow.drop_columns([column]).to_pandas())
    return _Table(Path(path), "signatures" if signatures else "samples", ids, table)


def perturbagen_values(path: str | Path, column: str) -> pd.Series:
    """A column of a table of perturbagens by canonical id; several values are ``a|b``."""
    table = _read_arrow(path).to_pandas()
    for name in ("pert_id", column):
        if name not in table:
            raise SchemaError(f"{path} has no column {name!r}", fix=suggest(name, table.columns))
    known = table[["pert_id"]].assign(value=without_missing(table[column])).dropna().astype(str)
    known["pert_id"] = known["pert_id"].map(core_id)
    joined = known.groupby("pert_id")["value"].agg(lambda values: "|".join(sorted({*values})))
    return joined.rename(column).rename_axis("perturbagen")


def describe_samples(
    file: GctxFile, ids: pa.Array, tables: Sequence[_Table], *, keep_unknown: bool = False
) -> pd.DataFrame:
    """The samples of a file in our schema, in file order: by the tables, else its own fields."""
    if tables:
        return _from_tables(file.path, ids, tables, keep_unknown=keep_unknown)
    if file.fields("samples"):
        return unify(file.metadata("samples").reset_index(drop=True))
    if level_of(ids.slice(0, 1000).to_pylist()) != "samples":
        raise SchemaError(
            f"{file.path} says nothing of its samples, nor do their ids: "
            f"{shorten(ids[:2].to_pylist())}",
            expected="metadata within the file, or a table beside it",
            fix="--meta FILE (inst_info of GEO, instinfo_beta of LINCS2020; sig_info for level 5)",
        )
    _log.warning(
        "%s: no metadata; ids tell plate, well, cell line and time, nothing the perturbagens",
        file.path,
    )
    return _from_ids(ids.to_pylist())


def _from_tables(
    path: Path, ids: pa.Array, tables: Sequence[_Table], *, keep_unknown: bool
) -> pd.DataFrame:
    """Rows of the tables for the ids, from the first table that has them."""
    found: list[tuple[_Table, np.ndarray]] = []
    missing = np.ones(len(ids), bool)
    for table in tables:
        places = pc.index_in(ids, value_set=table.ids).fill_null(-1).to_numpy(zero_copy_only=False)
        places = np.where(missing, places, -1)
        missing &= places < 0
        if (places >= 0).any():
            found.append((table, places))
    if missing.any():
        unknown = ids.filter(pa.array(missing))
        _complain(path, unknown, len(ids), tables, keep_unknown=keep_unknown)
    if len(found) == 1:
        return _take(*found[0])
    parts = [
        _take(table, places).iloc[places >= 0].set_axis(np.flatnonzero(places >= 0))
        for table, places in found
    ]
    joined = join_rows([*parts, pd.DataFrame(index=np.flatnonzero(missing))])
    return joined.sort_index().reindex(range(len(ids)))


def _take(found: _Table, places: np.ndarray) -> pd.DataFrame:
    """Rows of a table by position; -1 is a row of which nothing is known."""
    rows = found.table.take(np.maximum(places, 0)).reset_index(drop=True)
    if (places < 0).any():
        # kept apart: where() would leave NaN, which counts as true
        control = rows["control"].to_numpy() & (places >= 0)
        rows = rows.where(pd.Series(places >= 0)).assign(control=control)
    return rows


def join_rows(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; text of several dictionaries becomes one dictionary."""
    table = pd.concat([_text_as(object, part) for part in parts if part.shape[1]])
    return _text_as("category", table)


def _text_as(dtype: Any, table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns of text in another form."""
    text = [name for name in table if table[name].dtype in (object, "category")]
    return table.astype(dict.fromkeys(text, dtype))


def _complain(
    path: Path, missing: pa.Array, total: int, tables: Sequence[_Table], *, keep_unknown: bool
) -> None:
    """Ids without metadata are counted and the first named; a mix-up of levels is called that."""
    more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    names = shorten(missing.slice(0, 5).to_pylist()) + more
    what = f"{len(missing):,} of {total:,} ids of {path} are in no metadata table: {names}"
    level, kinds = level_of(missing.slice(0, 1000).to_pylist()), sorted({t.kind for t in tables})
    # the usual mistake with CMap's files, so it is told apart from a missing table
    if len(missing) == total and level != "unknown" and level not in kinds:
        levels = {"samples": "samples (levels 1 to 4)", "signatures": "signatures (level 5)"}
        raise SchemaError(
            f"{path} holds {levels[level]}, but the metadata describe {' and '.join(kinds)}; "
            f"{what}",
            expected=f"a table of {level}",
            cause="sig_info given for a level-4 matrix, or inst_info for a level-5 matrix",
            fix="inst_info (GEO) or instinfo_beta for levels 3 and 4, sig_info or siginfo_beta for "
            "level 5",
        )
    if not keep_unknown or len(missing) == total:
        raise SchemaError(
            what,
            expected=f"all of them in {shorten([table.path.name for table in tables])}",
            cause="metadata of another release, or of one part of the data only",
            fix="give the other tables too (--meta may be repeated), or keep such samples with "
            "--keep-unknown",
        )
    _log.warning("%s; they are kept, and nothing is known of them", what)


_SAMPLE: Final = re.compile(
    r"(?P<plate>(?P<project>[^_:]+)_(?P<cell_line>[^_:]+)_(?P<time>\d+(\.\d+)?)H_"
    r"(?P<replicate>X[^_:]*))"
    r"(_(?P<batch>[^_:]+))?(_[^:]*)?:(?P<well>[A-P]\d{1,2})",
    re.IGNORECASE,
)


def _from_ids(ids: Sequence[str]) -> pd.DataFrame:
    """What sample ids such as ``LJP005_A375_24H_X1_B19:A03`` say, in our schema."""
    found = [_SAMPLE.fullmatch(name) for name in ids]
    rows = [match.groupdict() if match else {} for match in found]
    table = pd.DataFrame(rows, columns=[*COLUMNS], index=range(len(ids)), dtype=object)
    table = table.assign(time=table["time"].astype(float), dose=np.nan, control=False)
    return _text_as("category", table)


def landmarks() -> pd.DataFrame:
    """The 978 landmark genes: ``gene_id`` (Entrez) and ``gene_symbol``, in CMap's order."""
    # Entrez ids are names, not numbers
    return pd.read_csv(Path(__file__).with_name("landmarks.csv"), dtype=str)


def read_genes(path: str | Path | None = None) -> pd.DataFrame:
    """Wanted genes from a list of ids (.grp) or the landmarks of a gene table; None is the 978."""
    if path is None:
        return landmarks()
    path = require_file(path, "list of genes")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if "\t" not in lines[0]:
        ids = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        unique = list(dict.fromkeys(ids))
        symbols = landmarks().set_index("gene_id")["gene_symbol"].reindex(unique)
        return pd.DataFrame({"gene_id": unique, "gene_symbol": symbols.fillna("").to_numpy()})
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    # LINCS2020's table, then GEO's
    for flag, yes, id_column in (
        ("feature_space", "landmark", "gene_id"),
        ("pr_is_lm", "1", "pr_gene_id"),
    ):
        if {flag, id_column} <= {*table.columns}:
            chosen = table.loc[table[flag] == yes, [id_column, id_column.replace("_id", "_symbol")]]
            return chosen.set_axis(["gene_id", "gene_symbol"], axis=1).reset_index(drop=True)
    raise SchemaError(
        f"{path} is no gene table: its columns are {shorten(table.columns, 8)}",
        expected="gene_id and feature_space (LINCS2020), or pr_gene_id and pr_is_lm (GEO)",
    )


def read_plate(path: str | Path, *, metadata: str | Path | None = None) -> AnnData:
    """A GCTX or GCT file as AnnData (float32), samples in our columns, genes by Entrez id.

    Samples are described by the ``metadata`` table where one is given, else by the file's own
    fields; genes have their own ids where the file does not tell Entrez's.
    """
    import anndata

    with GctxFile(path) as file:
        tables = [] if metadata is None else [read_metadata(metadata)]
        obs = describe_samples(file, file.arrow_samples(), tables).set_axis(file.samples)
        var, known = file.var, landmarks().set_index("gene_id")["gene_symbol"]
        # GEO's names, then LINCS2020's
        ids, symbols = (
            next((var[name] for name in (f"pr_{what}", what) if name in var), None)
            for what in ("gene_id", "gene_symbol")
        )
        genes = file.genes if ids is None else pd.Index([*map(decode, ids)], dtype=object)
        named = known.reindex(genes) if symbols is None else symbols
        about = {"gene_symbol": named.to_numpy(), "landmark": genes.isin(known.index)}
        var = pd.DataFrame(about, index=genes)
        return anndata.AnnData(file.read(), obs=obs.rename_axis(None), var=var)
