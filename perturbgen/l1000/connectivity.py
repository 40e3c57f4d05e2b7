"""Connectivity of queries and signatures: the score WTCS, its normalised form NCS, and tau."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numba import njit

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import require_file

# A mean of a few scores near 0 would make enormous scores of what is divided by it.
_LEAST_SCALE: Final = 0.01
# CMap scales these with the compounds.
_COUNTED_AS: Final = {"trt_poscon": "trt_cp", "ctl_vehicle": "trt_cp"}
log = logging.getLogger(__name__)

_Sets = Mapping[str, Sequence[object]]


def read_gmt(path: str | Path, *, suffix: str = "") -> dict[str, list[str]]:
    """Gene sets of a GMT file, without a ``suffix`` such as ``_UP`` of their names."""
    sets: dict[str, list[str]] = {}
    for line in require_file(path, "GMT file").read_text(encoding="utf-8").splitlines():
        cells = line.rstrip("\r").split("\t")
        if len(cells) < 3:
            raise InputError(
                f"{path}: a line has {len(cells)} cells", expected="a name, a description and genes"
            )
        sets[cells[0].removesuffix(suffix)] = [gene for gene in cells[2:] if gene]
    return sets


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
    ranks = descending_ranks(values)
    scores = [
        enrichment(values, ranks, _members(signatures.columns, s, queries), weighted=weighted)
        for s in (up, down)
    ]
    return pd.DataFrame(connect(*scores), index=signatures.index, columns=queries)


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


def _members(
    genes: pd.Index, sets: _Sets | None, queries: Sequence[str]
) -> list[np.ndarray] | None:
    """Positions of the genes of each set; others are dropped, with a warning."""
    if not sets:
        return None
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


def descending_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1 to G of each signature (signatures, genes), the largest first, ties in file order."""
    # stable: the order of ties would otherwise be that of a sorting algorithm
    order = np.argsort(-values, axis=1, kind="stable")
    ranks = np.empty(values.shape, np.int32)
    np.put_along_axis(ranks, order, np.arange(1, values.shape[1] + 1, dtype=np.int32)[None], axis=1)
    return ranks


def enrichment(
    values: np.ndarray,
    ranks: np.ndarray,
    sets: Sequence[np.ndarray] | None,
    *,
    weighted: bool = True,
) -> np.ndarray | None:
    """Enrichment scores (signatures, sets); an empty set scores 0."""
    if sets is None:
        return None
    starts = np.concatenate([[0], np.cumsum([len(genes) for genes in sets])])
    genes = np.concatenate(sets).astype(np.int64)
    values, ranks = np.ascontiguousarray(values, np.float64), np.ascontiguousarray(ranks, np.int32)
    scores = np.zeros((len(values), len(sets)))
    # threads, since the kernel lets go of the interpreter; few scores are not worth them
    workers = min(os.cpu_count() or 1, max(1, scores.size // 10_000))
    with ThreadPoolExecutor(workers) as pool:
        parts = np.array_split(np.arange(len(values)), workers)
        done = [
            pool.submit(_es_kernel, values[p], ranks[p], genes, starts, weighted) for p in parts
        ]
        for part, scored in zip(parts, done, strict=True):
            scores[part] = scored.result()
    return scores


def connect(up: np.ndarray | None, down: np.ndarray | None) -> np.ndarray:
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
    chosen = (
        np.ones(len(scores), bool)
        if reference is None
        else reference.loc[scores.index].to_numpy(bool)
    )
    if not chosen.any():
        raise SchemaError("no reference signature is left to normalise by", expected="one at least")
    values = scores.to_numpy(float)
    up = _scales(np.where(values > 0, values, np.nan), keys, chosen)
    down = _scales(np.where(values < 0, -values, np.nan), keys, chosen)
    return pd.DataFrame(
        values / np.where(values > 0, up, down), index=scores.index, columns=scores.columns
    )


def _scales(values: np.ndarray, keys: pd.MultiIndex, chosen: np.ndarray) -> np.ndarray:
    """What scores are divided by (signatures, queries): the mean of the group, 0.01 at least."""
    means = (
        # signatures without a cell line or a type are a group, too
        pd.DataFrame(values[chosen], index=keys[chosen]).groupby(level=[0, 1], dropna=False).mean()
    )
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
    labels = groups.loc[scores.index]
    summary = {}
    for name, rows in scores.groupby(labels.to_numpy(), sort=False):
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
    below = [
        # left: a reference of the same strength does not connect less
        np.searchsorted(known, row, side="left")
        for known, row in zip(strength, np.abs(values), strict=True)
    ]
    share = np.array(below, dtype=float).reshape(values.shape) * 100 / strength.shape[1]
    return pd.DataFrame(np.sign(values) * share, index=scores.index, columns=scores.columns)
