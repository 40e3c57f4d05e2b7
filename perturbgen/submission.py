"""Submission files, written right, and checked so that what is wrong is named by row and column.

Kaggle's form is a CSV: ``id``, then a column for each gene, in the order of
``sample_submission.csv``. Open Problems' form is an h5ad with obs (``id``, ``cell_type``,
``sm_name``), var (genes) and a layer ``prediction``.

>>> from perturbgen import submission
>>> submission.write(predictions, "id_map.csv", "sample_submission.csv", "submission.csv")
>>> submission.check("submission.csv", "id_map.csv", "sample_submission.csv")
[]
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, InputError, SchemaError, UserError, shorten, suggest
from perturbgen.core.files import atomic_path, check_output, require_file
from perturbgen.core.h5ad import open_h5ad, write_h5ad
from perturbgen.core.tables import read_frame, require_columns, with_compound

_log = logging.getLogger(__name__)

_KEY: Final = ["cell_type", "sm_name"]
_LAYER: Final = "prediction"
# Signed -log10 p of the real table reach some 120; a value beyond this is not one.
_PLAUSIBLE: Final = 200.0
_MOST_NAMED: Final = 20
_ABOUT: Final = ("dataset_id", "method_id")  # what Open Problems asks an h5ad to say of itself
_WHAT: Final = "these predictions make no submission"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what it is, and where (row and column as the file names them)."""

    severity: Literal["error", "warning"]
    problem: str
    row: str = ""
    column: str = ""

    def __str__(self) -> str:
        places = (("row", self.row), ("column", self.column))
        where = [f"{name} {value}" for name, value in places if value]
        return f"{self.problem} ({', '.join(where)})" if where else self.problem

    def record(self) -> dict[str, str]:
        """The finding as a row of a table."""
        return asdict(self)


class SubmissionError(UserError):
    """A submission, or what it is made of, is wrong; ``findings`` has all that is."""

    def __init__(self, what: str, findings: Sequence[Finding]) -> None:
        lines = [str(finding) for finding in findings[:_MOST_NAMED]]
        if len(findings) > len(lines):
            lines.append(f"and {len(findings) - len(lines)} more")
        listed = "\n  ".join(lines)
        super().__init__(
            f"{what}:\n  {listed}",
            expected="the ids of id_map and the genes of the sample, in their order",
        )
        self.findings = tuple(findings)


