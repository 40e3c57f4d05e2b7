"""Similarities of profiles: functions of queries (q, genes), references (r, genes) to (q, r).

Larger is more alike. Profiles must be finite; a profile of zeros is like nothing, at similarity 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.stats import rankdata

from perturbgen.core.errors import SchemaError
from perturbgen.l1000.connectivity import connect, descending_ranks, enrichment
from perturbgen.profiles.linear import unit

_Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _require_profiles(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as floating point, if they have the same genes and no missing value."""
    for values in (queries, references):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise SchemaError(
                f"{bad.sum():,} of {len(values):,} profiles have missing values, the first is "
                f"number {bad.argmax()}",
                expected="finite numbers",
                fix="leave the genes with missing values out, or set their z-scores to 0",
            )
    if queries.shape[1] != references.shape[1]:
        raise SchemaError(
            f"queries have {queries.shape[1]:,} genes, references {references.shape[1]:,}"
        )
    kind = np.result_type(queries, references, np.float32)
    return queries.astype(kind, copy=False), references.astype(kind, copy=False)


def _cosine(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The cosine of the angle between profiles."""
    queries, references = _require_profiles(queries, references)
    return unit(queries) @ unit(references).T


def _pearson(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Pearson's correlation; 0 with a constant profile."""
    queries, references = _require_profiles(queries, references)
    centred = [values - values.mean(axis=1, keepdims=True) for values in (queries, references)]
    return unit(centred[0]) @ unit(centred[1]).T


def _spearman(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Spearman's correlation, ties at their mean rank."""
    queries, references = _require_profiles(queries, references)
    return _pearson(rankdata(queries, axis=1), rankdata(references, axis=1))


def _euclidean(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The distance with a minus sign."""
    # near profiles leave a small difference of large squares: single precision would lose it
    queries, references = _require_profiles(
        queries.astype(np.float64), references.astype(np.float64)
    )
    squares = (
        (queries**2).sum(1)[:, None] + (references**2).sum(1)[None] - 2 * queries @ references.T
    )
    # equal profiles may fall below 0 by rounding
    return -np.sqrt(np.maximum(squares, 0))


def _extremes(values: np.ndarray, n: int) -> np.ndarray:
    """+1 for the n largest genes of each profile, -1 for the n smallest, else 0."""
    ranks = descending_ranks(values)
    return (ranks <= n).astype(values.dtype) - (ranks > values.shape[1] - n).astype(values.dtype)


def _xsum(
    queries: np.ndarray, references: np.ndarray, *, n: int = 100, query_n: int = 50
) -> np.ndarray:
    """XSum (Cheng 2014): the reference's sum over the query's up genes minus its down genes.

    Of the reference only its n largest and n smallest genes count; the query's sets have
    ``query_n`` genes each.
    """
    queries, references = _require_profiles(queries, references)
    kept = np.where(_extremes(references, n) != 0, references, 0)
    return _extremes(queries, query_n) @ kept.T


def _xcos(queries: np.ndarray, references: np.ndarray, *, n: int = 100) -> np.ndarray:
    """XCos (Cheng 2013): cosine over the reference's n largest and n smallest genes."""
    queries, references = _require_profiles(queries, references)
    mask = (_extremes(references, n) != 0).astype(references.dtype)
    lengths = np.sqrt(np.maximum((queries**2) @ mask.T, 0))
    return (queries @ unit(references * mask).T) / np.where(lengths > 0, lengths, 1)


def _signed_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1 to G of the absolute values, with the sign of the value."""
    return rankdata(np.abs(values), axis=1) * np.sign(values)


def _zhang(queries: np.ndarray, references: np.ndarray, *, n: int | None = None) -> np.ndarray:
    """Zhang and Gant 2008: the product of signed ranks over its maximum, in -1 to 1.

    With n, the query is only its n genes of largest size, ranked among themselves.
    """
    queries, references = _require_profiles(queries, references)
    genes = queries.shape[1]
    m = genes if n is None else min(n, genes)
    query = _signed_ranks(queries)
    query = np.sign(query) * np.maximum(np.abs(query) - (genes - m), 0)
    largest = float(np.sum(np.arange(m, 0, -1.0) * np.arange(genes, genes - m, -1.0)))
    return query @ _signed_ranks(references).T / largest


def _mann_whitney(queries: np.ndarray, references: np.ndarray, *, n: int = 50) -> np.ndarray:
    """SigCom LINCS: z of the mean rank of the query's n up genes minus its n down genes.

    z = (mean rank - (G + 1) / 2) / sqrt((G + 1)(G - n) / 12 n), ranks from the smallest value;
    mimickers are positive.
    """
    queries, references = _require_profiles(queries, references)
    genes = queries.shape[1]
    if not 0 < n < genes:
        raise SchemaError(
            f"sets of {n} genes of {genes:,}", expected="fewer genes in a set than there are"
        )
    ranks = rankdata(references, axis=1)
    spread = np.sqrt((genes + 1) * (genes - n) / (12 * n))
    return _extremes(queries, n).astype(np.float64) @ (ranks / n).T / spread


def _wtcs_similarity(queries: np.ndarray, references: np.ndarray, *, n: int = 50) -> np.ndarray:
    """WTCS of the references for the n largest and n smallest genes of each query."""
    queries, references = _require_profiles(queries, references)
    if not 0 < 2 * n <= queries.shape[1]:
        raise SchemaError(
            f"two sets of {n} genes of {queries.shape[1]:,}",
            expected="two sets that do not overlap",
        )
    values = references.astype(np.float64)
    ranks, order = descending_ranks(values), np.argsort(-queries, axis=1, kind="stable")
    up = enrichment(values, ranks, list(order[:, :n]))
    down = enrichment(values, ranks, list(order[:, -n:]))
    return connect(up, down).T


def symmetrised(similarity: _Similarity) -> _Similarity:
    """The mean of both directions of an asymmetric similarity."""

    def both(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
        return (similarity(queries, references) + similarity(references, queries).T) / 2

    return both


SIMILARITIES: Final[dict[str, _Similarity]] = {
    "cosine": _cosine,
    "pearson": _pearson,
    "spearman": _spearman,
    "euclidean": _euclidean,
    "xsum": _xsum,
    "xcos": _xcos,
    "zhang": _zhang,
    "mann-whitney": _mann_whitney,
    "wtcs": _wtcs_similarity,
    "wtcs-symmetric": symmetrised(_wtcs_similarity),
}
