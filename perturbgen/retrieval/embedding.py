"""An embedding and its labels: checked, paired by columns, and made ready for similarities.

Similarities are matrix products of prepared rows, a block of queries at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.core.stats import Array

Measure = str | Callable[[Array, Array], Array]
_NAMES: Final = ("cosine", "correlation", "spearman", "euclidean", "precomputed")
_log = logging.getLogger(__name__)


def require_labels(meta: pd.DataFrame, columns: str | Sequence[str]) -> list[str]:
    """One column or several as a list, all of which are there."""
    columns = [columns] if isinstance(columns, str) else list(columns)
    for column in columns:
        if column not in meta:
            raise SchemaError(
                f"no column {column!r} among the {len(meta.columns)} label columns",
                expected="a column of labels",
                fix=suggest(column, meta.columns),
            )
    return columns


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
        # By label: rows in another order would be scored under each other's names.
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

    # Block by block: rankdata makes float64 copies of all that it is given.
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


class Queries(NamedTuple):
    """Labels of queries as integer codes, -1 where unknown."""

    itself: Array  # (queries,) the query's own number among the candidates, -1 if it is none
    group: Array
    stratum: Array
    differ: Array  # (queries, columns in which positives differ)
    opposed: Array  # (queries, columns in which negatives differ)


class Candidates(NamedTuple):
    """Labels of candidates, and lists of them.

    Group ``g``'s members are ``members[member_starts[g]:member_starts[g + 1]]``, and the possible
    negatives of stratum ``s`` are ``negatives[negative_starts[s]:negative_starts[s + 1]]``.
    """

    group: Array
    differ: Array
    opposed: Array
    members: Array
    member_starts: Array
    negatives: Array
    negative_starts: Array


@dataclass(frozen=True)
class Pairing:
    """Queries against candidates: their rows in the embedding, and their labels.

    What is a positive or a negative is decided in ``ranks``: ``_find_positives``, and for negatives
    ``_count_negatives`` (CPU) and ``_DeviceCounter._histograms`` (GPU).
    """

    query: Array
    candidate: Array
    queries: Queries
    among: Candidates

    @classmethod
    def by_columns(
        cls,
        meta: pd.DataFrame,
        *,
        same: Sequence[str],
        differ: Sequence[str] = (),
        negatives_same: Sequence[str] = (),
        negatives_differ: Sequence[str] = (),
        queries: Array | None = None,
        candidates: Array | None = None,
        negatives: Array | None = None,
    ) -> Self:
        """Positives agree in ``same`` and differ in ``differ``; negatives disagree in ``same``.

        ``negatives_same`` restricts negatives to rows that agree with the query there (the same
        plate), and ``negatives_differ`` to rows that differ in each of its columns. The masks
        (rows,) say which rows ask, which may be found, and which serve as negatives (for instance
        the DMSO wells). A row without ``same`` takes no part, unless ``negatives`` names it; one
        without ``differ`` is no query's positive.
        """
        if not same:
            raise SchemaError(
                "no column in same",
                expected="the columns in which positives agree",
                fix='same=["compound"]',
            )
        group, stratum = codes(meta, same), codes(meta, negatives_same)
        found = read_mask(candidates, meta, "candidates")
        asking = read_mask(queries, meta, "queries") & (group >= 0)
        opposing = found & (group >= 0)
        if negatives is not None:
            opposing = read_mask(negatives, meta, "negatives")
        against = opposing & (stratum >= 0)
        # Rows that no query can find or be measured against are dropped before any similarity.
        candidate = np.flatnonzero((found & (group >= 0)) | against)
        number = np.full(len(meta), -1)
        number[candidate] = np.arange(len(candidate))
        differs, opposes = _separate_codes(meta, differ), _separate_codes(meta, negatives_differ)
        query = np.flatnonzero(asking)
        asked = Queries(number[query], group[query], stratum[query], differs[query], opposes[query])
        among = Candidates(
            group[candidate],
            differs[candidate],
            opposes[candidate],
            *_by_code(group, found, candidate),
            *_by_code(stratum, against, candidate),
        )
        return cls(query, candidate, asked, among)


def _separate_codes(meta: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(rows, columns) the code of each column on its own."""
    out = np.empty((len(meta), len(columns)), np.int64)
    for j, column in enumerate(columns):
        out[:, j] = codes(meta, [column])
    return out


def _by_code(code: Array, wanted: Array, candidate: Array) -> tuple[Array, Array]:
    """The wanted candidates' numbers sorted by their row's code, and where each code begins."""
    own = code[candidate]
    position = np.flatnonzero(wanted[candidate] & (own >= 0))
    order = position[np.argsort(own[position], kind="stable")]
    sizes = np.bincount(own[position], minlength=code.max(initial=-1) + 1)
    return order, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
