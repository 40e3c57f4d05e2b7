"""Two modalities in a shared space: does each profile find its partner among the other's?

For one pair of tables, and for folds of perturbations that the maps into the space never saw,
pooled, with chance, a permutation null and intervals over groups. One partner is right for each
query, so that its average precision is 1 / rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array
from perturbgen.retrieval.embedding import Measure, Similarity, read_embedding
from perturbgen.retrieval.scores import harmonic_number

_DEPTHS: Final = (1, 5, 10)


def match_modalities(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    strata: pd.Series | None = None,
    similarity: Measure = "cosine",
    permutations: int = 1000,
    names: Sequence[str] = ("first", "second"),
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Retrieval of partners in both directions; a row per direction and stratum.

    Both tables are (perturbations, features) in one space, indexed by perturbation, each once
    (average replicates first). Partners share the label; what is in one table only stays a
    candidate. ``strata`` maps perturbations to a stratum (reproducible in both assays, or not);
    candidates are never stratified. Columns: R@1, R@5, R@10, MRR and ``median_rank`` (a share of
    the candidates, 0 best, ties at the middle); each has its mean under the null and p. The null
    permutes partners within the stratum, (hits + 1) / (permutations + 1).
    """
    shared = _shared_labels(first, second)
    stratum = np.full(len(shared), "all", object)
    if strata is not None:
        absent = shared[~shared.isin(strata.index[strata.notna()])]
        if len(absent):
            raise SchemaError(
                f"no stratum for {len(absent)} perturbations: {shorten(absent)}",
                expected="one for each",
            )
        stratum = strata.loc[shared].to_numpy()
    rows = []
    for source, target, (one, other) in ((first, second, names), (second, first, names[::-1])):
        low, high = _partner_ranks(source.loc[shared], target, shared, similarity)
        for value in pd.unique(stratum):
            here = np.flatnonzero(stratum == value)
            found = _partner_tests(low, high, here, len(target), permutations, rng)
            rows.append({"direction": f"{one} to {other}", "stratum": value, **found})
    return pd.DataFrame(rows)


def _shared_labels(first: pd.DataFrame, second: pd.DataFrame) -> pd.Index:
    """The perturbations in both, in the first one's order."""
    for table, name in ((first, "first"), (second, "second")):
        twice = table.index[table.index.duplicated()]
        if len(twice):
            raise SchemaError(
                f"the {name} modality repeats {len(twice)} labels: {shorten(twice.unique())}",
                expected="each perturbation once",
                fix="average its replicates: table.groupby(level=0).mean()",
            )
    if first.shape[1] != second.shape[1]:
        raise SchemaError(
            f"{first.shape[1]} and {second.shape[1]} features",
            expected="two modalities in one space",
        )
    shared = first.index[first.index.isin(second.index)]
    if len(shared) < 2:
        raise SchemaError(
            f"the modalities share {len(shared)} perturbations",
            expected="at least two",
            cause="different identifiers",
            fix=f"first: {shorten(first.index, 3)}; second: {shorten(second.index, 3)}",
        )
    return shared


def _partner_ranks(
    source: pd.DataFrame, target: pd.DataFrame, shared: pd.Index, measure: Measure
) -> tuple[Array, Array]:
    """(shared, shared) first and last rank of each shared perturbation for each query."""
    both = pd.concat([source, target], ignore_index=True)
    vectors = read_embedding(both.to_numpy(), both[[]])
    all_rows = np.arange(len(both))
    asked, found = all_rows[: len(source)], all_rows[len(source) :]
    prepared = Similarity.of(vectors, asked, found, measure)
    wanted = target.index.get_indexer(shared)
    # Of every shared perturbation, not the partner alone: a permutation only looks its ranks up.
    low = np.empty((len(shared), len(shared)), np.int32)
    high = np.empty_like(low)
    for i in range(len(shared)):
        values = prepared.block(slice(i, i + 1))[0, prepared.column]
        ordered = np.sort(values)
        low[i] = len(values) - np.searchsorted(ordered, values[wanted], side="right") + 1
        high[i] = len(values) - np.searchsorted(ordered, values[wanted], side="left")
    return low, high


def _partner_tests(
    low: Array, high: Array, here: Array, total: int, permutations: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The metrics of the queries ``here``, their null means and p-values."""
    observed = _metrics(low[here, here], high[here, here], total)
    partners = (rng.permutation(here) for _ in range(permutations))
    null = [_metrics(low[here, partner], high[here, partner], total) for partner in partners]
    drawn = np.array(null)
    better = drawn >= observed
    better[:, -1] = drawn[:, -1] <= observed[-1]  # a small rank is a good one
    p = (better.sum(axis=0) + 1) / (permutations + 1)
    names = [*(f"R@{k}" for k in _DEPTHS), "MRR", "median_rank"]
    result: dict[str, Any] = {"n": len(here), "candidates": total}
    for j, name in enumerate(names):
        result |= {name: observed[j], f"{name} null": drawn[:, j].mean(), f"{name} p": p[j]}
    return result


def _metrics(low: Array, high: Array, total: int) -> Array:
    """R@k, MRR and the median rank of partners that rank anywhere from ``low`` to ``high``."""
    scores = _partner_scores(low, high, total, _DEPTHS)
    # Each column by itself: a mean over rows of the table would add in another order.
    hits = [scores[:, 2 + i].mean() for i in range(len(_DEPTHS))]
    return np.array([*hits, scores[:, 0].mean(), np.median(scores[:, 1])])


_SCORED_DEPTHS: Final = (1, 10)


@dataclass(frozen=True)
class MatchedFold:
    """The withheld perturbations of one fold, and the scores (n, n, 4) of queries with partners.

    ``scores[i, j]`` is what query i would have if j were its partner: the diagonal is what
    happened.
    """

    labels: pd.Index
    scores: Array
    candidates: int

    @classmethod
    def of(cls, first: pd.DataFrame, second: pd.DataFrame) -> Self:
        """Queries ``first`` and candidates ``second`` (perturbations, dimensions), by cosine."""
        labels = _shared_labels(first, second)
        low, high = _partner_ranks(first.loc[labels], second, labels, "cosine")
        scores = _partner_scores(low, high, len(second), _SCORED_DEPTHS)
        return cls(labels, scores, len(second))


def _partner_scores(low: Array, high: Array, total: int, depths: Sequence[int]) -> Array:
    """(..., 2 + depths) average precision, rank quantile (0 best), hits in the first k."""
    # A partner that ties with others lies anywhere from ``low`` to ``high``; its expectation
    # counts.
    width = high - low + 1
    spread = (harmonic_number(high) - harmonic_number(low - 1)) / width
    precision = np.where(width == 1, 1 / low, spread)
    quantile = ((low + high) / 2 - 1) / max(total - 1, 1)
    hits = [np.clip((k - low + 1) / width, 0, 1) for k in depths]
    return np.stack([precision, quantile, *hits], axis=-1)
