"""What matched folds are worth: scores, chance, nulls of whole compounds, intervals; Mantel's test.

Mantel's test asks whether two assays agree on which perturbations are alike, and needs no map from
one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array, interval, means, resample
from perturbgen.retrieval import MatchedFold, expected_ap
from perturbgen.retrieval.embedding import read_embedding

_SCORES: Final = ("mAP", "median_q", "R@1", "R@10")
_SMALL_IS_GOOD: Final = np.array([False, True, False, False])


def _chance(folds: Sequence[MatchedFold]) -> Array:
    """(4,) what random ranks give, the folds weighted by their queries."""
    each = []
    for fold in folds:
        n = fold.candidates
        each.append([float(expected_ap(1, n)), 0.5, 1 / n, min(10, n) / n])
    return np.average(each, axis=0, weights=[len(fold.labels) for fold in folds])


def query_scores(folds: Sequence[MatchedFold]) -> pd.DataFrame:
    """A row a withheld perturbation, columns :data:`_SCORES`."""
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
