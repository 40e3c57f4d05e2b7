"""Images and L1000 of the same perturbations: published per-perturbation tables, evaluated again
(Haghighi et al. 2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from perturbgen.core.errors import InputError, MissingDependencyError, SchemaError, suggest
from perturbgen.core.files import require_file
from perturbgen.core.tables import read_header, require_columns

_METHODS: Final = {
    "CP": "images",
    "GE": "L1000",
    "Early Fusion": "both, concatenated",
    "RGCCA_EarlyFusion": "both, RGCCA",
    "Late Fusion": "both, averaged",
}
_SHEET: Final = (
    "fC-LINCS-nvs-filt-preds-lr-ht-sgkf-10f"  # logistic regression, ten folds grouped by compound
)
_ASSAYS: Final = {
    "images": "pass_cellpainting_thresh",
    "L1000": "pass_l1000_thresh",
    "both": "pass_both",
}


def read_sheet(path: str | Path, sheet: str) -> pd.DataFrame:
    """One sheet of an Excel workbook."""
    path = require_file(path, "workbook")
    try:
        with pd.ExcelFile(path, engine="openpyxl") as book:
            if sheet not in book.sheet_names:
                raise SchemaError(
                    f"{path} has no sheet {sheet!r}", fix=suggest(sheet, map(str, book.sheet_names))
                )
            return book.parse(sheet)
    except ImportError:
        raise MissingDependencyError(
            "openpyxl is not installed, which reads .xlsx", fix="pip install openpyxl"
        ) from None
    except (ValueError, OSError, KeyError, BadZipFile) as error:
        raise InputError(
            f"{path} is not a readable workbook: {error}", expected="an .xlsx file"
        ) from None


def read_moa_predictions(path: str | Path, *, sheet: str = _SHEET) -> pd.DataFrame:
    """Predicted mechanism numbers of each treatment: perturbation, compound, fold, moa and a column
    for each method.

    Early sheets wrap a prediction in brackets (``[5]``); a treatment stands once, and a compound in
    one fold.
    """
    raw = read_sheet(path, sheet)
    require_columns(
        raw.columns,
        ["Metadata_moa_num", "PERT", "Compounds", "Fold", *_METHODS],
        f"{path}, {sheet}",
    )
    names = {
        "PERT": "perturbation",
        "Compounds": "compound",
        "Fold": "fold",
        "Metadata_moa_num": "moa",
    }
    table = raw.rename(columns=names)[[*names.values(), *_METHODS]]
    for name in _METHODS:
        table[name] = table[name].astype(str).str.strip("[]").astype(int)
    if table.groupby("compound")["fold"].nunique().max() > 1:
        raise SchemaError(
            f"{path}, {sheet}: a compound lies in two folds", expected="folds grouped by compound"
        )
    return table


def moa_accuracies(
    predictions: pd.DataFrame, *, rng: np.random.Generator, resamples: int = 1000
) -> list[dict[str, Any]]:
    """For each method the accuracy over treatments with an interval over compounds, and the mean F1
    over mechanisms.
    """
    compound = pd.factorize(predictions["compound"])[0]
    size = np.bincount(compound)
    # a compound's doses go together
    weights = rng.multinomial(len(size), np.full(len(size), 1 / len(size)), resamples)
    rows = []
    for name, what in _METHODS.items():
        right = (predictions[name] == predictions["moa"]).to_numpy()
        drawn = weights @ np.bincount(compound, right) / (weights @ size)
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows.append(
            {
                "method": name,
                "of": what,
                "right": int(right.sum()),
                "accuracy": float(right.mean()),
                "low": float(low),
                "high": float(high),
                "mean F1": _mean_f1(predictions["moa"], predictions[name]),
            }
        )
    return rows


def _mean_f1(truth: pd.Series, predicted: pd.Series) -> float:
    """The mean of F1 over true classes."""
    return float(
        f1_score(truth, predicted, labels=truth.unique(), average="macro", zero_division=0)
    )


def reproducible_by_dose(path: str | Path) -> pd.DataFrame:
    """Share of LINCS perturbations whose replicates agree, by dose and assay, from
    ``compound_activity_full.tsv``.
    """
    path = require_file(path, "table")
    require_columns(read_header(path)[0].split("\t"), ["cpd", "dose", *_ASSAYS.values()], path)
    table = pd.read_csv(path, sep="\t", usecols=["dose", *_ASSAYS.values()])
    table["uM"] = table["dose"].str.removesuffix(" uM").astype(float)
    grouped = table.groupby("uM")
    return (
        grouped[list(_ASSAYS.values())]
        .mean()
        .set_axis(list(_ASSAYS), axis=1)
        .assign(perturbations=grouped.size())
        .reset_index()
    )


def replicability(path: str | Path, dataset: str) -> dict[str, Any]:
    """Shares of perturbations whose replicates correlate above 90 % of random pairs, of both assays
    (``RepCorrDF.xlsx``).
    """
    images, l1000 = (
        read_sheet(path, f"{assay}-{dataset}").rename(columns={"Unnamed: 0": "id"})
        for assay in ("cp", "l1k")
    )
    sheets = {"images": images.dropna(subset="RepCor"), "L1000": l1000.dropna(subset="RepCor")}
    row: dict[str, Any] = {"dataset": dataset}
    for name, sheet in sheets.items():
        row |= {
            f"{name} perturbations": len(sheet),
            f"{name} share": float((sheet["RepCor"] > sheet["Rand90Perc"]).mean()),
        }
    return row
