"""How alike profiles are: CMap's connectivity (WTCS, its normalised form NCS, tau), similarities.

Similarities are functions of queries (q, genes), references (r, genes) to (q, r); larger is more
alike. Profiles must be finite; a profile of zeros is like nothing, at similarity 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pandas as pd
from numba import njit
from scipy.stats import rankdata

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.system import cores
from perturbgen.profiles.linear import unit

# A mean of a few scores near 0 would make enormous scores of what is divided by it.
_LEAST_SCALE: Final = 0.01
# CMap scales these with the compounds.
_COUNTED_AS: Final = {"trt_poscon": "trt_cp", "ctl_vehicle": "trt_cp"}
log = logging.getLogger(__name__)

_Sets = Mapping[str, Sequence[object]]
_Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


def wtcs(
    signatures: pd.DataFrame,
    up: _Sets | None = None,
    down: _Sets | None = None,
    *,
    weighted: bool = True,
) -> pd.DataFrame:
    """The connectivity of signatures (signatures, genes) with queries: up and down genes.

    WTCS = (ES_up - ES_down) / 2 where the two differ in sign, else 0; with one set only, ES_up or
    -ES_down. Genes are ranked descending; ES is the weighted Kolmogorov-Smirnov statistic of
    Subramanian 2005 (p = 1). Returns (signatures, queries).
    """
    values = _finite(signatures)
    queries = list(dict.fromkeys([*(up or {}), *(down or {})]))
    if not queries:
        raise SchemaError(
            "no query: both sets are empty", expected="genes that go up, or down, or both"
        )
    ranks = _descending_ranks(values)
    found: list[np.ndarray | None] = []
    for sets in (up, down):
        genes = _members(signatures.columns, sets, queries) if sets else None
        found.append(None if genes is None else _enrichment(values, ranks, genes, weighted))
    return pd.DataFrame(_connect(*found), index=signatures.index, columns=queries)


def _finite(table: pd.DataFrame) -> np.ndarray:
    """The values, if none is missing."""
    values = table.to_numpy(np.float64)
    bad = ~np.isfinite(values).all(axis=0)
    if bad.any():
        raise SchemaError(
            f"{bad.sum()} genes have missing values: {shorten(table.columns[bad])}",
            expected="numbers: a gene without a value has no rank",
            fix="leave those genes out, or set their z-scores to 0",
        )
    return values


def _members(genes: pd.Index, sets: _Sets, queries: Sequence[str]) -> list[np.ndarray]:
    """Positions of the genes of each set; others are dropped, with a warning."""
    known = pd.Index([str(gene) for gene in genes], dtype=object)
    found, lost = [], 0
    for query in queries:
        # as text, since Entrez ids are numbers in some files; once, since a gene is one hit
        wanted = pd.Index(dict.fromkeys(str(gene) for gene in sets.get(query, ())), dtype=object)
        places = known.get_indexer(wanted)
        lost += int((places < 0).sum())
        # some genes may be unknown; that all are is a mix-up of ids
        if len(wanted) and (places < 0).all():
            raise SchemaError(
                f"no gene of query {query!r} is among the {len(known):,} genes: {shorten(wanted)}",
                expected=f"ids such as {shorten(known, 3)}",
                cause="symbols in the query and Entrez ids in the signatures, or the reverse",
            )
        found.append(places[places >= 0].astype(np.int64))
    if lost:
        log.warning("%d genes of the queries are not among the signatures' genes", lost)
    return found


def _descending_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1 to G of each signature (signatures, genes), the largest first, ties in file order."""
    # stable: the order of ties would otherwise be that of a sorting algorithm
    order = np.argsort(-values, axis=1, kind="stable")
    ranks = np.empty(values.shape, np.int32)
    np.put_along_axis(ranks, order, np.arange(1, values.shape[1] + 1, dtype=np.int32)[None], axis=1)
    return ranks


