"""When a simulated statistic is as the real one: the table's rule and the loss of the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

# Shown, but not part of the loss: what the real number was computed of is not quite known.
UNCERTAIN = (
    "effects: conserved, ",
    "effects: context",
    "effects: mean square",
    "effects: reproducible",
    "share of genes",
    "different drugs, between types, of one plate column",
)
# Numbers near zero, of which a ratio says little.
_ABSOLUTE = {
    "table: median": 0.02,
    "effects: above the weakest, 25 %": 0.005,
    "effects: above the weakest, 50 %": 0.01,
}


def tolerance(name: str, real: float) -> float:
    """How far off is still alike: .02 or 15 % of correlations, .03 of quantiles, else 15 %."""
    if name.startswith("a drug's mean"):
        return 0.03
    if "drug" in name or name.endswith("Pearson"):
        return max(0.02, 0.15 * abs(real))
    return max(_ABSOLUTE.get(name, 0.0), 0.15 * abs(real))


def judged(real: dict[str, float], found: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the table: real, the mean over seeds (columns), its ratio, the seeds, verdict."""
    rows = []
    for name in dict.fromkeys([*real, *map(str, found.index)]):
        values = found.reindex([name]).iloc[0]
        mean = float(values.mean())
        truth = real.get(str(name), float("nan"))
        row: dict[str, Any] = {"statistic": name, "real": truth, "simulated": mean}
        row["ratio"] = mean / truth if truth else float("nan")
        if len(values) > 1:
            row["seeds"] = " ".join(f"{value:.3f}" for value in values)
        row["verdict"] = _verdict(str(name), truth, mean)
        rows.append(row)
    return rows


def _verdict(name: str, real: float, mean: float) -> str:
    if np.isnan(mean):
        return "too small an experiment"
    if np.isnan(real):
        return "not known"
    return "as real" if abs(mean - real) <= tolerance(name, real) else "off"


def residuals(real: dict[str, float], found: pd.DataFrame) -> np.ndarray:
    """Distances of the means over seeds in tolerances, weighted: their squares sum to the loss.

    A family of statistics counts as much as another, whatever number of rows it has, and a distance
    beyond four tolerances as four: what cannot be reached should not decide.
    """
    mean = found.mean(axis=1)
    names = [
        name
        for name in real
        if name in mean.index and not name.startswith(UNCERTAIN) and np.isfinite(mean[name])
    ]
    families = pd.Series([_family(name) for name in names])
    weight = 1 / (families.map(families.value_counts()) * families.nunique())
    distance = [(mean[name] - real[name]) / tolerance(name, real[name]) for name in names]
    return np.clip(distance, -4, 4) * np.sqrt(weight.to_numpy(dtype=float))


def loss(real: dict[str, float], found: pd.DataFrame) -> float:
    """Mean square distance in tolerances: at 1 the average statistic is just as real."""
    return float((residuals(real, found) ** 2).sum())


def _family(name: str) -> str:
    for family in ("same drug", "different drugs", "a drug's mean", "effects", "table"):
        if name.startswith(family):
            return family
    return "benchmark"
