"""The nearest rows of each row, exactly; the groups and the batches that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.core.stats import Array
from perturbgen.retrieval.embedding import (
    Measure,
    Similarity,
    codes,
    read_embedding,
    require_labels,
)

_BLOCK_BYTES: Final = 64 << 20
_ACCEPTED: Final = 0.05  # kBET's level
_FEWEST: Final = 3  # rows that a stratum needs to have neighbours worth counting


def nearest(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    k: int,
    differ: str | Sequence[str] = (),
    similarity: Measure = "cosine",
) -> tuple[Array, Array]:
    """(rows, k) numbers of the most similar other rows, and their similarities, the best first.

    Neighbours differ from the row in each of ``differ``; where fewer than k do, the rest has row -1
    and similarity NaN. For euclidean the similarity is the negative distance.
    """
    columns = require_labels(meta, differ)
    vectors = read_embedding(embedding, meta)
    if not 0 < k < len(vectors):
        raise SchemaError(
            f"{k} neighbours of {len(vectors)} rows", expected=f"between 1 and {len(vectors) - 1}"
        )
    all_rows = np.arange(len(vectors))
    prepared = Similarity.of(vectors, all_rows, all_rows, similarity)
    labels = [codes(meta, [column]) for column in columns]
    size = max(1, _BLOCK_BYTES // (vectors.itemsize * len(vectors)))
    parts = []
    for start in range(0, len(vectors), size):
        rows = np.arange(start, min(start + size, len(vectors)))
        block = prepared.block(slice(start, start + size))[:, prepared.column]
        # A row is always its own nearest.
        block[rows - start, rows] = -np.inf
        for label in labels:
            unlike = (label[rows, None] != label) & (label >= 0) & (label[rows, None] >= 0)
            block[~unlike] = -np.inf
        parts.append(_largest(block, k))
    rows, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    if similarity == "euclidean":
        # The product ranks by distance but is none; the distance itself is computed for the few
        # that are shown.
        found = zip(rows, vectors, strict=True)
        values = -np.stack([np.linalg.norm(vectors[r] - v, axis=1) for r, v in found])
        values[rows < 0] = np.nan
    return rows, values


def _largest(values: Array, k: int) -> tuple[Array, Array]:
    """The places (rows, k) of each row's largest values, and these; else -1 and NaN."""
    limits = -np.partition(-values, k - 1, axis=1)[:, k - 1]
    chosen = np.empty((len(values), k), np.int64)
    for i, (row, limit) in enumerate(zip(values, limits, strict=True)):
        # Of those that tie with the k-th, the first by row number: partition alone would take any.
        possible = np.flatnonzero(row >= limit)
        chosen[i] = possible[np.argsort(-row[possible], kind="stable")[:k]]
    found = np.take_along_axis(values, chosen, axis=1)
    return np.where(np.isinf(found), -1, chosen), np.where(np.isinf(found), np.nan, found)


def neighbour_table(
    meta: pd.DataFrame, rows: Array, values: Array, *, same: Sequence[str]
) -> pd.DataFrame:
    """One row per neighbour, with its labels and the query's; do they agree in ``same``?"""
    query, rank = np.nonzero(rows >= 0)  # -1: there were fewer neighbours
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
    """Which other groups the neighbours of each group's rows belong to, by ``share``."""
    keys, others = list(same), [f"neighbour {column}" for column in same]
    unlike = table[~table["agrees"]].groupby([*keys, *others], sort=True, observed=True)
    counted = unlike["similarity"].agg(size="size", similarity="mean").reset_index()
    total = table.groupby(keys, sort=True, observed=True).size().rename("total").reset_index()
    counted = counted.merge(total, on=keys)
    counted["share"] = counted["size"] / counted["total"]
    order, falling = [*keys, "share", "similarity"], [True] * len(keys) + [False, False]
    counted = counted.sort_values(order, ascending=falling, kind="stable", ignore_index=True)
    return counted[[*keys, *others, "share", "similarity"]]


def knn_mixing(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    batch: str,
    within: str | Sequence[str] = (),
    k: int = 30,
    similarity: Measure = "euclidean",
) -> pd.DataFrame:
    """Per row: how its k nearest neighbours spread over batches; NaN where nothing can mix.

    ``within`` looks for neighbours in the row's own stratum only (its label, or the controls),
    which is what keeps a batch of other compounds from looking like a batch effect. ``same_batch``
    is the share of neighbours of the row's own batch and ``expected`` that share by chance;
    ``lisi`` the inverse Simpson index of the neighbours' batches; ``p`` kBET's chi-squared p-value
    of their counts against the stratum's.
    """
    require_labels(meta, [batch])
    vectors, strata = read_embedding(embedding, meta), codes(meta, require_labels(meta, within))
    batches = codes(meta, [batch])
    if k < 1:
        raise SchemaError(f"{k} neighbours", expected="at least one")
    out = np.full((len(meta), 6), np.nan)
    # Of one label each: labels that differ between batches would pass for a batch effect.
    for code in np.unique(strata[strata >= 0]):
        rows = np.flatnonzero((strata == code) & (batches >= 0))
        if len(rows) >= _FEWEST and len(np.unique(batches[rows])) > 1:
            out[rows] = _mix(vectors[rows], batches[rows], min(k, len(rows) - 1), similarity)
    names = ["neighbours", "batches", "same_batch", "expected", "lisi", "p"]
    return pd.DataFrame(out, columns=names, index=meta.index)


def _mix(vectors: Array, batch: Array, k: int, similarity: Measure) -> Array:
    """(rows, 6) what :func:`knn_mixing` says of one stratum."""
    from scipy.stats import chi2

    batch = pd.factorize(batch)[0]
    unlabelled = pd.DataFrame(index=range(len(vectors)))
    neighbour, _ = nearest(vectors, unlabelled, k=k, similarity=similarity)
    size = np.bincount(batch)
    counts = np.stack([(batch[neighbour] == b).sum(axis=1) for b in range(len(size))], axis=1)
    others = size - (batch[:, None] == np.arange(len(size)))  # the row itself is no neighbour
    expected = k * others / (len(batch) - 1)
    with np.errstate(invalid="ignore"):
        squares = np.where(expected > 0, (counts - expected) ** 2 / expected, 0).sum(axis=1)
    own = np.arange(len(batch)), batch
    columns = [
        np.full(len(batch), k),
        np.full(len(batch), len(size)),
        counts[own] / k,
        expected[own] / k,
        1 / ((counts / k) ** 2).sum(axis=1),
        chi2.sf(squares, len(size) - 1),
    ]
    return np.stack(columns, axis=1)


def mixing_summary(mixing: pd.DataFrame) -> dict[str, float]:
    """``ilisi`` (0 no mixing, 1 perfect), kBET's ``acceptance``, neighbours of the own batch.

    ``ilisi`` is the median over rows of (lisi - 1) / (batches - 1), with the batches of the row's
    own stratum.
    """
    used = mixing.dropna()
    if used.empty:
        raise SchemaError(
            "no stratum holds two batches",
            expected="a stratum of three rows or more in at least two batches",
            cause="labels nested in batches: each compound on one plate only",
            fix="use controls, or no within=",
        )
    return {
        "ilisi": float(((used["lisi"] - 1) / (used["batches"] - 1)).median()),
        "acceptance": float((used["p"] >= _ACCEPTED).mean()),
        "same_batch": float(used["same_batch"].mean()),
        "expected": float(used["expected"].mean()),
        "rows": len(used),
    }
