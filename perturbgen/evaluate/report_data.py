"""What the report embeds: scores of all conditions, tables of as many genes as its size allows."""

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
from perturbgen.evaluate.card import HEADLINE_NAME, Scorecard

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
    # One at a time: a whole copy of each would be as large as all tables.
    for name, table in predictions.items():
        values = _on_card(card, table, columns, name)
        shared[name] = _quantised(values[:, genes])
        own[name] = _quantised(np.take_along_axis(values, strongest, axis=1))
    methods = card.ranking["method"]
    labels = [label if isinstance(label, tuple) else (label,) for label in card.scores.columns]
    head = {"name": HEADLINE_NAME, "title": "Headline", "up": True}
    metrics = [head | {"ranks": bool(card.ranking["value"].notna().any())}]
    scores = {}
    for metric, ranks in zip(card.metrics, card.overall.ranks, strict=True):
        about = {"name": metric.name, "title": metric.title, "up": metric.higher_is_better}
        metrics.append(about | {"ranks": bool(ranks)})
        scores[metric.name] = _floats(card.scores.xs(metric.name, level="metric").loc[methods])
    drawn = ["value", "low", "high", "share", "share_low", "share_high"]
    return {
        "methods": [{"name": name, "role": card.role(name)} for name in methods],
        "metrics": metrics,
        "levels": [str(name or "condition") for name in card.scores.columns.names],
        "conditions": [list(map(str, label)) for label in labels],
        "overall": {
            str(metric): rows.set_index("method").loc[methods, drawn].to_numpy().tolist()
            for metric, rows in card.table.groupby("metric", sort=False)
        },
        "scores": scores,
        "genes": [str(gene) for gene in columns[genes]],
        "all_genes": len(columns),
        "truth": _quantised(true[:, genes]),
        "tables": shared,
        "own": {
            "names": [str(gene) for gene in columns[names]],
            "codes": codes.reshape(strongest.shape).tolist(),
            "truth": _quantised(np.take_along_axis(true, strongest, axis=1)),
            "tables": own,
        },
    }


def _on_card(card: Scorecard, table: pd.DataFrame, genes: pd.Index, name: str) -> Array:
    """The values (conditions, genes) that were scored, joined by label; what is missing is 0."""
    conditions = card.scores.columns
    found = same_levels(table, conditions, name).reindex(index=conditions, columns=genes)
    return np.nan_to_num(found.to_numpy(float), nan=0.0)


def _choose_genes(truth: Array, count: int) -> Array:
    """Positions of the genes to embed: half are the strongest, half an even sample of the rest,
    strong to silent.

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


def _floats(values: pd.DataFrame) -> str:
    """32-bit floats, little-endian, base64."""
    return base64.b64encode(np.ascontiguousarray(values.to_numpy(), "<f4").tobytes()).decode()


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
    """JSON that may stand inside a script element, where a name with ``</script>`` would end it."""
    text = json.dumps(plain(dict(record)), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")
