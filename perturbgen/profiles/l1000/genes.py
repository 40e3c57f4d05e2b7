"""Which columns of a file are the wanted genes: found by id, whatever the ids are, never by place."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten
from perturbgen.files import require_file
from perturbgen.profiles.l1000.fields import decode
from perturbgen.profiles.l1000.gctx import GctxFile
from perturbgen.profiles.l1000.vocabulary import GENE_IDS

LANDMARKS: Final = Path(__file__).with_name("landmarks.csv")


def landmarks() -> pd.DataFrame:
    """The 978 landmark genes: ``gene_id`` (Entrez) and ``gene_symbol``, in CMap's order."""
    return pd.read_csv(LANDMARKS, dtype=str)


def read_genes(path: str | Path | None = None) -> pd.DataFrame:
    """Wanted genes from a list of ids (.grp) or from a gene table, whose landmarks are taken; None is the 978."""
    if path is None:
        return landmarks()
    path = require_file(path, "list of genes")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if "\t" in lines[0]:
        return landmarks_of(pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False), path)
    ids = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    unique = list(dict.fromkeys(ids))
    symbols = landmarks().set_index("gene_id")["gene_symbol"].reindex(unique)
    return pd.DataFrame({"gene_id": unique, "gene_symbol": symbols.fillna("").to_numpy()})


def landmarks_of(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The landmarks of GEO's or LINCS2020's gene table."""
    if "feature_space" in table.columns and "gene_id" in table.columns:
        chosen = table[table["feature_space"] == "landmark"]
        return chosen[["gene_id", "gene_symbol"]].reset_index(drop=True)
    if "pr_is_lm" in table.columns and "pr_gene_id" in table.columns:
        names = {"pr_gene_id": "gene_id", "pr_gene_symbol": "gene_symbol"}
        return table[table["pr_is_lm"] == "1"][[*names]].rename(columns=names).reset_index(drop=True)
    raise SchemaError(
        f"{path} is no gene table: its columns are {shorten(table.columns, 8)}",
        expected="gene_id and feature_space (LINCS2020), or pr_gene_id and pr_is_lm (GEO)",
    )


def find_genes(file: GctxFile, wanted: pd.DataFrame) -> np.ndarray:
    """Positions in the file of the wanted genes, -1 where it has none; ids or symbols, whichever fit best."""
    best = np.full(len(wanted), -1)
    for names in candidates(file):
        usable = names[~names.duplicated()]
        places = np.flatnonzero(~names.duplicated())
        for column in ("gene_id", "gene_symbol"):
            found = usable.get_indexer(pd.Index(wanted[column], dtype=object))
            found = np.where(found >= 0, places[found], -1)
            if (found >= 0).sum() > (best >= 0).sum():
                best = found
    return best


def candidates(file: GctxFile) -> list[pd.Index]:
    """The file's ids of genes, and the columns beside them that are ids as well."""
    known = [name for name in GENE_IDS if name in file.fields("genes")]
    table = file.metadata("genes", known) if known else pd.DataFrame()
    return [file.genes, *(pd.Index([decode(value) for value in table[name]], dtype=object) for name in known)]


def require_genes(file: GctxFile, wanted: pd.DataFrame) -> np.ndarray:
    """As :func:`find_genes`, but an error where the file has none: its orientation or its ids are others."""
    found = find_genes(file, wanted)
    if (found >= 0).any():
        return found
    as_samples = file.samples.isin(wanted["gene_id"]).sum() + file.samples.isin(wanted["gene_symbol"]).sum()
    if as_samples:
        raise SchemaError(
            f"{file.path} has its genes where the samples belong: {as_samples:,} of the wanted genes are sample ids",
            expected="genes in /0/META/ROW, samples in /0/META/COL",
            cause="a file written from a transposed table",
            fix="--transposed, or GctxFile(path, transposed=True)",
        )
    raise SchemaError(
        f"{file.path} holds none of the {len(wanted):,} wanted genes; its ids are {shorten(file.genes, 3)}",
        expected=f"ids such as {shorten(wanted['gene_id'], 3)} or {shorten(wanted['gene_symbol'], 3)}",
        cause="ids of another kind (Ensembl, probes without a gene column), or another assay",
        fix="name the wanted genes as the file does: --genes FILE, one id a line",
    )
