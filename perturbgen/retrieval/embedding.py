"""An embedding and its labels as they are given, checked and made ready for similarities.

Similarities are matrix products of prepared rows, a block of queries at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.core.stats import Array

Measure = str | Callable[[Array, Array], Array]
_NAMES: Final = ("cosine", "correlation", "spearman", "euclidean", "precomputed")
_log = logging.getLogger(__name__)


def as_list(columns: str | Sequence[str]) -> list[str]:
    """One column or several."""
    return [columns] if isinstance(columns, str) else list(columns)


def require_labels(meta: pd.DataFrame, columns: Sequence[str]) -> None:
    """All columns are there."""
    for column in columns:
        if column not in meta:
            raise SchemaError(
                f"no column {column!r} among the {len(meta.columns)} label columns",
                expected="a column of labels",
                fix=suggest(column, [str(name) for name in meta.columns]),
            )


def codes(meta: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(rows,) one integer for each combination of values, by appearance; -1 if any is missing."""
    combined = np.zeros(len(meta), np.int64)
    for column in columns:
        one, values = pd.factorize(meta[column])
        combined = np.where((combined < 0) | (one < 0), -1, combined * (len(values) + 1) + one)
        # Made dense after each column: products of many columns' sizes would overflow.
        known = combined >= 0
        combined[known] = pd.factorize(combined[known])[0]
    return combined


def read_mask(mask: Array | None, meta: pd.DataFrame, name: str) -> Array:
    """A mask over the rows; all of them by default. A labelled one is joined by label."""
    if mask is None:
        return np.ones(len(meta), bool)
    if isinstance(mask, pd.Series):
        absent = meta.index.difference(mask.index)
        if len(absent):
            raise SchemaError(
                f"{name} lacks {len(absent)} rows: {shorten(absent)}",
                expected="a value for every row",
            )
        mask = mask.loc[meta.index].to_numpy()
    mask = np.asarray(mask)
    if mask.shape != (len(meta),) or mask.dtype != bool:
        raise SchemaError(
            f"{name} has shape {mask.shape} and type {mask.dtype}",
            expected=f"{len(meta)} booleans, one a row",
        )
    return mask


def read_embedding(embedding: Array | pd.DataFrame, meta: pd.DataFrame) -> Array:
    """(rows, features) finite floats, a row for each of meta's, joined by label where labelled."""
    if isinstance(embedding, pd.DataFrame):
        absent = meta.index.difference(embedding.index)
        if len(absent) or not embedding.index.is_unique:
            raise SchemaError(
                f"the embedding lacks {len(absent)} of the {len(meta)} rows, or repeats some: "
                f"{shorten(absent)}",
                expected="one row of the embedding for each row of the labels",
            )
        embedding = embedding.loc[meta.index].to_numpy()
    vectors = np.asarray(embedding)
    if vectors.ndim != 2 or len(vectors) != len(meta) or 0 in vectors.shape:
        raise SchemaError(
            f"an embedding of shape {vectors.shape} for {len(meta)} labelled rows",
            expected="(rows, features)",
        )
    if vectors.dtype.kind not in "fiub":
        raise SchemaError(f"an embedding of type {vectors.dtype}", expected="numbers")
    # Products of half precision or of small integers overflow.
    vectors = vectors if vectors.dtype in (np.float32, np.float64) else vectors.astype(np.float32)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise SchemaError(
            f"{bad.sum()} rows of the embedding hold NaN or infinity: {shorten(meta.index[bad])}",
            expected="finite numbers",
            cause="genes that were not measured, a feature of zero variance, or float16 that "
            "overflowed",
            fix="drop those rows or features, or fill them in",
        )
    return vectors


