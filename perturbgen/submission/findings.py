"""What is wrong with a submission, and where."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from perturbgen.errors import UserError

log = logging.getLogger(__name__)

# Signed -log10 p of the real table reach some 120; a value beyond this is not one.
PLAUSIBLE: Final = 200.0
MOST_NAMED: Final = 20
ABOUT: Final = ("dataset_id", "method_id")  # what Open Problems asks an h5ad to say of itself


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what it is, and where (row and column as the file names them)."""

    severity: Literal["error", "warning"]
    problem: str
    row: str = ""
    column: str = ""

    def __str__(self) -> str:
        where = [f"{name} {value}" for name, value in (("row", self.row), ("column", self.column)) if value]
        return f"{self.problem} ({', '.join(where)})" if where else self.problem

    def record(self) -> dict[str, str]:
        """The finding as a row of a table."""
        return {"severity": self.severity, "problem": self.problem, "row": self.row, "column": self.column}


def error(problem: str, row: object = "", column: object = "") -> Finding:
    """What makes a submission wrong."""
    return Finding("error", problem, str(row), str(column))


class SubmissionError(UserError):
    """A submission, or what it is made of, is wrong; ``findings`` has all that is."""

    def __init__(self, what: str, findings: Sequence[Finding]) -> None:
        lines = [str(finding) for finding in findings[:MOST_NAMED]]
        more = len(findings) - len(lines)
        listed = "\n  ".join([*lines, *([f"and {more} more"] if more > 0 else [])])
        super().__init__(
            f"{what}:\n  {listed}", expected="the ids of id_map and the genes of the sample, in their order"
        )
        self.findings = tuple(findings)


def value_findings(values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> list[Finding]:
    """Values (rows, columns) that are NaN, infinite or too large for float32; implausible ones are warnings."""
    findings = []
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)
    for i, j in np.argwhere(bad).tolist():
        value = values[i, j]
        what = "NaN" if np.isnan(value) else "infinite" if np.isinf(value) else f"{value:g}, too large for float32"
        findings.append(error(what, rows[i], columns[j]))
    odd = ~bad & (np.abs(values) > PLAUSIBLE)
    for i in np.flatnonzero(odd.any(axis=1)).tolist():
        j = int(np.argmax(np.where(odd[i], np.abs(values[i]), 0)))
        what = f"{int(odd[i].sum())} values beyond {PLAUSIBLE:g} either way, {values[i, j]:g} the largest"
        findings.append(Finding("warning", what, rows[i], columns[j]))
    return findings


def about_findings(uns: Mapping[str, object]) -> list[Finding]:
    """What Open Problems asks for in uns and does not find: the values are right, but nobody knows whose they are."""
    absent = [name for name in ABOUT if not uns.get(name)]
    return [Finding("warning", f"uns has no {name}, which Open Problems asks for", column=name) for name in absent]


def raise_errors(what: str, findings: Sequence[Finding]) -> None:
    """Errors are raised, warnings are logged."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise SubmissionError(what, errors)
    for finding in findings:
        log.warning("%s", finding)
