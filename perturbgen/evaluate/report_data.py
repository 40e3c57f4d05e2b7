"""What the report embeds: scores of all conditions, and tables of as many genes as its size allows."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.console import plain
from perturbgen.core.stats import Array
from perturbgen.evaluate.align import same_levels
from perturbgen.evaluate.scorecard import HEADLINE_NAME, Scorecard

BUDGET = 2_200_000  # bytes of tables: with plotly and the scores, the page stays below 8 MB
OWN = 20  # of each condition's own strongest genes are embedded besides
_BYTES = 2 * 4 / 3  # of a value: 16 bits in base64


def payload(
    card: Scorecard,
    truth: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    budget: int = BUDGET,
) -> dict[str, Any]:
    """Everything that the page's script draws, ready for JSON."""
    columns = truth.columns
    for table in predictions.values():
        columns = columns[columns.isin(table.columns)]
    true = _on_card(card, truth, columns, "the truth")
    genes = _choose_genes(true, int(budget / (_BYTES * len(true) * (1 + len(predictions)))))
    strongest = np.argsort(-np.abs(true), axis=1, kind="stable")[:, :OWN]
    names, codes = np.unique(strongest, return_inverse=True)
    shared, own = {}, {}
    for (
        name,
        table,
    ) in predictions.items():  # one at a time: a whole copy of each would be as large as all tables
        values = _on_card(card, table, columns, name)
        shared[name], own[name] = _quantised(values[:, genes]), _picked(values, strongest)
    return {
        "methods": [{"name": name, "role": card.role(name)} for name in card.ranking["method"]],
        "metrics": _metric_list(card),
        "levels": [str(name or "condition") for name in card.scores.columns.names],
        "conditions": [
            list(map(str, label if isinstance(label, tuple) else (label,)))
            for label in card.scores.columns
        ],
        "overall": _overall(card),
        "scores": {
            metric.name: _floats(_method_scores(card, metric.name)) for metric in card.metrics
        },
        "genes": [str(gene) for gene in columns[genes]],
        "all_genes": len(columns),
        "truth": _quantised(true[:, genes]),
        "tables": shared,
        "own": {
            "names": [str(gene) for gene in columns[names]],
            "codes": codes.reshape(strongest.shape).tolist(),
            "truth": _picked(true, strongest),
            "tables": own,
        },
    }


def _on_card(card: Scorecard, table: pd.DataFrame, genes: pd.Index, name: str) -> Array:
    """The values (conditions, genes) that were scored, joined by label; what is missing is 0."""
    conditions = card.scores.columns
    values = (
        same_levels(table, conditions, name)
        .reindex(index=conditions, columns=genes)
        .to_numpy(float)
    )
    return np.nan_to_num(values, nan=0.0)


def _choose_genes(truth: Array, count: int) -> Array:
    """Positions of the genes to embed: half are the strongest, half an even sample of the rest, strong to silent.

    Strength is the root mean square over conditions (conditions, genes).
    """
    genes = truth.shape[1]
    if count >= genes:
        return np.arange(genes)
    strongest = np.argsort(-np.sqrt(np.square(truth).mean(axis=0)), kind="stable")
    count = max(count, 2)
    first, rest = strongest[: count // 2], strongest[count // 2 :]
    sample = rest[np.linspace(0, len(rest) - 1, count - count // 2).round().astype(int)]
    return np.concatenate([first, sample])


def _picked(values: Array, strongest: Array) -> dict[str, Any]:
    """The values of each condition's own strongest genes (conditions, OWN)."""
    return _quantised(np.take_along_axis(values, strongest, axis=1))


def _method_scores(card: Scorecard, metric: str) -> Array:
    """Scores of one metric (methods, conditions), methods in the order of the ranking."""
    return card.scores.xs(metric, level="metric").loc[card.ranking["method"]].to_numpy()


def _metric_list(card: Scorecard) -> list[dict[str, Any]]:
    """The headline and the metrics, with direction and whether they rank."""
    found = [
        {
            "name": metric.name,
            "title": metric.title,
            "up": metric.higher_is_better,
            "ranks": bool(ranks),
        }
        for metric, ranks in zip(card.metrics, card.overall.ranks, strict=True)
    ]
    ranked = bool(card.ranking["value"].notna().any())
    return [{"name": HEADLINE_NAME, "title": "Headline", "up": True, "ranks": ranked}, *found]


def _overall(card: Scorecard) -> dict[str, list[list[float]]]:
    """Value, its interval, share and its interval, of every method in the order of the ranking, by metric."""
    columns = ["value", "low", "high", "share", "share_low", "share_high"]
    return {
        str(metric): rows.set_index("method")
        .loc[card.ranking["method"], columns]
        .to_numpy()
        .tolist()
        for metric, rows in card.table.groupby("metric", sort=False)
    }


def _floats(values: Array) -> str:
    """32-bit floats, little-endian, base64."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _quantised(values: Array) -> dict[str, Any]:
    """16-bit integers with one scale a row: exact to 1/32,767 of the row's largest value."""
    scale = np.abs(values).max(axis=1, initial=0) / 32767
    scale[scale == 0] = 1
    whole = np.round(values / scale[:, None]).astype("<i2")
    return {
        "scale": [float(f"{s:.7g}") for s in scale],
        "data": base64.b64encode(whole.tobytes()).decode(),
    }


def script_json(record: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(plain(dict(record)), separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )
