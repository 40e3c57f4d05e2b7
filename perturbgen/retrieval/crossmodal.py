"""Two modalities in a shared space: does each profile find its partner among the other's?

For one pair of tables, and for folds of perturbations that the maps into the space never saw,
pooled, with chance, a permutation null and intervals over groups. One partner is right for each
query, so that its average precision is 1 / rank. Mantel's test asks whether two assays agree on
which perturbations are alike, and needs no map from one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array, interval, means, resample
from perturbgen.retrieval.embedding import Measure, prepare_similarity, read_embedding
from perturbgen.retrieval.nulls import expected_ap, harmonic_number

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
        _require_labelled(strata, shared, "stratum")
        stratum = strata.loc[shared].to_numpy()
    rows = []
    for source, target, (one, other) in ((first, second, names), (second, first, names[::-1])):
        low, high = _partner_ranks(source.loc[shared], target, shared, similarity)
        for value in pd.unique(stratum):
            here = np.flatnonzero(stratum == value)
            found = _tested(low, high, here, len(target), permutations, rng)
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
    prepared = prepare_similarity(vectors, asked, found, measure)
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


def _tested(
    low: Array, high: Array, here: Array, total: int, permutations: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The metrics of the queries ``here``, their null means and p-values."""
    observed = _metrics(low[here, here], high[here, here], total)
    null = []
    for _ in range(permutations):
        partner = rng.permutation(here)
        null.append(_metrics(low[here, partner], high[here, partner], total))
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


_SCORES: Final = ("mAP", "median_q", "R@1", "R@10")
_SCORED_DEPTHS: Final = (1, 10)
_SMALL_IS_GOOD: Final = np.array([False, True, False, False])


@dataclass(frozen=True)
class MatchedFold:
    """The withheld perturbations of one fold, and the scores (n, n, 4) of queries with partners.

    ``scores[i, j]`` is what query i would have if j were its partner: the diagonal is what
    happened.
    """

    labels: pd.Index
    scores: Array
    candidates: int


def match_fold(first: pd.DataFrame, second: pd.DataFrame) -> MatchedFold:
    """Queries ``first`` and candidates ``second`` (perturbations, dimensions), by cosine."""
    labels = _shared_labels(first, second)
    low, high = _partner_ranks(first.loc[labels], second, labels, "cosine")
    return MatchedFold(labels, _partner_scores(low, high, len(second), _SCORED_DEPTHS), len(second))


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


def _chance(folds: Sequence[MatchedFold]) -> Array:
    """(4,) what random ranks give, the folds weighted by their queries."""
    each = []
    for fold in folds:
        n = fold.candidates
        each.append([float(expected_ap(1, n)), 0.5, 1 / n, min(10, n) / n])
    return np.average(each, axis=0, weights=[len(fold.labels) for fold in folds])


def query_scores(folds: Sequence[MatchedFold]) -> pd.DataFrame:
    """A row a withheld perturbation, columns :data:`SCORES`."""
    rows = [np.diagonal(fold.scores).T for fold in folds]
    labels = [label for fold in folds for label in fold.labels]
    return pd.DataFrame(
        np.concatenate(rows), index=pd.Index(labels, name="perturbation"), columns=list(_SCORES)
    )


