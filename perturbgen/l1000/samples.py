"""What the metadata tables say of the samples of one matrix, and which columns are wanted genes.

Both are found by id, whatever the ids are, never by place.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.files import require_file
from perturbgen.l1000.fields import Level, decode, level_of, parse_samples
from perturbgen.l1000.gctx import GctxFile
from perturbgen.l1000.metadata import COLUMNS, MetadataTable, unify

_log = logging.getLogger(__name__)
_GENE_IDS: Final = ("pr_gene_id", "gene_id", "pr_gene_symbol", "gene_symbol")
_SAID_BY_ID = ("plate", "batch", "well", "cell_line", "time")


def describe_samples(
    file: GctxFile, ids: pa.Array, tables: Sequence[MetadataTable], *, keep_unknown: bool = False
) -> pd.DataFrame:
    """The samples of a file in our schema, in file order: by the tables, else its own fields."""
    level = level_of(ids.slice(0, 1000).to_pylist())
    if tables:
        return _from_tables(file.path, ids, tables, level, keep_unknown=keep_unknown)
    if file.fields("samples"):
        return unify(file.metadata("samples").reset_index(drop=True))
    if level != "samples":
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
    return _from_ids(ids)


def _from_tables(
    path: Path, ids: pa.Array, tables: Sequence[MetadataTable], level: Level, *, keep_unknown: bool
) -> pd.DataFrame:
    """Rows of the tables for the ids, from the first table that has them."""
    found: list[tuple[MetadataTable, np.ndarray]] = []
    missing = np.ones(len(ids), bool)
    for table in tables:
        places = pc.index_in(ids, value_set=table.ids).fill_null(-1).to_numpy(zero_copy_only=False)
        places = np.where(missing, places, -1)
        missing &= places < 0
        if (places >= 0).any():
            found.append((table, places))
    if missing.any():
        _complain(
            path, ids.filter(pa.array(missing)), len(ids), tables, level, keep_unknown=keep_unknown
        )
    if len(found) == 1:
        return _take(*found[0])
    parts = [
        _take(table, places).iloc[places >= 0].set_axis(np.flatnonzero(places >= 0))
        for table, places in found
    ]
    return (
        join_rows([*parts, pd.DataFrame(index=np.flatnonzero(missing))])
        .sort_index()
        .reindex(range(len(ids)))
    )


def _take(found: MetadataTable, places: np.ndarray) -> pd.DataFrame:
    """Rows of a table by position; -1 is a row of which nothing is known."""
    rows = found.table.take(np.maximum(places, 0)).reset_index(drop=True)
    if (places < 0).any():
        # kept apart: where() would leave NaN, which counts as true
        control = rows["control"].to_numpy() & (places >= 0)
        rows = rows.where(pd.Series(places >= 0)).assign(control=control)
    return rows


def join_rows(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; text of several dictionaries becomes one dictionary."""
    parts = [part for part in parts if part.shape[1]]
    table = pd.concat([part.astype(dict.fromkeys(_text_columns(part), object)) for part in parts])
    return table.astype(dict.fromkeys(_text_columns(table), "category"))


def _text_columns(table: pd.DataFrame) -> list[str]:
    """The columns that hold text."""
    return [
        name
        for name in table.columns
        if table[name].dtype == object or table[name].dtype == "category"
    ]


def _complain(
    path: Path,
    missing: pa.Array,
    total: int,
    tables: Sequence[MetadataTable],
    level: Level,
    *,
    keep_unknown: bool,
) -> None:
    """Ids without metadata are counted and the first named; a mix-up of levels is called that."""
    names = shorten(missing.slice(0, 5).to_pylist()) + (
        f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    )
    what = f"{len(missing):,} of {total:,} ids of {path} are in no metadata table: {names}"
    kinds = sorted({table.kind for table in tables})
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


def _from_ids(ids: pa.Array) -> pd.DataFrame:
    """What the ids themselves say, in our schema."""
    parsed = parse_samples(ids.to_pylist()).reset_index(drop=True)
    table = pd.DataFrame(
        {name: pd.Series(None, index=parsed.index, dtype=object) for name in COLUMNS}
    )
    table = table.assign(**{name: parsed[name] for name in _SAID_BY_ID}, dose=np.nan, control=False)
    return table.astype(dict.fromkeys(_text_columns(table), "category"))


