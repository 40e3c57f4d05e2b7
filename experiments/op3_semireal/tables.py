"""The experiment's two tables: the score of every prediction, and what each step contributes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd


def score_rows(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """MRRMSE of every prediction by seed, and the mean of its ratios to zeros."""
    ratio = (scores / scores.loc["zeros"]).mean(axis=1)
    return [
        {
            "prediction": name,
            **{f"seed {seed}": value for seed, value in row.items()},
            "ratio": ratio[name],
        }
        for name, row in scores.iterrows()
    ]


def contributions(scores: pd.DataFrame, models: Iterable[str], k: int) -> list[dict[str, Any]]:
    """What each step changes of the ratio to zeros, by model, with k replicates: the mean over
    seeds and its SD.
    """
    steps = [
        ("the organisers' design", "the seed's way", "noise-free means, full design"),
        (
            "sampled cells and depths",
            "noise-free means, full design",
            "noise-free means, sampled cells",
        ),
        ("drawn counts, control route", "noise-free means, sampled cells", "one draw"),
        (f"{k} replicates", "one draw", f"t averaged, K = {k}"),
        ("anchoring at generated vehicle wells", f"t averaged, K = {k}", f"anchored t, K = {k}"),
        ("shrinkage", f"anchored t, K = {k}", "anchored t, shrunk"),
        ("plug-in t in place of replicates", "anchored t, shrunk", "plug-in t, shrunk"),
        (
            "control route against prior, K = 2",
            "anchored t, K = 2, latent prior",
            "anchored t, K = 2",
        ),
        (
            "control route against posterior, K = 2",
            "anchored t, K = 2, latent posterior",
            "anchored t, K = 2",
        ),
    ]
    ratio = scores / scores.loc["zeros"]
    rows = []
    for step, before, after in steps:
        row: dict[str, Any] = {"step": step}
        for name in models:
            change = ratio.loc[f"{name}: {after}"] - ratio.loc[f"{name}: {before}"]
            row |= {
                name: float(change.mean()),
                f"{name} SD": float(change.std()) if len(change) > 1 else None,
            }
        rows.append(row)
    return rows
