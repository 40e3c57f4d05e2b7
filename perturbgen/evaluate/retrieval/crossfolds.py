"""Partners found by maps that never saw them: folds pooled, with chance, a permutation null and intervals over groups.

One partner is right for each query, so that its average precision is 1 / rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten
from perturbgen.evaluate.bootstrap import interval, means, resample
from perturbgen.evaluate.retrieval.crossmodal import harmonic, partner_ranks, shared_labels

Array = np.ndarray[Any, Any]
SCORES: Final = ("mAP", "median_q", "R@1", "R@10")
SMALL_IS_GOOD: Final = np.array([False, True, False, False])


@dataclass(frozen=True)
class Fold:
    """The withheld perturbations of one fold: ``labels``, and the scores (n, n, 4) of each query with each partner.

    ``scores[i, j]`` is what query i would have if j were its partner: the diagonal is what happened.
    """

    labels: pd.Index
    scores: Array
    candidates: int


def match_fold(first: pd.DataFrame, second: pd.DataFrame) -> Fold:
    """Queries ``first`` and candidates ``second`` (perturbations, dimensions) in one space, compared by cosine."""
    labels = shared_labels(first, second)
    low, high = partner_ranks(first.loc[labels], second, labels, "cosine")
    return Fold(labels, partner_scores(low, high, len(second)), len(second))


def partner_scores(low: Array, high: Array, total: int) -> Array:
    """(..., 4) average precision, rank quantile (0 best) and hits in the first 1 and 10 of partners at these ranks.

    A partner that ties with others lies anywhere from ``low`` to ``high``; its expectation counts.
    """
    width = high - low + 1
    precision = np.where(width == 1, 1 / low, (harmonic(high) - harmonic(low - 1)) / width)
    quantile = ((low + high) / 2 - 1) / max(total - 1, 1)
    hits = [np.clip((k - low + 1) / width, 0, 1) for k in (1, 10)]
    return np.stack([precision, quantile, *hits], axis=-1)


def chance(folds: Sequence[Fold]) -> Array:
    """(4,) what random ranks give, the folds weighted by their queries."""
    each = []
    for fold in folds:
        n = fold.candidates
        each.append([float(harmonic(np.array(n))) / n, 0.5, 1 / n, min(10, n) / n])
    return np.average(each, axis=0, weights=[len(fold.labels) for fold in folds])


def query_scores(folds: Sequence[Fold]) -> pd.DataFrame:
    """A row a withheld perturbation, columns :data:`SCORES`."""
    rows = [np.diagonal(fold.scores).T for fold in folds]
    labels = [label for fold in folds for label in fold.labels]
    return pd.DataFrame(np.concatenate(rows), index=pd.Index(labels, name="perturbation"), columns=list(SCORES))


def summary(scores: Array) -> Array:
    """(4,) of queries' scores (queries, 4): means, and the median of the rank quantile."""
    return np.array([scores[:, 0].mean(), np.median(scores[:, 1]), scores[:, 2].mean(), scores[:, 3].mean()])


def score_folds(
    folds: Sequence[Fold],
    groups: pd.Series,
    *,
    strata: pd.Series | None = None,
    permutations: int,
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """A row for all queries and one for each stratum: the scores, their chance, null, p, and intervals.

    ``groups`` maps a perturbation to its compound. The null gives each compound the partners of another one of its fold
    and stratum, all doses together, p = (hits + 1) / (permutations + 1); the 95 % intervals draw whole compounds.
    """
    labels = pd.Index([label for fold in folds for label in fold.labels])
    require_labelled(groups, labels, "group")
    rows = [tested(folds, groups, None, "all", permutations, draws, rng)]
    if strata is not None:
        require_labelled(strata, labels, "stratum")
        names = strata.loc[labels].value_counts().index
        rows += [tested(folds, groups, strata == name, str(name), permutations, draws, rng) for name in names]
    return pd.DataFrame(rows)


def difference(ours: pd.Series, theirs: pd.Series, groups: pd.Series, *, draws: int, rng: np.random.Generator) -> Array:
    """(3,) the mean of ``ours - theirs`` over perturbations, and its 95 % interval; whole compounds are drawn."""
    gap = (ours - theirs.loc[ours.index]).to_numpy()
    low, high = interval(means(gap[None], resample(len(gap), draws, rng, groups.loc[ours.index].tolist())))
    return np.array([gap.mean(), low[0], high[0]])


def require_labelled(values: pd.Series, labels: pd.Index, what: str) -> None:
    """Each perturbation has one."""
    absent = labels[~labels.isin(values.index[values.notna()])]
    if len(absent):
        raise SchemaError(f"no {what} for {len(absent)} perturbations: {shorten(absent)}", expected="one for each")


def tested(
    folds: Sequence[Fold],
    groups: pd.Series,
    mask: pd.Series | None,
    name: str,
    permutations: int,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """One row of the table."""
    here = [np.arange(len(f.labels)) if mask is None else np.flatnonzero(mask.loc[f.labels]) for f in folds]
    codes = [pd.factorize(groups.loc[fold.labels])[0][rows] for fold, rows in zip(folds, here, strict=True)]
    parts = list(zip(folds, here, codes, strict=True))
    observed = np.concatenate([fold.scores[rows, rows] for fold, rows, _ in parts])
    drawn = np.array([
        summary(np.concatenate([fold.scores[rows, rows[exchange(code, rng)]] for fold, rows, code in parts]))
        for _ in range(permutations)
    ])  # fmt: skip
    found = summary(observed)
    better = np.where(SMALL_IS_GOOD, drawn <= found, drawn >= found)
    p = (better.sum(axis=0) + 1) / (permutations + 1)
    clusters = [(i, code) for i, (_, _, part) in enumerate(parts) for code in part]
    low, high = intervals(observed, resample(len(clusters), draws, rng, clusters))
    row: dict[str, Any] = {"stratum": name, "n": len(observed), "compounds": len(set(clusters))}
    for j, score in enumerate(SCORES):
        row |= {score: found[j], f"{score} low": low[j], f"{score} high": high[j], f"{score} null": drawn[:, j].mean(),
                f"{score} p": p[j]}  # fmt: skip
    return row | {f"{score} chance": value for score, value in zip(SCORES, chance(folds), strict=True)}


def exchange(codes: Array, rng: np.random.Generator) -> Array:
    """(rows,) a partner for each row: each group takes another's rows, in their order, again from the first if it has
    fewer.
    """
    members = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    order = rng.permutation(len(members))
    partner = np.empty(len(codes), int)
    for mine, other in zip(members, order, strict=True):
        theirs = members[other]
        partner[mine] = theirs[np.arange(len(mine)) % len(theirs)]
    return partner


def intervals(scores: Array, counts: Array) -> tuple[Array, Array]:
    """(4,) lower and upper ends, of queries' scores (queries, 4) drawn so often (draws, queries)."""
    drawn = means(scores.T, counts)
    drawn[:, 1] = weighted_medians(scores[:, 1], counts)
    return interval(drawn)


def weighted_medians(values: Array, counts: Array) -> Array:
    """(draws,) medians of values that were drawn so often."""
    order = np.argsort(values)
    reached = np.cumsum(counts[:, order], axis=1)
    middle = np.argmax(reached >= reached[:, -1:] / 2, axis=1)
    return values[order][middle]
