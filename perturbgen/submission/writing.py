"""Predictions, joined by label, as a submission file."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import atomic_path, check_output
from perturbgen.submission.inputs import (
    KEY,
    LAYER,
    SubmissionError,
    about_findings,
    error,
    raise_errors,
    read_genes,
    read_id_map,
    value_findings,
)

log = logging.getLogger(__name__)

_WHAT: Final = "these predictions make no submission"


def write(
    predictions: pd.DataFrame,
    id_map: pd.DataFrame | str | Path,
    like: str | Path | Sequence[str],
    path: str | Path,
    *,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write predictions as a submission, ``.csv`` (Kaggle) or ``.h5ad`` (Open Problems), float32.

    ``predictions`` has a row for each condition, indexed by (cell_type, sm_name) or with these as columns, and a column
    for each gene, in any order: they are joined by label. ``like`` is the sample submission (or a list of genes).
    ``about`` goes into the uns of an h5ad: Open Problems asks for ``dataset_id`` and ``method_id``, and a
    warning names the one that is absent.
    """
    path = check_output(path, ".csv", ".h5ad")
    if about and path.suffix == ".csv":
        raise ConfigError(
            f"{path} has no place for {shorten(about)}", fix="write an .h5ad, or leave it out"
        )
    ids = read_id_map(id_map)
    genes = read_genes(like)
    values = _arrange(predictions, ids, genes)
    raise_errors(_WHAT, about_findings(about or {}) if path.suffix == ".h5ad" else [])
    with atomic_path(path) as part:
        if path.suffix == ".csv":
            _write_csv(values, ids["id"].to_numpy(), genes, part)
        else:
            _write_h5ad(values, ids, genes, part, about=about or {})
    return path


def _arrange(predictions: pd.DataFrame, ids: pd.DataFrame, genes: Sequence[str]) -> np.ndarray:
    """Predictions (ids, genes) float32 in the order of the submission; everything that is amiss in one error."""
    table = _by_condition(predictions)
    wanted = pd.MultiIndex.from_frame(ids[KEY])
    findings = [
        error("the prediction has this condition twice", key)
        for key in _labels(table.index[table.index.duplicated()])
    ]
    findings += [
        error("the prediction has this gene twice", "", gene)
        for gene in table.columns[table.columns.duplicated()]
    ]
    findings += [
        error("the prediction lacks this condition", key)
        for key in _labels(wanted[~wanted.isin(table.index)])
    ]
    findings += [
        error("the prediction lacks this gene", "", gene)
        for gene in pd.Index(genes).difference(table.columns, sort=False)
    ]
    if findings:
        raise SubmissionError(_WHAT, findings)
    _report_extra(table, wanted, genes)
    chosen = table.loc[wanted, list(genes)]
    text = [str(name) for name, kind in chosen.dtypes.items() if kind.kind not in "fiub"]
    if text:
        raise SubmissionError(_WHAT, [error("not a column of numbers", "", g) for g in text])
    with np.errstate(over="ignore"):
        values = chosen.to_numpy(np.float32)
    named = [f"{kind} | {compound}" for kind, compound in wanted]
    findings = value_findings(values, named, genes)
    raise_errors(_WHAT, findings)
    return values


def _by_condition(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions indexed by (cell_type, sm_name), whichever way these are given; sm_name may be called compound."""
    names = {"compound": "sm_name"}
    table = predictions.rename(columns=names) if "compound" in predictions else predictions
    if set(KEY) <= set(table.columns):
        table = table.set_index(KEY)
        return table.drop(columns=[name for name in ("id",) if name in table])
    index = table.index
    if index.nlevels == 2 and {names.get(str(name), name) for name in index.names} == set(KEY):
        return table.rename_axis(
            [names.get(str(name), str(name)) for name in index.names]
        ).reorder_levels(KEY)
    raise SchemaError(
        f"the predictions do not say which condition a row is of: index {shorten(map(str, index.names))}",
        expected="columns or index levels cell_type and sm_name",
        fix="predictions.set_index(['cell_type', 'sm_name'])",
    )


def _report_extra(table: pd.DataFrame, wanted: pd.MultiIndex, genes: Sequence[str]) -> None:
    """Say what is left out; predicting more than is asked is no mistake."""
    rows, columns = table.index.difference(wanted), table.columns.difference(pd.Index(genes))
    for extra, what in ((_labels(rows), "conditions"), (columns, "columns")):
        if len(extra):
            log.info(
                "left out %d %s that the submission does not have: %s",
                len(extra),
                what,
                shorten(extra, 3),
            )


def _labels(index: pd.Index) -> list[str]:
    """Conditions as text."""
    return [" | ".join(map(str, key)) for key in index]


def _write_csv(values: np.ndarray, ids: np.ndarray, genes: Sequence[str], path: Path) -> None:
    """Kaggle's form, a row at a time; nine digits bring every float32 back exactly."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        numbers = ",".join(["%.9g"] * len(genes))
        csv.writer(handle, lineterminator="\n").writerow(["id", *genes])
        for name, row in zip(ids, values, strict=True):
            handle.write(f"{name},{numbers % tuple(row.tolist())}\n")


def _write_h5ad(
    values: np.ndarray,
    ids: pd.DataFrame,
    genes: Sequence[str],
    path: Path,
    *,
    about: Mapping[str, str],
) -> None:
    """Open Problems' form."""
    from anndata import AnnData

    obs = ids.set_axis(ids["id"].astype(str).rename("index"))
    var = pd.DataFrame(index=pd.Index(genes, name="gene"))
    AnnData(obs=obs, var=var, layers={LAYER: values}, uns=dict(about)).write_h5ad(path)