def write(
    predictions: pd.DataFrame | str | Path,
    id_map: pd.DataFrame | str | Path,
    like: str | Path | Sequence[str],
    path: str | Path,
    *,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write predictions as a submission, ``.csv`` (Kaggle) or ``.h5ad`` (Open Problems), float32.

    ``predictions``, a table or its file, has a row for each condition, indexed by (cell_type,
    sm_name) or with these as columns, and a column for each gene, in any order: they are joined by
    label. ``like`` is the
    sample submission (or a list of genes). ``about`` goes into the uns of an h5ad: Open Problems
    asks for ``dataset_id`` and ``method_id``, and a warning names the one that is absent.
    """
    path = check_output(path, ".csv", ".h5ad")
    if about and path.suffix == ".csv":
        raise ConfigError(
            f"{path} has no place for {shorten(about)}", fix="write an .h5ad, or leave it out"
        )
    ids, genes = _read_id_map(id_map), submission_genes(like)
    if not isinstance(predictions, pd.DataFrame):
        source = require_file(predictions, "predictions")
        text, missing = (*_KEY, "compound"), ("", "nan", "NaN")
        predictions = read_frame(source, text=text, missing=missing)
    values = _arrange(predictions, ids, genes)
    if path.suffix == ".h5ad":
        for finding in _about_findings(about or {}):
            _log.warning("%s", finding)
    if path.suffix == ".csv":
        with atomic_path(path) as part:
            _write_csv(values, ids["id"].to_numpy(), genes, part)
        return path
    from anndata import AnnData

    obs = ids.set_axis(ids["id"].rename("index"))
    var = pd.DataFrame(index=pd.Index(genes, name="gene"))
    adata = AnnData(obs=obs, var=var, layers={_LAYER: values}, uns=dict(about or {}))
    write_h5ad(adata, path, packed=False)
    return path


def check(
    path: str | Path, id_map: pd.DataFrame | str | Path, like: str | Path | Sequence[str]
) -> list[Finding]:
    """All that is wrong with a submission file, ``.csv`` or ``.h5ad``: nothing, if it is valid.

    Errors make it unusable; warnings are values that are no number one expects.
    """
    path = require_file(path, "submission")
    ids, genes = _read_id_map(id_map), submission_genes(like)
    if path.suffix == ".h5ad":
        return _check_h5ad(path, ids, genes)
    if path.suffix != ".csv":
        raise InputError(f"{path} is neither .csv nor .h5ad", expected="a submission file")
    return _check_csv(path, ids, genes)


def submission_genes(like: str | Path | Sequence[str]) -> list[str]:
    """The genes of a sample submission (its header after ``id``), of an h5ad, or as given."""
    if not isinstance(like, str | Path):
        where, genes = "the list of genes", [str(gene) for gene in like]
    else:
        path = require_file(like, "sample submission")
        where = str(path)
        if path.suffix == ".h5ad":
            genes = open_h5ad(path).var_names.tolist()
        else:
            with path.open(newline="", encoding="utf-8", errors="replace") as handle:
                first, *genes = next(csv.reader(handle), []) or [""]
            if first != "id":
                raise SchemaError(
                    f"{path} begins with the column {first!r}",
                    expected="id, then a column for each gene",
                    cause="another file than sample_submission.csv",
                )
    twice = pd.Index(genes)[pd.Index(genes).duplicated()].unique()
    if len(twice) or not genes:
        raise SchemaError(
            f"{where} names {len(genes)} genes, twice: {shorten(twice) or 'none'}",
            expected="each gene once",
        )
    return genes


def _read_id_map(id_map: pd.DataFrame | str | Path) -> pd.DataFrame:
    """The rows to predict (id, cell_type, sm_name, indexed by the id as text), checked."""
    names = ["id", *_KEY]
    where = "id_map"
    if not isinstance(id_map, pd.DataFrame):
        where = str(id_map)
        id_map = read_frame(require_file(id_map, "id_map"), columns=names, text=names)
    require_columns(id_map.columns, names, where)
    table = id_map[names].reset_index(drop=True)
    if table.empty:
        raise SchemaError(
            f"{where} has a header and no rows", expected="a row for each condition to predict"
        )
    empty = table.isna().any(axis=1)
    if empty.any():
        raise SchemaError(
            f"{where}: {int(empty.sum())} of {len(table)} rows have an empty field",
            expected="whole rows",
        )
    # Ids as text: 7 and "7" are one id, whatever pandas took the column for.
    table = table.astype(str)
    for columns in (["id"], _KEY):
        twice = table.loc[table.duplicated(columns), columns]
        if len(twice):
            rows = shorten(twice.agg(" | ".join, axis=1).unique())
            raise SchemaError(
                f"{where} has duplicated {' and '.join(columns)}: {rows}", expected="each once"
            )
    return table.set_index(table["id"].rename(None))


def _arrange(predictions: pd.DataFrame, ids: pd.DataFrame, genes: Sequence[str]) -> np.ndarray:
    """Predictions (ids, genes) float32 in the submission's order; all that is amiss is told."""
    table = _by_condition(predictions)
    wanted = pd.MultiIndex.from_frame(ids[_KEY])
    rows, columns = table.index, table.columns
    twice, absent = rows[rows.duplicated()], wanted[~wanted.isin(rows)]
    genes_twice = columns[columns.duplicated()]
    genes_absent = pd.Index(genes).difference(columns, sort=False)
    findings = [
        *(_wrong("the prediction has this condition twice", r) for r in _condition_names(twice)),
        *(_wrong("the prediction has this gene twice", "", gene) for gene in genes_twice),
        *(_wrong("the prediction lacks this condition", r) for r in _condition_names(absent)),
        *(_wrong("the prediction lacks this gene", "", gene) for gene in genes_absent),
    ]
    if findings:
        raise SubmissionError(_WHAT, findings)
    # Predicting more than is asked is no mistake, but may be a sign of one.
    extra_rows, extra_columns = rows.difference(wanted), columns.difference(pd.Index(genes))
    for extra, what in ((_condition_names(extra_rows), "conditions"), (extra_columns, "columns")):
        if len(extra):
            told = "dropped %d %s that the submission does not have: %s"
            _log.info(told, len(extra), what, shorten(extra, 3))
    # By label, never by position: rows and genes of a table may be in any order.
    chosen = table.loc[wanted, list(genes)]
    text = [str(name) for name, kind in chosen.dtypes.items() if kind.kind not in "fiub"]
    if text:
        raise SubmissionError(_WHAT, [_wrong("not a column of numbers", "", g) for g in text])
    # What overflows becomes infinite, and is named as such below.
    with np.errstate(over="ignore"):
        values = chosen.to_numpy(np.float32)
    findings = _value_findings(values, _condition_names(wanted), genes)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise SubmissionError(_WHAT, errors)
    for finding in findings:
        _log.warning("%s", finding)
    return values


def _by_condition(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions indexed by (cell_type, sm_name), whichever way these are given."""
    names = {"compound": "sm_name"}
    table = with_compound(predictions, "the table of predictions").rename(columns=names)
    if set(_KEY) <= set(table.columns):
        return table.set_index(_KEY).drop(columns="id", errors="ignore")
    levels = [names.get(str(name), str(name)) for name in table.index.names]
    if sorted(levels) == _KEY:
        return table.rename_axis(levels).reorder_levels(_KEY)
    found = shorten(map(str, table.index.names))
    raise SchemaError(
        f"the predictions do not say which condition a row is of: index {found}",
        expected="columns or index levels cell_type and sm_name",
        fix="predictions.set_index(['cell_type', 'sm_name'])",
    )


def _condition_names(conditions: pd.Index) -> list[str]:
    return [" | ".join(map(str, key)) for key in conditions]


def _write_csv(values: np.ndarray, ids: np.ndarray, genes: Sequence[str], path: Path) -> None:
    """Kaggle's form, a row at a time; nine digits bring every float32 back exactly."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        numbers = ",".join(["%.9g"] * len(genes))
        csv.writer(handle, lineterminator="\n").writerow(["id", *genes])
        for name, row in zip(ids, values, strict=True):
            handle.write(f"{name},{numbers % tuple(row.tolist())}\n")


def _check_csv(path: Path, ids: pd.DataFrame, genes: Sequence[str]) -> list[Finding]:
    """Findings of Kaggle's form, a row at a time: the file may be larger than memory."""
    findings: list[Finding] = []
    found: list[str] = []
    # By hand, since pandas would guess types and mend what is to be found.
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        reader = csv.reader(handle)
        header = next(reader, [])
        if header[:1] != ["id"]:
            findings.append(_wrong("the first column is not 'id'", 1, "".join(header[:1])))
        else:
            findings += _gene_findings(header[1:], genes)
        for row in reader:
            found.append(row[0] if row else "")
            place = _name_row(len(found), found[-1])
            if len(row) == len(header):
                findings += _field_findings(row[1:], place, header[1:])
            else:
                findings.append(_wrong(f"{len(row)} fields, the header has {len(header)}", place))
    return _id_findings(found, ids) + findings


def _check_h5ad(path: Path, ids: pd.DataFrame, genes: Sequence[str]) -> list[Finding]:
    """Findings of Open Problems' form."""
    adata = open_h5ad(path)
    if _LAYER not in adata.layers:
        there = shorten(adata.layers) or "none"
        return [_wrong(f"no layer {_LAYER!r}; the file has {there}", "", _LAYER)]
    found = adata.obs["id"].astype(str) if "id" in adata.obs else pd.Series(adata.obs_names)
    places = [_name_row(i, name) for i, name in enumerate(found, 1)]
    findings = _id_findings(found.tolist(), ids) + _gene_findings(adata.var_names.tolist(), genes)
    for name in _KEY:
        # Only where the rows are the right ones do the other labels have something to agree with.
        if name in adata.obs and not findings:
            theirs, ours = adata.obs[name].astype(str).to_numpy(), ids[name].to_numpy()
            findings += [
                _wrong(f"{theirs[i]!r}, where id_map has {ours[i]!r}", places[i], name)
                for i in np.flatnonzero(theirs != ours).tolist()
            ]
    findings += _about_findings(adata.uns)
    values = adata.layers[_LAYER]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.dtype.kind not in "fiub":
        return [*findings, _wrong(f"layer {_LAYER!r} holds {values.dtype}, no numbers", "", _LAYER)]
    return findings + _value_findings(values, places, adata.var_names)


def _wrong(problem: str, row: object = "", column: object = "") -> Finding:
    return Finding("error", problem, str(row), str(column))


def _name_row(number: int, name: object) -> str:
    """A row by its id and its number in the file, the header being row 1."""
    return f"{number + 1} (id {name})"


def _gene_findings(found: Sequence[str], genes: Sequence[str]) -> list[Finding]:
    """Genes that are absent, foreign, repeated or out of order."""
    index, wanted = pd.Index(found), pd.Index(genes)
    findings = [_wrong("gene is missing", "", g) for g in wanted.difference(index, sort=False)]
    for gene in map(str, index[~index.isin(wanted)]):
        # Comparing with all 18,211 genes for each of many unknown ones would take minutes.
        near = [name for name in genes if name[:2].lower() == gene[:2].lower()][:500]
        findings.append(_wrong(f"unknown gene, {suggest(gene, near)}", "", gene))
    twice = index[index.duplicated()].unique()
    findings += [_wrong("gene occurs twice", "", gene) for gene in twice]
    # The order says something only where the genes are the right ones.
    if not findings and list(found) != list(genes):
        at = _first_difference(found, genes)
        what = f"genes are in another order: here should be {genes[at]}"
        findings = [_wrong(what, "", found[at])]
    return findings


def _first_difference(found: Sequence[str], wanted: Sequence[str]) -> int:
    return next(i for i, pair in enumerate(zip(found, wanted, strict=True)) if len({*pair}) > 1)


def _id_findings(found: Sequence[str], ids: pd.DataFrame) -> list[Finding]:
    """Ids that are no whole numbers, absent, foreign, repeated or out of order."""
    wanted = ids["id"].tolist()
    findings = []
    for i, name in enumerate(found, 1):
        if not name.isdecimal() or str(int(name)) != name:
            findings.append(_wrong(f"id {name!r} is not a whole number", _name_row(i, name), "id"))
        elif name not in ids.index:
            findings.append(_wrong(f"id {name} is not in id_map", _name_row(i, name), "id"))
    index = pd.Index(found)
    twice = index[index.duplicated() & index.isin(ids.index)].unique()
    findings += [_wrong(f"id {name} occurs twice", "", "id") for name in twice]
    for name in pd.Index(wanted).difference(index, sort=False):
        kind, compound = ids.loc[name, _KEY]
        findings.append(_wrong(f"id {name} is missing: {kind} | {compound}", "", "id"))
    if not findings and list(found) != wanted:
        at = _first_difference(found, wanted)
        what = f"ids are in another order: here should be {wanted[at]}"
        findings = [_wrong(what, _name_row(at + 1, found[at]), "id")]
    return findings


def _field_findings(fields: Sequence[str], row: str, columns: Sequence[str]) -> list[Finding]:
    """What is wrong with the values of one row, as text."""
    findings = []
    try:
        values = np.array(list(map(_parse_number, fields)))
    except ValueError:
        # The slow way, for a row that is wrong: each field by itself.
        values = np.zeros(len(fields))
        for i, field in enumerate(fields):
            try:
                values[i] = _parse_number(field)
            except ValueError:
                what = f"{field!r} is not a number" if field.strip() else "no value"
                findings.append(_wrong(what, row, columns[i]))
    return findings + _value_findings(values[None], [row], columns)


def _parse_number(text: str) -> float:
    """The number a text is; Python's own 1_000 is none in a table."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _value_findings(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> list[Finding]:
    """Values (rows, columns) that are no float32; implausible ones are warnings."""
    findings = []
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)
    for i, j in np.argwhere(bad).tolist():
        value = values[i, j]
        large = "infinite" if np.isinf(value) else f"{value:g}, too large for float32"
        findings.append(_wrong("NaN" if np.isnan(value) else large, rows[i], columns[j]))
    odd = ~bad & (np.abs(values) > _PLAUSIBLE)
    for i in np.flatnonzero(odd.any(axis=1)).tolist():
        j = int(np.argmax(np.where(odd[i], np.abs(values[i]), 0)))
        number = int(odd[i].sum())
        what = f"{number} values beyond {_PLAUSIBLE:g} either way, {values[i, j]:g} the largest"
        findings.append(Finding("warning", what, rows[i], columns[j]))
    return findings


def _about_findings(uns: Mapping[str, object]) -> list[Finding]:
    """What Open Problems asks for in uns and does not find: the values are right even so."""
    return [
        Finding("warning", f"uns has no {name}, which Open Problems asks for", column=name)
        for name in _ABOUT
        if not uns.get(name)
    ]
