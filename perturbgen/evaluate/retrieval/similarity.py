"""Similarities as matrix products of prepared rows, a block of queries at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten, suggest

Array = np.ndarray[Any, Any]
Measure = str | Callable[[Array, Array], Array]
NAMES: Final = ("cosine", "correlation", "spearman", "euclidean", "precomputed")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Similarity:
    """Prepared queries and candidates; ``column[c]`` is candidate c's row among the distinct ones."""

    queries: Array
    candidates: Array
    column: Array
    product: Callable[[Array, Array], Array] | None = None  # None: the plain matrix product

    def block(self, rows: slice) -> Array:
        """(queries in the block, distinct candidates), larger is more alike."""
        queries = self.queries[rows]
        if self.product is None:
            return queries @ self.candidates.T
        values = np.asarray(self.product(queries, self.candidates))
        expected = (len(queries), len(self.candidates))
        if values.shape != expected:
            raise SchemaError(
                f"the similarity gave shape {values.shape}", expected=f"(queries, candidates) = {expected}"
            )
        if not np.isfinite(values).all():
            raise SchemaError("the similarity gave NaN or infinity", expected="a finite number for every pair")
        return np.ascontiguousarray(values)


def prepare(vectors: Array, query: Array, candidate: Array, measure: Measure) -> Similarity:
    """Rows ready for products. Equal candidates share one column, so that what is tied is tied to the last bit."""
    if isinstance(measure, str) and measure not in NAMES:
        raise SchemaError(f"no similarity {measure!r}: {suggest(measure, NAMES)}", expected=shorten(NAMES))
    if measure == "precomputed":
        return precomputed(vectors, query, candidate)
    if callable(measure):
        left = right = vectors
    elif measure == "euclidean":
        left, right = euclidean(vectors)
    else:
        left = right = unit_rows(vectors, measure)
    kept, column = distinct(right[candidate])
    return Similarity(left[query], right[candidate[kept]], column, measure if callable(measure) else None)


def precomputed(matrix: Array, query: Array, candidate: Array) -> Similarity:
    """The embedding is itself the (rows, rows) matrix of similarities, row i being query i's."""
    if matrix.shape[0] != matrix.shape[1]:
        raise SchemaError(f"a precomputed similarity of shape {matrix.shape}", expected="(rows, rows)")
    return Similarity(query, candidate, np.arange(len(candidate)), lambda q, c: matrix[np.ix_(q, c)])


def unit_rows(vectors: Array, measure: str) -> Array:
    """Rows of length one: as they are (cosine), centred (correlation) or centred ranks (spearman).

    A zero vector, and a constant one where rows are centred, stays zero: it is equally far from everything.
    """
    rows = ranks(vectors) if measure == "spearman" else vectors
    if measure in ("correlation", "spearman"):
        rows = np.where(np.ptp(rows, axis=1, keepdims=True) == 0, 0, rows - rows.mean(axis=1, keepdims=True))
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    empty = largest[:, 0] == 0
    if empty.any():
        log.warning(
            "%d of %d rows are %s vectors: their similarity to everything is 0",
            empty.sum(), len(rows), "zero" if measure == "cosine" else "constant",
        )  # fmt: skip
    scaled = rows / np.where(largest == 0, 1, largest)  # tiny and huge rows have a length, too
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    return scaled / np.where(length == 0, 1, length)[:, None]


def ranks(vectors: Array, *, block: int = 4096) -> Array:
    """Ranks within each row, ties averaged."""
    from scipy.stats import rankdata

    out = np.empty_like(vectors)
    for start in range(0, len(vectors), block):
        out[start : start + block] = rankdata(vectors[start : start + block], axis=1)
    return out


def euclidean(vectors: Array) -> tuple[Array, Array]:
    """Rows whose product is 2 x.y - |y|^2, which falls as the distance from x to y grows."""
    centred = vectors - vectors.mean(axis=0)
    square = np.einsum("ij,ij->i", centred, centred)[:, None]
    return np.hstack([2 * centred, -np.ones_like(square)]), np.hstack([centred, square])


def distinct(vectors: Array, *, block: int = 4096) -> tuple[Array, Array]:
    """The first of each set of equal rows, and each row's place among them."""
    weights = np.random.default_rng(0).standard_normal(vectors.shape[1])
    starts = range(0, len(vectors), block)  # each row is summed alone: equal rows have equal marks, wherever they lie
    mark = np.concatenate([np.zeros(0), *((vectors[s : s + block] * weights).sum(axis=1) for s in starts)])
    _, first, column = np.unique(mark, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[column] != np.arange(len(vectors)))
    if not len(repeated) or not (vectors[repeated] == vectors[first[column[repeated]]]).all():
        return np.arange(len(vectors)), np.arange(len(vectors))
    kept = np.sort(first)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return kept, place[column]


def read_embedding(embedding: Array | pd.DataFrame, meta: pd.DataFrame) -> Array:
    """(rows, features) floats without NaN, a row for each of meta's; a labelled table is joined by label."""
    if isinstance(embedding, pd.DataFrame):
        absent = meta.index.difference(embedding.index)
        if len(absent) or not embedding.index.is_unique:
            raise SchemaError(
                f"the embedding lacks {len(absent)} of the {len(meta)} rows, or repeats some: {shorten(absent)}",
                expected="one row of the embedding for each row of the labels",
            )
        embedding = embedding.loc[meta.index].to_numpy()
    vectors = np.asarray(embedding)
    if vectors.ndim != 2 or len(vectors) != len(meta) or 0 in vectors.shape:
        raise SchemaError(
            f"an embedding of shape {vectors.shape} for {len(meta)} labelled rows", expected="(rows, features)"
        )
    if vectors.dtype.kind not in "fiub":
        raise SchemaError(f"an embedding of type {vectors.dtype}", expected="numbers")
    vectors = vectors if vectors.dtype in (np.float32, np.float64) else vectors.astype(np.float32)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise SchemaError(
            f"{bad.sum()} rows of the embedding hold NaN or infinity: {shorten(meta.index[bad])}",
            expected="finite numbers",
            cause="genes that were not measured, a feature of zero variance, or float16 that overflowed",
            fix="drop those rows or features, or fill them in",
        )
    return vectors
