"""The tables a submission is made of: ids, genes, predictions.

What is wrong with a submission, and where.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, UserError, shorten
from perturbgen.core.files import require_file
from perturbgen.core.tables import read_frame, require_columns

if TYPE_CHECKING:
    from anndata import AnnData

KEY: Final = ["cell_type", "sm_name"]
LAYER: Final = "prediction"


def read_id_map(id_map: pd.DataFrame | str | Path) -> pd.DataFrame:
    """The rows to predict (id, cell_type, sm_name, indexed by the id as text), checked; columns may be in any order."""
    where = "id_map"
    if not isinstance(id_map, pd.DataFrame):
        where = str(id_map)
        id_map = read_frame(id_map, columns=("id", *KEY), text=("id", *KEY))
    require_columns(id_map.columns, ("id", *KEY), where)
    table = id_map[["id", *KEY]].reset_index(drop=True)
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
    table = table.assign(
        id=table["id"].astype(str), **{name: table[name].astype(str) for name in KEY}
    )
    for columns in (["id"], KEY):
        twice = table.loc[table.duplicated(columns), columns]
        if len(twice):
            names = shorten(twice.agg(" | ".join, axis=1).unique())
            raise SchemaError(
                f"{where} has duplicated {' and '.join(columns)}: {names}", expected="each once"
            )
    return table.set_index(table["id"].rename(None))


def read_genes(like: str | Path | Sequence[str]) -> list[str]:
    """The genes of a sample submission (its header after ``id``), of an h5ad, or as given; each once."""
    if isinstance(like, str | Path):
        path = require_file(like, "sample submission")
        genes = (
            open_h5ad(path).var_names.tolist() if path.suffix == ".h5ad" else _header_genes(path)
        )
    else:
        path, genes = Path("the list of genes"), [str(gene) for gene in like]
    twice = pd.Index(genes)[pd.Index(genes).duplicated()].unique()
    if len(twice) or not genes:
        raise SchemaError(
            f"{path} names {len(genes)} genes, twice: {shorten(twice) or 'none'}",
            expected="each gene once",
        )
    return genes


def _header_genes(path: Path) -> list[str]:
    """The columns of a CSV but for the first, which is ``id``."""
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        header = next(csv.reader(handle), [])
    if not header or header[0] != "id":
        raise SchemaError(
            f"{path} begins with the column {header[0] if header else ''!r}",
            expected="id, then a column for each gene",
            cause="another file than sample_submission.csv",
        )
    return header[1:]


def open_h5ad(path: Path) -> AnnData:
    """The file, or an error that says it is none."""
    import anndata

    try:
        return anndata.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(
            f"{path} is not a readable h5ad file: {first}", expected="a whole AnnData file"
        ) from None


def read_predictions(path: str | Path) -> pd.DataFrame:
    """A parquet or CSV table of predictions with columns cell_type and sm_name (or compound), or such an index."""
    text = (*KEY, "compound")
    return read_frame(require_file(path, "predictions"), text=text, missing=("", "nan", "NaN"))


log = logging.getLogger(__name__)

# Signed -log10 p of the real table reach some 120; a value beyond this is not one.
_PLAUSIBLE: Final = 200.0
_MOST_NAMED: Final = 20
_ABOUT: Final = ("dataset_id", "method_id")  # what Open Problems asks an h5ad to say of itself


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what it is, and where (row and column as the file names them)."""

    severity: Literal["error", "warning"]
    problem: str
    row: str = ""
    column: str = ""

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (("row", self.row), ("column", self.column))
            if value
        ]
        return f"{self.problem} ({', '.join(where)})" if where else self.problem

    def record(self) -> dict[str, str]:
        """The finding as a row of a table."""
        return {
            "severity": self.severity,
            "problem": self.problem,
            "row": self.row,
            "column": self.column,
        }


def error(problem: str, row: object = "", column: object = "") -> Finding:
    """What makes a submission wrong."""
    return Finding("error", problem, str(row), str(column))


class SubmissionError(UserError):
    """A submission, or what it is made of, is wrong; ``findings`` has all that is."""

    def __init__(self, what: str, findings: Sequence[Finding]) -> None:
        lines = [str(finding) for finding in findings[:_MOST_NAMED]]
        more = len(findings) - len(lines)
        listed = "\n  ".join([*lines, *([f"and {more} more"] if more > 0 else [])])
        super().__init__(
            f"{what}:\n  {listed}",
            expected="the ids of id_map and the genes of the sample, in their order",
        )
        self.findings = tuple(findings)


def value_findings(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> list[Finding]:
    """Values (rows, columns) that are NaN, infinite or too large for float32; implausible ones are warnings."""
    findings = []
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)
    for i, j in np.argwhere(bad).tolist():
        value = values[i, j]
        what = (
            "NaN"
            if np.isnan(value)
            else "infinite"
            if np.isinf(value)
            else f"{value:g}, too large for float32"
        )
        findings.append(error(what, rows[i], columns[j]))
    odd = ~bad & (np.abs(values) > _PLAUSIBLE)
    for i in np.flatnonzero(odd.any(axis=1)).tolist():
        j = int(np.argmax(np.where(odd[i], np.abs(values[i]), 0)))
        what = f"{int(odd[i].sum())} values beyond {_PLAUSIBLE:g} either way, {values[i, j]:g} the largest"
        findings.append(Finding("warning", what, rows[i], columns[j]))
    return findings


def about_findings(uns: Mapping[str, object]) -> list[Finding]:
    """What Open Problems asks for in uns and does not find: the values are right, but nobody knows whose they are."""
    absent = [name for name in _ABOUT if not uns.get(name)]
    return [
        Finding("warning", f"uns has no {name}, which Open Problems asks for", column=name)
        for name in absent
    ]


def raise_errors(what: str, findings: Sequence[Finding]) -> None:
    """Errors are raised, warnings are logged."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise SubmissionError(what, errors)
    for finding in findings:
        log.warning("%s", finding)
