"""The nearest rows of each row, exactly, a block at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.evaluate.retrieval.similarity import Measure, Similarity, prepare, read_embedding

Array = np.ndarray[Any, Any]
BLOCK_BYTES = 64 << 20


def nearest(
    embedding: Array | pd.DataFrame, meta: pd.DataFrame, *, k: int, similarity: Measure = "cosine"
) -> tuple[Array, Array]:
    """(rows, k) row numbers of the most similar others and their similarities, the best first; of equals the first.

    For euclidean the similarity is the negative distance.
    """
    vectors = read_embedding(embedding, meta)
    if not 0 < k < len(vectors):
        raise SchemaError(f"{k} neighbours of {len(vectors)} rows", expected=f"between 1 and {len(vectors) - 1}")
    everyone = np.arange(len(vectors))
    prepared = prepare(vectors, everyone, everyone, similarity)
    size = max(1, BLOCK_BYTES // (vectors.itemsize * len(vectors)))
    parts = [nearest_block(prepared, slice(s, min(s + size, len(vectors))), k) for s in range(0, len(vectors), size)]
    rows, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    if similarity == "euclidean":
        values = -np.stack([np.linalg.norm(vectors[r] - v, axis=1) for r, v in zip(rows, vectors, strict=True)])
    return rows, values


def nearest_block(similarity: Similarity, rows: slice, k: int) -> tuple[Array, Array]:
    """The k best of each query in the block, itself apart."""
    values = similarity.block(rows)[:, similarity.column]
    values[np.arange(len(values)), np.arange(rows.start, rows.stop)] = -np.inf
    reach = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]
    chosen = np.stack([best(row, limit, k) for row, limit in zip(values, reach[:, 0], strict=True)])
    return chosen, np.take_along_axis(values, chosen, axis=1)


def best(values: Array, limit: float, k: int) -> Array:
    """The k largest, in order; of those that tie, the first ones."""
    possible = np.flatnonzero(values >= limit)
    return possible[np.argsort(-values[possible], kind="stable")[:k]]