_LANDMARKS: Final = Path(__file__).with_name("landmarks.csv")


def landmarks() -> pd.DataFrame:
    """The 978 landmark genes: ``gene_id`` (Entrez) and ``gene_symbol``, in CMap's order."""
    # Entrez ids are names, not numbers
    return pd.read_csv(_LANDMARKS, dtype=str)


def read_genes(path: str | Path | None = None) -> pd.DataFrame:
    """Wanted genes from a list of ids (.grp) or the landmarks of a gene table; None is the 978."""
    if path is None:
        return landmarks()
    path = require_file(path, "list of genes")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if "\t" in lines[0]:
        return _landmarks_of(pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False), path)
    ids = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    unique = list(dict.fromkeys(ids))
    symbols = landmarks().set_index("gene_id")["gene_symbol"].reindex(unique)
    return pd.DataFrame({"gene_id": unique, "gene_symbol": symbols.fillna("").to_numpy()})


def _landmarks_of(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The landmarks of GEO's or LINCS2020's gene table."""
    if "feature_space" in table.columns and "gene_id" in table.columns:
        chosen = table[table["feature_space"] == "landmark"]
        return chosen[["gene_id", "gene_symbol"]].reset_index(drop=True)
    if "pr_is_lm" in table.columns and "pr_gene_id" in table.columns:
        names = {"pr_gene_id": "gene_id", "pr_gene_symbol": "gene_symbol"}
        return (
            table[table["pr_is_lm"] == "1"][[*names]].rename(columns=names).reset_index(drop=True)
        )
    raise SchemaError(
        f"{path} is no gene table: its columns are {shorten(table.columns, 8)}",
        expected="gene_id and feature_space (LINCS2020), or pr_gene_id and pr_is_lm (GEO)",
    )


def find_genes(file: GctxFile, wanted: pd.DataFrame) -> np.ndarray:
    """Positions of the wanted genes, -1 where there is none; ids or symbols, what fits best."""
    best = np.full(len(wanted), -1)
    for names in _candidates(file):
        usable = names[~names.duplicated()]
        places = np.flatnonzero(~names.duplicated())
        for column in ("gene_id", "gene_symbol"):
            found = usable.get_indexer(pd.Index(wanted[column], dtype=object))
            found = np.where(found >= 0, places[found], -1)
            if (found >= 0).sum() > (best >= 0).sum():
                best = found
    return best


def _candidates(file: GctxFile) -> list[pd.Index]:
    """The file's ids of genes, and the columns beside them that are ids as well."""
    known = [name for name in _GENE_IDS if name in file.fields("genes")]
    table = file.metadata("genes", known) if known else pd.DataFrame()
    return [
        file.genes,
        *(pd.Index([decode(value) for value in table[name]], dtype=object) for name in known),
    ]


def require_genes(file: GctxFile, wanted: pd.DataFrame) -> np.ndarray:
    """As :func:`find_genes`, but an error where the file has none of them."""
    found = find_genes(file, wanted)
    if (found >= 0).any():
        return found
    as_samples = (
        file.samples.isin(wanted["gene_id"]).sum() + file.samples.isin(wanted["gene_symbol"]).sum()
    )
    if as_samples:
        raise SchemaError(
            f"{file.path} has its genes where the samples belong: {as_samples:,} of the wanted "
            "genes are sample ids",
            expected="genes in /0/META/ROW, samples in /0/META/COL",
            cause="a file written from a transposed table",
            fix="--transposed, or GctxFile(path, transposed=True)",
        )
    raise SchemaError(
        f"{file.path} holds none of the {len(wanted):,} wanted genes; its ids are "
        f"{shorten(file.genes, 3)}",
        expected=f"ids such as {shorten(wanted['gene_id'], 3)} or "
        f"{shorten(wanted['gene_symbol'], 3)}",
        cause="ids of another kind (Ensembl, probes without a gene column), or another assay",
        fix="name the wanted genes as the file does: --genes FILE, one id a line",
    )
