"""Percent replicating and percent matching: which groups resemble themselves more than random groups of their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.evaluate.retrieval.pairs import codes, require_labels
from perturbgen.evaluate.retrieval.similarity import Measure, prepare, read_embedding

Array = np.ndarray[Any, Any]
LARGEST = 50  # members of a group that are compared; of larger ones so many are drawn


def percent_replicating(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str,
    differ: str | None = None,
    similarity: Measure = "correlation",
    null_groups: int = 1000,
    quantile: float = 0.95,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Per group of two or more: ``median`` similarity of its pairs, the ``threshold`` of its size, ``passes``.

    The threshold is the quantile of the median over pairs of ``null_groups`` random groups as large, whose members are
    all of different groups. ``table["passes"].mean()`` is percent replicating. With ``differ`` (same MoA, another
    compound: percent matching) only pairs that differ there count, ``size`` counts compounds, and a random group is
    made of whole compounds of different groups: their wells are no more independent in the null than in the data.
    """
    require_labels(meta, [same, *([differ] if differ else [])])
    vectors = read_embedding(embedding, meta)
    group = codes(meta, [same])
    unit = codes(meta, [same, differ]) if differ else np.where(group >= 0, np.arange(len(meta)), -1)
    everyone = np.arange(len(meta))
    prepared = prepare(vectors, everyone, everyone, similarity)

    def compare(rows: Array) -> Array:
        block = prepared.queries[rows], prepared.candidates[prepared.column[rows]]
        return block[0] @ block[1].T if prepared.product is None else np.asarray(prepared.product(*block))

    medians, sizes = {}, {}
    for code in range(group.max(initial=-1) + 1):
        rows = np.flatnonzero((group == code) & (unit >= 0))
        rows = np.sort(rng.choice(rows, LARGEST, replace=False)) if len(rows) > LARGEST else rows
        values = pair_values(compare(rows), unit[rows])
        if len(values):
            medians[code], sizes[code] = float(np.median(values)), len(np.unique(unit[rows]))
    if not medians:
        raise SchemaError(
            f"no group of {same!r} has a pair", expected="groups of at least two rows", fix="another same="
        )
    limits = {
        size: float(np.quantile([null_median(compare, group, unit, size, rng) for _ in range(null_groups)], quantile))
        for size in sorted(set(sizes.values()))
    }
    table = pd.DataFrame({"size": sizes, "median": medians})
    table["threshold"] = table["size"].map(limits)
    table["passes"] = table["median"] > table["threshold"]
    names = meta[same].to_numpy()[[int(np.argmax(group == code)) for code in table.index]]
    return table.set_axis(pd.Index(names, name=same))


def pair_values(values: Array, other: Array) -> Array:
    """The similarities of all pairs i < j whose ``other`` differs."""
    i, j = np.triu_indices(len(values), 1)
    return values[i, j][other[i] != other[j]]


def null_median(compare: Any, group: Array, unit: Array, size: int, rng: np.random.Generator) -> float:
    """The median similarity in a random group of ``size`` units (rows, or compounds), each of another group."""
    rows = rng.permutation(np.flatnonzero(unit >= 0))
    one_each = rows[np.unique(group[rows], return_index=True)[1]]
    if len(one_each) < size:
        raise SchemaError(
            f"a group of {size} cannot be drawn from {len(one_each)} groups",
            expected="at least as many groups as the largest has members",
            fix="leave large groups (controls) out",
        )
    chosen = np.flatnonzero(np.isin(unit, unit[rng.choice(one_each, size, replace=False)]))
    return float(np.median(pair_values(compare(chosen), unit[chosen])))
