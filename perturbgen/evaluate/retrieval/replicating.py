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
    all of different groups. ``table["passes"].mean()`` is percent replicating. With ``differ`` only pairs that differ
    there count (same MoA, another compound: percent matching).
    """
    require_labels(meta, [same, *([differ] if differ else [])])
    vectors = read_embedding(embedding, meta)
    group = codes(meta, [same])
    other = codes(meta, [differ]) if differ else np.arange(len(meta))
    everyone = np.arange(len(meta))
    prepared = prepare(vectors, everyone, everyone, similarity)

    def compare(rows: Array) -> Array:
        block = prepared.queries[rows], prepared.candidates[prepared.column[rows]]
        return block[0] @ block[1].T if prepared.product is None else np.asarray(prepared.product(*block))

    medians, sizes = {}, {}
    for code in range(group.max(initial=-1) + 1):
        rows = np.flatnonzero(group == code)
        rows = np.sort(rng.choice(rows, LARGEST, replace=False)) if len(rows) > LARGEST else rows
        values = pair_values(compare(rows), other[rows])
        if len(values):
            medians[code], sizes[code] = float(np.median(values)), len(rows)
    if not medians:
        raise SchemaError(
            f"no group of {same!r} has a pair", expected="groups of at least two rows", fix="another same="
        )
    limits = {
        size: float(np.quantile([null_median(compare, group, size, rng) for _ in range(null_groups)], quantile))
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


def null_median(compare: Any, group: Array, size: int, rng: np.random.Generator) -> float:
    """The median similarity in a random group whose members are all of different groups."""
    known = np.flatnonzero(group >= 0)
    if len(np.unique(group[known])) < size:
        raise SchemaError(
            f"a group of {size} cannot be drawn from {len(np.unique(group[known]))} groups",
            expected="at least as many groups as the largest has members",
            fix="leave large groups (controls) out",
        )
    rows = rng.permutation(known)
    rows = rows[np.unique(group[rows], return_index=True)[1]]
    rows = rng.choice(rows, size, replace=False)
    return float(np.median(pair_values(compare(rows), np.arange(size))))
