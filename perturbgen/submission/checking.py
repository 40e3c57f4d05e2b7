"""Reading a submission as a stranger would, and naming all that is wrong with it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, shorten, suggest
from perturbgen.core.files import require_file
from perturbgen.submission.inputs import (
    KEY,
    LAYER,
    Finding,
    about_findings,
    error,
    open_h5ad,
    read_genes,
    read_id_map,
    value_findings,
)


def check(
    path: str | Path, id_map: pd.DataFrame | str | Path, like: str | Path | Sequence[str]
) -> list[Finding]:
    """Everything that is wrong with a submission file, ``.csv`` or ``.h5ad``; an empty list is a valid one.

    Errors make it unusable; warnings are values that are no number one expects.
    """
    path = require_file(path, "submission")
    ids, genes = read_id_map(id_map), read_genes(like)
    if path.suffix == ".h5ad":
        return _check_h5ad(path, ids, genes)
    if path.suffix != ".csv":
        raise InputError(f"{path} is neither .csv nor .h5ad", expected="a submission file")
    return _check_csv(path, ids, genes)


def _check_csv(path: Path, ids: pd.DataFrame, genes: Sequence[str]) -> list[Finding]:
    """Findings of Kaggle's form, a row at a time."""
    findings: list[Finding] = []
    found: list[str] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        reader = csv.reader(handle)
        header = next(reader, [])
        findings += _header_findings(header, genes)
        for row in reader:
            found.append(row[0] if row else "")
            if len(row) != len(header):
                findings.append(
                    error(
                        f"{len(row)} fields, the header has {len(header)}",
                        _name_row(len(found), found[-1]),
                    )
                )
            else:
                findings += _field_findings(row[1:], _name_row(len(found), found[-1]), header[1:])
    return _id_findings(found, ids) + findings


def _header_findings(header: Sequence[str], genes: Sequence[str]) -> list[Finding]:
    """What is wrong with the names of the columns."""
    if not header or header[0] != "id":
        return [error("the first column is not 'id'", 1, header[0] if header else "")]
    return _gene_findings(header[1:], genes)


def _gene_findings(found: Sequence[str], genes: Sequence[str]) -> list[Finding]:
    """Genes that are absent, foreign, repeated or out of order."""
    index, wanted = pd.Index(found), pd.Index(genes)
    findings = [error("gene is missing", "", gene) for gene in wanted.difference(index, sort=False)]
    foreign = index[~index.isin(wanted)]
    findings += [
        error(f"unknown gene, {suggest(str(gene), _near(str(gene), genes))}", "", gene)
        for gene in foreign
    ]
    findings += [
        error("gene occurs twice", "", gene) for gene in index[index.duplicated()].unique()
    ]
    if not findings and list(found) != list(genes):
        at = next(i for i, pair in enumerate(zip(found, genes, strict=True)) if pair[0] != pair[1])
        findings = [error(f"genes are in another order: here should be {genes[at]}", "", found[at])]
    return findings


def _near(gene: str, genes: Sequence[str]) -> list[str]:
    """Genes that begin alike: comparing with all 18,211 for each of many unknown ones would take minutes."""
    return [name for name in genes if name[:2].lower() == gene[:2].lower()][:500]


def _id_findings(found: Sequence[str], ids: pd.DataFrame) -> list[Finding]:
    """Ids that are no whole numbers, absent, foreign, repeated or out of order."""
    wanted = [str(name) for name in ids["id"]]
    findings = []
    for i, name in enumerate(found, 1):
        if not name.isdecimal() or str(int(name)) != name:
            findings.append(error(f"id {name!r} is not a whole number", _name_row(i, name), "id"))
        elif name not in ids.index:
            findings.append(error(f"id {name} is not in id_map", _name_row(i, name), "id"))
    index = pd.Index(found)
    findings += [
        error(f"id {name} occurs twice", "", "id")
        for name in index[index.duplicated()].unique()
        if name in ids.index
    ]
    for name in pd.Index(wanted).difference(index, sort=False):
        kind, compound = ids.loc[name, KEY]
        findings.append(error(f"id {name} is missing: {kind} | {compound}", "", "id"))
    if not findings and list(found) != wanted:
        at = next(i for i, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
        findings = [
            error(
                f"ids are in another order: here should be {wanted[at]}",
                _name_row(at + 1, found[at]),
                "id",
            )
        ]
    return findings


def _name_row(number: int, name: object) -> str:
    """A row by its id and its number in the file, the header being row 1."""
    return f"{number + 1} (id {name})"


def _field_findings(fields: Sequence[str], row: str, columns: Sequence[str]) -> list[Finding]:
    """What is wrong with the values of one row, as text."""
    try:
        values = np.array(list(map(_number, fields)))
    except ValueError:
        texts = [i for i, field in enumerate(fields) if not _is_number(field)]
        findings = [
            error(
                "no value" if not fields[i].strip() else f"{fields[i]!r} is not a number",
                row,
                columns[i],
            )
            for i in texts
        ]
        values = np.array([_number(field) if _is_number(field) else 0.0 for field in fields])
        return findings + value_findings(values[None], [row], columns)
    return value_findings(values[None], [row], columns)


def _number(text: str) -> float:
    """The number a text is; Python's own 1_000 is none in a table."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _is_number(text: str) -> bool:
    """Whether a text is a number, NaN and infinity among them."""
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _check_h5ad(path: Path, ids: pd.DataFrame, genes: Sequence[str]) -> list[Finding]:
    """Findings of Open Problems' form."""
    adata = open_h5ad(path)
    if LAYER not in adata.layers:
        return [
            error(f"no layer {LAYER!r}; the file has {shorten(adata.layers) or 'none'}", "", LAYER)
        ]
    found = adata.obs["id"].astype(str) if "id" in adata.obs else pd.Series(adata.obs_names)
    findings = _id_findings(found.tolist(), ids) + _gene_findings(adata.var_names.tolist(), genes)
    for name in KEY:
        if name in adata.obs and not findings:
            differ = adata.obs[name].astype(str).to_numpy() != ids[name].to_numpy()
            findings += [
                error(
                    f"{adata.obs[name].iloc[i]!r}, where id_map has {ids[name].iloc[i]!r}",
                    _name_row(i + 1, found.iloc[i]),
                    name,
                )
                for i in np.flatnonzero(differ).tolist()
            ]
    findings += about_findings(adata.uns)
    values = adata.layers[LAYER]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.dtype.kind not in "fiub":
        return [*findings, error(f"layer {LAYER!r} holds {values.dtype}, no numbers", "", LAYER)]
    return findings + value_findings(
        values, [_name_row(i + 1, name) for i, name in enumerate(found)], adata.var_names
    )