@dataclass(frozen=True)
class Similarity:
    """Prepared queries and candidates; ``column[c]`` is candidate c's place among the distinct."""

    queries: Array
    candidates: Array
    column: Array
    product: Callable[[Array, Array], Array] | None = None  # None: the plain matrix product

    @classmethod
    def of(cls, vectors: Array, query: Array, candidate: Array, measure: Measure) -> Self:
        """Rows ready for products: those of ``query`` and of ``candidate``, by number."""
        if isinstance(measure, str) and measure not in _NAMES:
            raise SchemaError(
                f"no similarity {measure!r}: {suggest(measure, _NAMES)}", expected=shorten(_NAMES)
            )
        if measure == "precomputed":
            if vectors.shape[0] != vectors.shape[1]:
                raise SchemaError(
                    f"a precomputed similarity of shape {vectors.shape}", expected="(rows, rows)"
                )
            all_rows = np.arange(len(candidate))
            return cls(query, candidate, all_rows, lambda q, c: vectors[np.ix_(q, c)])
        if callable(measure):
            left = right = vectors
        elif measure == "euclidean":
            # 2 x.y - |y|^2 falls as the distance from x to y grows; centred, so that few digits are
            # lost.
            centred = vectors - vectors.mean(axis=0)
            square = np.einsum("ij,ij->i", centred, centred)[:, None]
            left = np.hstack([2 * centred, -np.ones_like(square)])
            right = np.hstack([centred, square])
        else:
            left = right = unit_rows(vectors, measure)
        # Equal candidates share one column, so that what is tied is tied to the last bit.
        kept, column = _distinct_rows(right[candidate])
        product = measure if callable(measure) else None
        return cls(left[query], right[candidate[kept]], column, product)

    def block(self, rows: slice) -> Array:
        """(queries in the block, distinct candidates), larger is more alike."""
        queries = self.queries[rows]
        if self.product is None:
            return queries @ self.candidates.T
        values = np.asarray(self.product(queries, self.candidates))
        expected = (len(queries), len(self.candidates))
        if values.shape != expected:
            raise SchemaError(
                f"the similarity gave shape {values.shape}",
                expected=f"(queries, candidates) = {expected}",
            )
        if not np.isfinite(values).all():
            raise SchemaError(
                "the similarity gave NaN or infinity", expected="a finite number for every pair"
            )
        # One layout, for which the kernels are compiled once.
        return np.ascontiguousarray(values)


def unit_rows(vectors: Array, measure: str) -> Array:
    """Rows of length one: as they are (cosine), centred (correlation) or centred ranks (spearman).

    A zero vector, and a constant one where rows are centred, stays zero: it is equally far from
    everything.
    """
    rows = _ranks(vectors) if measure == "spearman" else vectors
    if measure in ("correlation", "spearman"):
        constant = np.ptp(rows, axis=1, keepdims=True) == 0
        rows = np.where(constant, 0, rows - rows.mean(axis=1, keepdims=True))
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    empty = largest[:, 0] == 0
    if empty.any():
        _log.warning(
            "%d of %d rows are %s vectors: their similarity to everything is 0",
            empty.sum(),
            len(rows),
            "zero" if measure == "cosine" else "constant",
        )
    # Scaled first: the squares of tiny and huge rows would leave the range of float32.
    scaled = rows / np.where(largest == 0, 1, largest)
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    return scaled / np.where(length == 0, 1, length)[:, None]


def _ranks(vectors: Array, *, block: int = 4096) -> Array:
    """Ranks within each row, ties averaged."""
    from scipy.stats import rankdata

    out = np.empty_like(vectors)
    for start in range(0, len(vectors), block):
        out[start : start + block] = rankdata(vectors[start : start + block], axis=1)
    return out


def _distinct_rows(vectors: Array, *, block: int = 4096) -> tuple[Array, Array]:
    """The first of each set of equal rows, and each row's place among them."""
    weights = np.random.default_rng(0).standard_normal(vectors.shape[1])
    # A mark for each row instead of sorting rows. Each is summed alone, not by a product: equal
    # rows have equal marks, wherever they lie.
    starts = range(0, len(vectors), block)
    marks = [(vectors[s : s + block] * weights).sum(axis=1) for s in starts]
    mark = np.concatenate([np.zeros(0), *marks])
    _, first, column = np.unique(mark, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[column] != np.arange(len(vectors)))
    if not len(repeated) or not (vectors[repeated] == vectors[first[column[repeated]]]).all():
        return np.arange(len(vectors)), np.arange(len(vectors))
    kept = np.sort(first)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return kept, place[column]