def _enrichment(
    values: np.ndarray, ranks: np.ndarray, sets: Sequence[np.ndarray], weighted: bool = True
) -> np.ndarray:
    """Enrichment scores (signatures, sets); an empty set scores 0."""
    starts = np.concatenate([[0], np.cumsum([len(genes) for genes in sets])])
    genes = np.concatenate(sets).astype(np.int64)
    values, ranks = np.ascontiguousarray(values, np.float64), np.ascontiguousarray(ranks, np.int32)
    # threads, since the kernel lets go of the interpreter; few scores are not worth them
    workers = min(cores(as_omp=True), max(1, len(values) * len(sets) // 10_000))
    with ThreadPoolExecutor(workers) as pool:
        done = [
            pool.submit(_es_kernel, values[part], ranks[part], genes, starts, weighted)
            for part in np.array_split(np.arange(len(values)), workers)
        ]
        return np.concatenate([scored.result() for scored in done])


def _connect(up: np.ndarray | None, down: np.ndarray | None) -> np.ndarray:
    """WTCS of two enrichment scores: half their difference where their signs differ, else 0."""
    if up is None or down is None:
        return up if up is not None else -down  # type: ignore[operator]
    return np.where(np.sign(up) != np.sign(down), (up - down) / 2, 0.0)


# without annotations: numba compiles by the types that it is called with
@njit(nogil=True, cache=True)
def _es_kernel(values, ranks, genes, starts, weighted):  # type: ignore[no-untyped-def]
    """ES of signatures (s, g) for sets genes[starts[q]:starts[q + 1]], (s, q).

    e_k = sum_{l<=k} w_l / sum w - (r_k - k) / (G - n) at the k-th hit of rank r_k, and before it;
    the extreme wins.
    """
    signatures, total_genes = values.shape
    scores = np.zeros((signatures, len(starts) - 1))
    for s in range(signatures):
        for q in range(len(starts) - 1):
            chosen = genes[starts[q] : starts[q + 1]]
            n = len(chosen)
            if n == 0:
                continue
            order = np.argsort(ranks[s][chosen])
            whole = 0.0
            for k in range(n):
                whole += abs(values[s, chosen[k]]) if weighted else 1.0
            # no weight to divide by: such a signature connects with nothing
            if whole == 0.0:
                continue
            reached, best = 0.0, 0.0
            for k in range(n):
                gene = chosen[order[k]]
                # at least one: a set of all genes leaves none to miss
                missed = (ranks[s, gene] - (k + 1)) / max(total_genes - n, 1)
                # the walk is lowest just before a hit and highest just after one, nowhere else
                before = reached / whole - missed
                reached += abs(values[s, gene]) if weighted else 1.0
                after = reached / whole - missed
                if abs(before) > abs(best):
                    best = before
                if abs(after) > abs(best):
                    best = after
            scores[s, q] = best
    return scores


def ncs(
    scores: pd.DataFrame, signatures: pd.DataFrame, *, reference: pd.Series | None = None
) -> pd.DataFrame:
    """WTCS (signatures, queries) over the mean of its sign in the cell line and type.

    ``signatures`` has ``cell_line`` and ``pert_type`` by the same index; ``reference`` says which
    of them the means are taken over. A group without any takes the median of those of its type,
    then of its line, then of all.
    """
    about = signatures.loc[scores.index]
    types = about["pert_type"].astype(object).replace(_COUNTED_AS)
    keys = pd.MultiIndex.from_arrays(
        [about["cell_line"].astype(object), types], names=["cell_line", "pert_type"]
    )
    chosen = np.ones(len(scores), bool)
    if reference is not None:
        chosen = reference.loc[scores.index].to_numpy(bool)
    if not chosen.any():
        raise SchemaError("no reference signature is left to normalise by", expected="one at least")
    values = scores.to_numpy(float)
    up, down = (
        _scales(np.where(side > 0, side, np.nan), keys, chosen) for side in (values, -values)
    )
    normalised = values / np.where(values > 0, up, down)
    return pd.DataFrame(normalised, index=scores.index, columns=scores.columns)


def _scales(values: np.ndarray, keys: pd.MultiIndex, chosen: np.ndarray) -> np.ndarray:
    """What scores are divided by (signatures, queries): the mean of the group, 0.01 at least."""
    known = pd.DataFrame(values[chosen], index=keys[chosen])
    # signatures without a cell line or a type are a group, too
    means = known.groupby(level=[0, 1], dropna=False).mean()
    groups = keys.unique()
    table = means.reindex(groups)
    for level in ("pert_type", "cell_line"):
        median = means.groupby(level=level).median()
        table = table.fillna(median.reindex(groups.get_level_values(level)).set_axis(groups))
    table = table.fillna(means.median()).fillna(_LEAST_SCALE).clip(lower=_LEAST_SCALE)
    return table.loc[keys].to_numpy()


def max_quantile(
    scores: pd.DataFrame, groups: pd.Series, *, low: float = 33, high: float = 67
) -> pd.DataFrame:
    """NCS of a perturbagen over its cell lines: the larger of two percentiles (MATLAB's)."""
    summary = {}
    for name, rows in scores.groupby(groups.loc[scores.index].to_numpy(), sort=False):
        # Hazen is what MATLAB calls a percentile, and CMap computes in MATLAB
        below, above = np.percentile(rows.to_numpy(float), [low, high], axis=0, method="hazen")
        summary[name] = np.where(np.abs(above) >= np.abs(below), above, below)
    return pd.DataFrame.from_dict(summary, orient="index", columns=scores.columns)


def tau(scores: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """How rare a connectivity is: the signed share, in %, of reference queries that connect less.

    ``scores`` (signatures, queries) and ``reference`` (signatures, reference queries) are NCS of
    the same signatures.
    """
    if not reference.shape[1]:
        raise SchemaError("tau needs reference queries, and there is none")
    missing = scores.index.difference(reference.index)
    if len(missing):
        raise SchemaError(f"{len(missing)} signatures have no reference scores: {shorten(missing)}")
    strength = np.sort(np.abs(reference.loc[scores.index].to_numpy(float)), axis=1)
    values = scores.to_numpy(float)
    # left: a reference of the same strength does not connect less
    below = [np.searchsorted(*row, side="left") for row in zip(strength, abs(values), strict=True)]
    share = np.array(below, dtype=float).reshape(values.shape) * 100 / strength.shape[1]
    return pd.DataFrame(np.sign(values) * share, index=scores.index, columns=scores.columns)


def _cosine(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The cosine of the angle between profiles."""
    return unit(q) @ unit(r).T


def _pearson(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Pearson's correlation; 0 with a constant profile."""
    return _cosine(q - q.mean(axis=1, keepdims=True), r - r.mean(axis=1, keepdims=True))


def _spearman(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Spearman's correlation, ties at their mean rank."""
    return _pearson(rankdata(q, axis=1), rankdata(r, axis=1))


def _euclidean(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The distance with a minus sign."""
    # near profiles leave a small difference of large squares: single precision would lose it
    q, r = q.astype(np.float64), r.astype(np.float64)
    squares = (q**2).sum(1)[:, None] + (r**2).sum(1)[None] - 2 * q @ r.T
    # equal profiles may fall below 0 by rounding
    return -np.sqrt(np.maximum(squares, 0))


def _extremes(values: np.ndarray, n: int) -> np.ndarray:
    """+1 for the n largest genes of each profile, -1 for the n smallest, else 0."""
    ranks, kind = _descending_ranks(values), values.dtype
    return (ranks <= n).astype(kind) - (ranks > values.shape[1] - n).astype(kind)


def _xsum(q: np.ndarray, r: np.ndarray, *, n: int = 100, query_n: int = 50) -> np.ndarray:
    """XSum (Cheng 2014): the reference's sum over the query's up genes minus its down genes.

    Of the reference only its n largest and n smallest genes count; the query's sets have
    ``query_n`` genes each.
    """
    return _extremes(q, query_n) @ np.where(_extremes(r, n) != 0, r, 0).T


def _xcos(q: np.ndarray, r: np.ndarray, *, n: int = 100) -> np.ndarray:
    """XCos (Cheng 2013): cosine over the reference's n largest and n smallest genes."""
    mask = (_extremes(r, n) != 0).astype(r.dtype)
    lengths = np.sqrt(np.maximum((q**2) @ mask.T, 0))
    return (q @ unit(r * mask).T) / np.where(lengths > 0, lengths, 1)


def _zhang(q: np.ndarray, r: np.ndarray, *, n: int | None = None) -> np.ndarray:
    """Zhang and Gant 2008: the product of signed ranks over its maximum, in -1 to 1.

    With n, the query is only its n genes of largest size, ranked among themselves.
    """
    genes = q.shape[1]
    m = genes if n is None else min(n, genes)
    query, reference = (rankdata(np.abs(each), axis=1) * np.sign(each) for each in (q, r))
    query = np.sign(query) * np.maximum(np.abs(query) - (genes - m), 0)
    largest = float(np.sum(np.arange(m, 0, -1.0) * np.arange(genes, genes - m, -1.0)))
    return query @ reference.T / largest


def _mann_whitney(q: np.ndarray, r: np.ndarray, *, n: int = 50) -> np.ndarray:
    """SigCom LINCS: z of the mean rank of the query's n up genes minus its n down genes.

    z = (mean rank - (G + 1) / 2) / sqrt((G + 1)(G - n) / 12 n), ranks from the smallest value;
    mimickers are positive.
    """
    genes = q.shape[1]
    if not 0 < n < genes:
        raise SchemaError(
            f"sets of {n} genes of {genes:,}", expected="fewer genes in a set than there are"
        )
    spread = np.sqrt((genes + 1) * (genes - n) / (12 * n))
    return _extremes(q, n).astype(np.float64) @ (rankdata(r, axis=1) / n).T / spread


def _wtcs_similarity(q: np.ndarray, r: np.ndarray, *, n: int = 50) -> np.ndarray:
    """WTCS of the references for the n largest and n smallest genes of each query."""
    if not 0 < 2 * n <= q.shape[1]:
        raise SchemaError(
            f"two sets of {n} genes of {q.shape[1]:,}", expected="two sets that do not overlap"
        )
    values = r.astype(np.float64)
    ranks, order = _descending_ranks(values), np.argsort(-q, axis=1, kind="stable")
    up = _enrichment(values, ranks, list(order[:, :n]))
    down = _enrichment(values, ranks, list(order[:, -n:]))
    return _connect(up, down).T


def symmetrised(similarity: _Similarity) -> _Similarity:
    """The mean of both directions of an asymmetric similarity."""
    return lambda q, r: (similarity(q, r) + similarity(r, q).T) / 2


def _of_profiles(similarity: _Similarity) -> _Similarity:
    """The similarity of profiles in floating point, if they have the same, finite genes."""

    def checked(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
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
        return similarity(queries.astype(kind, copy=False), references.astype(kind, copy=False))

    return checked


_FORMULAS: Final[dict[str, _Similarity]] = {
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
SIMILARITIES: Final = {name: _of_profiles(formula) for name, formula in _FORMULAS.items()}
