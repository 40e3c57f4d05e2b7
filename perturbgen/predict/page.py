"""The page of a prediction: which genes respond, which way, and how often such a call is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.page import Page
from perturbgen.evaluate import Values

_STRENGTHS: Final = (1.0, 2.0, 3.0, 5.0)  # of a prediction, at least
_LEAST: Final = 20  # genes behind a share that is shown
_GENES: Final = 40  # of a condition, the strongest
_CONDITIONS: Final = 100


def reliability(measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """How often predictions of measured conditions are right, by strength.

    Both are signed -log10 p of the same conditions x genes. Index: the least strength; columns
    ``genes``, the share that goes the ``right_way`` and the share that ``responds`` (measured
    adjusted p at most .05, in the predicted direction); NaN of fewer than twenty genes.
    """
    truth = measured.loc[predicted.index, predicted.columns].to_numpy(float)
    values = predicted.to_numpy(float)
    same = np.sign(truth) == np.sign(values)
    responds = Values(truth).de & same
    rows = {}
    for least in _STRENGTHS:
        chosen = np.abs(values) >= least
        n = int(chosen.sum())
        shares = [float(one[chosen].mean()) if n >= _LEAST else np.nan for one in (same, responds)]
        rows[least] = {"genes": n, "right_way": shares[0], "responds": shares[1]}
    return pd.DataFrame(rows).T.rename_axis("strength")


def prediction_page(
    values: pd.DataFrame,
    *,
    measured: pd.DataFrame,
    calibrated: pd.DataFrame,
    remembered: int,
    symbols: Mapping[str, str] | None = None,
) -> Page:
    """Predicted signed -log10 p of conditions x genes.

    ``measured`` and ``calibrated`` are conditions to judge by, as measured and as predicted;
    ``remembered`` of them the model was trained on.
    """
    shares, answer = _shares(measured, calibrated), prediction_answer(measured, calibrated)
    lead = (
        f"{len(values):,} conditions x {values.shape[1]:,} genes. A predicted signed -log10 p is "
        "the strength and the direction of a response as a model expects it. It is no p-value: "
        "nothing was measured."
    )
    page = Page("Predicted responses", lead, answer=answer)
    if remembered:
        page.warning(
            f"The model was trained on {remembered} of the {len(calibrated)} conditions that it is "
            "judged by here: it knows them better than what it is asked for. --calibration-run "
            "names a second run that has not seen them (perturbgen split --kind calibration)."
        )
    page.section("Conditions")
    page.table([_condition(label, row) for label, row in values.iterrows()], search="Find")
    about = f"The {_GENES} strongest genes of each condition"
    about += f" (of the first {_CONDITIONS})." if len(values) > _CONDITIONS else "."
    if shares is not None:
        about += (
            " 'Right way' and 'responds' say how often genes predicted as strongly went the "
            "predicted way, and responded, in the measured conditions."
        )
    page.section("Genes", about)
    page.table(_genes(values.head(_CONDITIONS), shares, symbols or {}), search="Find")
    if shares is not None:
        about = "Of measured conditions, predicted as if they were not."
        page.section("How often it is right", about)
        page.table(
            [
                {
                    "predicted beyond": f"±{least:g}",
                    "genes": int(row["genes"]),
                    "go that way": _share(row["right_way"]),
                    "respond (adjusted p <= .05)": _share(row["responds"]),
                }
                for least, row in shares.iterrows()
            ]
        )
    return page


def _shares(measured: pd.DataFrame, calibrated: pd.DataFrame) -> pd.DataFrame | None:
    return None if calibrated.empty else reliability(measured, calibrated)


def prediction_answer(measured: pd.DataFrame, calibrated: pd.DataFrame) -> str:
    """The sentence that says how far to trust a prediction."""
    shares, conditions = _shares(measured, calibrated), len(calibrated)
    if shares is None:
        return (
            "Nothing says how often this is right: no other compound was measured in these cell "
            "types."
        )
    told = shares[shares["responds"].notna()]
    if told.empty:
        return (
            f"In the {_counted(conditions)} to judge by, no more than a few genes are "
            "predicted to respond: a response as small cannot be told from none."
        )
    least, row = told.index[-1], told.iloc[-1]
    return (
        f"Of genes predicted beyond ±{least:g}, {_share(row['responds'])} did respond in "
        f"{_counted(conditions)} to judge by, and {_share(row['right_way'])} went the "
        "predicted way."
    )


def _counted(conditions: int) -> str:
    return "one measured condition" if conditions == 1 else f"{conditions} measured conditions"


def _share(value: float) -> str:
    return "too few" if np.isnan(value) else f"{value:.0%}"


def _condition(label: Any, row: pd.Series) -> dict[str, Any]:
    names: dict[str, Any] = {"cell type": str(label[0]), "compound": str(label[1])}
    counts = {f"beyond ±{least:g}": int((row.abs() >= least).sum()) for least in _STRENGTHS}
    return names | counts | {"up": int((row >= 1).sum()), "down": int((row <= -1).sum())}


def _genes(
    values: pd.DataFrame, shares: pd.DataFrame | None, symbols: Mapping[str, str]
) -> list[dict[str, Any]]:
    records = []
    told = None if shares is None else shares[shares["right_way"].notna()]
    for label, row in values.iterrows():
        assert isinstance(label, tuple)
        strongest = row.abs().sort_values(ascending=False, kind="stable").index[:_GENES]
        for gene in strongest:
            value = float(row[gene])
            record: dict[str, Any] = {"cell type": str(label[0]), "compound": str(label[1])}
            record["gene"] = str(gene)
            if symbols:
                record["symbol"] = symbols.get(str(gene), "")
            record |= {"direction": "up" if value > 0 else "down", "predicted": round(value, 2)}
            if told is not None:
                # of the strongest ones that there were enough of to count
                at = told[told.index <= abs(value)]
                sure = at.iloc[-1] if len(at) else None
                record["right way"] = "" if sure is None else _share(sure["right_way"])
                record["responds"] = "" if sure is None else _share(sure["responds"])
            records.append(record)
    return records