def score_folds(
    folds: Sequence[MatchedFold],
    groups: pd.Series,
    *,
    strata: pd.Series | None = None,
    permutations: int,
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """A row for all queries and one for each stratum: scores, chance, null, p, and intervals.

    ``groups`` maps a perturbation to its compound. The null gives each compound the partners of
    another one of its fold and stratum, all doses together, p = (hits + 1) / (permutations + 1);
    the 95 % intervals draw whole compounds.
    """
    labels = pd.Index([label for fold in folds for label in fold.labels])
    _require_labelled(groups, labels, "group")
    rows = [_with_fold_tests(folds, groups, None, "all", permutations, draws, rng)]
    if strata is not None:
        _require_labelled(strata, labels, "stratum")
        names = strata.loc[labels].value_counts().index
        rows += [
            _with_fold_tests(folds, groups, strata == name, str(name), permutations, draws, rng)
            for name in names
        ]
    return pd.DataFrame(rows)


def _require_labelled(values: pd.Series, labels: pd.Index, what: str) -> None:
    """Each perturbation has one."""
    absent = labels[~labels.isin(values.index[values.notna()])]
    if len(absent):
        raise SchemaError(
            f"no {what} for {len(absent)} perturbations: {shorten(absent)}", expected="one for each"
        )


def _with_fold_tests(
    folds: Sequence[MatchedFold],
    groups: pd.Series,
    mask: pd.Series | None,
    name: str,
    permutations: int,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """One row of the table."""
    parts = []
    for fold in folds:
        inside = np.ones(len(fold.labels), bool) if mask is None else mask.loc[fold.labels]
        rows = np.flatnonzero(inside)
        parts.append((fold.scores, rows, pd.factorize(groups.loc[fold.labels])[0][rows]))
    drawn = []
    for _ in range(permutations):
        partners = [scores[rows, rows[_exchange(code, rng)]] for scores, rows, code in parts]
        drawn.append(_summary(np.concatenate(partners)))
    observed = np.concatenate([scores[rows, rows] for scores, rows, _ in parts])
    found, null = _summary(observed), np.array(drawn)
    better = np.where(_SMALL_IS_GOOD, null <= found, null >= found)
    p = (better.sum(axis=0) + 1) / (permutations + 1)
    # Doses of one compound are not independent, and a compound of another fold is another one.
    clusters = [(i, code) for i, (_, _, part) in enumerate(parts) for code in part]
    low, high = _intervals(observed, resample(len(clusters), draws, rng, clusters))
    row: dict[str, Any] = {"stratum": name, "n": len(observed), "compounds": len(set(clusters))}
    for j, score in enumerate(_SCORES):
        row |= {
            score: found[j],
            f"{score} low": low[j],
            f"{score} high": high[j],
            f"{score} null": null[:, j].mean(),
            f"{score} p": p[j],
        }
    chances = zip(_SCORES, _chance(folds), strict=True)
    return row | {f"{score} chance": value for score, value in chances}


def _summary(scores: Array) -> Array:
    """(4,) of queries' scores (queries, 4): means, and the median of the rank quantile."""
    return np.array(
        [scores[:, 0].mean(), np.median(scores[:, 1]), scores[:, 2].mean(), scores[:, 3].mean()]
    )


def _exchange(codes: Array, rng: np.random.Generator) -> Array:
    """(rows,) a partner for each row: each group takes another's rows, in their order."""
    members = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    # Whole compounds: one by one, doses of a compound would count as so many finds.
    order = rng.permutation(len(members))
    partner = np.empty(len(codes), int)
    for mine, other in zip(members, order, strict=True):
        theirs = members[other]
        # Again from the first where the other group is smaller.
        partner[mine] = theirs[np.arange(len(mine)) % len(theirs)]
    return partner


def _intervals(scores: Array, counts: Array) -> tuple[Array, Array]:
    """(4,) lower and upper ends, of scores (queries, 4) drawn so often (draws, queries)."""
    drawn = means(scores.T, counts)
    drawn[:, 1] = _weighted_medians(scores[:, 1], counts)
    return interval(drawn)


def _weighted_medians(values: Array, counts: Array) -> Array:
    """(draws,) medians of values that were drawn so often."""
    order = np.argsort(values)
    reached = np.cumsum(counts[:, order], axis=1)
    middle = np.argmax(reached >= reached[:, -1:] / 2, axis=1)
    return values[order][middle]


def matched_difference(
    ours: pd.Series, theirs: pd.Series, groups: pd.Series, *, draws: int, rng: np.random.Generator
) -> Array:
    """(3,) the mean of ``ours - theirs`` over perturbations, and its 95 % interval."""
    gap = (ours - theirs.loc[ours.index]).to_numpy()
    low, high = interval(
        means(gap[None], resample(len(gap), draws, rng, groups.loc[ours.index].tolist()))
    )
    return np.array([gap.mean(), low[0], high[0]])


def mantel(
    first: pd.DataFrame, second: pd.DataFrame, *, permutations: int = 999, rng: np.random.Generator
) -> dict[str, float]:
    """Mantel's test: Spearman's correlation of the two assays' similarities, all pairs i < j.

    Both tables are (perturbations, features), joined by their index, each perturbation once. The
    null permutes perturbations of one assay; p = (hits + 1) / (permutations + 1), one-sided.
    """
    shared = first.index[first.index.isin(second.index)]
    if len(shared) < 4 or first.index.has_duplicates or second.index.has_duplicates:
        raise SchemaError(
            f"{len(shared)} perturbations in both assays",
            expected="four or more, each once in each assay",
        )
    one, other = (_similarities(table.loc[shared]) for table in (first, second))
    i, j = np.triu_indices(len(shared), 1)
    x = _centred(rankdata(one[i, j]))
    ranked = np.zeros_like(other)
    ranked[i, j] = ranked[j, i] = _centred(rankdata(other[i, j]))
    observed = float(x @ ranked[i, j])
    drawn = []
    for _ in range(permutations):
        order = rng.permutation(len(shared))
        drawn.append(float(x @ ranked[order[i], order[j]]))
    p = (sum(value >= observed for value in drawn) + 1) / (permutations + 1)
    return {"n": len(shared), "spearman": observed, "p": p}


def _similarities(table: pd.DataFrame) -> Array:
    """(rows, rows) Pearson correlations of rows."""
    values = read_embedding(table.to_numpy(), table[[]])
    if (values.std(axis=1) == 0).any():
        raise SchemaError("a perturbation's profile is constant", expected="features that differ")
    return np.corrcoef(values)


def _centred(values: Array) -> Array:
    """About the mean, of length one."""
    values = values - values.mean()
    return np.asarray(values / np.linalg.norm(values))
