"""The nearest rows of each row, exactly, a block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.retrieval.pairs import codes, require_labels
from perturbgen.retrieval.ranks import Measure, Similarity, prepare, read_embedding

_Array = np.ndarray[Any, Any]
_BLOCK_BYTES = 64 << 20


def nearest(
    embedding: _Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    k: int,
    differ: str | Sequence[str] = (),
    similarity: Measure = "cosine",
) -> tuple[_Array, _Array]:
    """(rows, k) row numbers of the most similar others and their similarities, the best first; of equals the first.

    Neighbours differ from the row in each of ``differ``; where fewer than k do, the rest has row -1 and similarity NaN.
    For euclidean the similarity is the negative distance.
    """
    columns = [differ] if isinstance(differ, str) else list(differ)
    require_labels(meta, columns)
    vectors = read_embedding(embedding, meta)
    if not 0 < k < len(vectors):
        raise SchemaError(
            f"{k} neighbours of {len(vectors)} rows", expected=f"between 1 and {len(vectors) - 1}"
        )
    everyone = np.arange(len(vectors))
    prepared = prepare(vectors, everyone, everyone, similarity)
    labels = [codes(meta, [column]) for column in columns]
    size = max(1, _BLOCK_BYTES // (vectors.itemsize * len(vectors)))
    blocks = [slice(s, min(s + size, len(vectors))) for s in range(0, len(vectors), size)]
    parts = [_nearest_block(prepared, block, k, labels) for block in blocks]
    rows, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    if similarity == "euclidean":
        values = -np.stack(
            [np.linalg.norm(vectors[r] - v, axis=1) for r, v in zip(rows, vectors, strict=True)]
        )
        values[rows < 0] = np.nan
    return rows, values


def _nearest_block(
    similarity: Similarity, rows: slice, k: int, labels: Sequence[_Array]
) -> tuple[_Array, _Array]:
    """The k best of each query in the block, itself apart."""
    values = similarity.block(rows)[:, similarity.column]
    values[np.arange(len(values)), np.arange(rows.start, rows.stop)] = -np.inf
    for label in labels:
        unlike = (label[rows, None] != label) & (label >= 0) & (label[rows, None] >= 0)
        values[~unlike] = -np.inf
    reach = -np.partition(-values, k - 1, axis=1)[:, k - 1]
    chosen = np.stack([_best(row, limit, k) for row, limit in zip(values, reach, strict=True)])
    found = np.take_along_axis(values, chosen, axis=1)
    return np.where(np.isinf(found), -1, chosen), np.where(np.isinf(found), np.nan, found)


def _best(values: _Array, limit: float, k: int) -> _Array:
    """The k largest, in order; of those that tie, the first ones."""
    possible = np.flatnonzero(values >= limit)
    return possible[np.argsort(-values[possible], kind="stable")[:k]]


def neighbour_table(
    meta: pd.DataFrame, rows: _Array, values: _Array, *, same: Sequence[str]
) -> pd.DataFrame:
    """One row per neighbour: who, of whom, its labels and the query's, and whether they agree in ``same``."""
    query, rank = np.nonzero(rows >= 0)
    neighbour = rows[query, rank]
    table = pd.DataFrame(
        {"query": meta.index[query], "rank": rank + 1, "neighbour": meta.index[neighbour]}
    )
    code = codes(meta, same)
    table["similarity"] = values[query, rank]
    table["agrees"] = (code[query] == code[neighbour]) & (code[query] >= 0)
    for column in same:
        table[column] = meta[column].to_numpy()[query]
        table[f"neighbour {column}"] = meta[column].to_numpy()[neighbour]
    return table


def group_neighbours(table: pd.DataFrame, *, same: Sequence[str]) -> pd.DataFrame:
    """Which other groups the neighbours of each group's rows belong to: ``share`` of them, and mean similarity."""
    keys, others = list(same), [f"neighbour {column}" for column in same]
    unlike = table[~table["agrees"]]
    counted = (
        unlike.groupby([*keys, *others], sort=True, observed=True)["similarity"]
        .agg(["size", "mean"])
        .reset_index()
    )
    total = table.groupby(keys, sort=True, observed=True).size().rename("total").reset_index()
    counted = counted.merge(total, on=keys)
    counted["share"] = counted["size"] / counted["total"]
    counted = counted.rename(columns={"mean": "similarity"})[
        [*keys, *others, "share", "similarity"]
    ]
    order = [*keys, "share", "similarity"]
    return counted.sort_values(
        order, ascending=[True] * len(keys) + [False, False], kind="stable", ignore_index=True
    )
