"""Do replicates agree, differ from controls, and resemble what they belong to? With nulls.

Consistency and magnitude of groups and recall of known relations after EFAAR (Celik et al. 2024),
with the sums done by algebra instead of over lists of pairs; percent replicating and percent
matching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array
from perturbgen.retrieval.embedding import (
    Measure,
    Similarity,
    codes,
    read_embedding,
    require_labels,
    unit_rows,
)

_MOST_CONTROLS: Final = 1000  # compared all with all; of more so many are drawn
_LARGEST: Final = 50  # members of a group that are compared; of larger ones so many are drawn
_ENDS: Final = ["entity1", "entity2"]
_MOST: Final = 20_000_000  # pairs that are all compared; of more so many are drawn
_FEWEST: Final = 20  # known pairs below which a share says nothing


def consistency(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str,
    null: Array | None = None,
    draws: int = 1000,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Per group of two rows or more: ``size``, ``consistency`` (its mean cosine), p and q (BH).

    With unit rows u the mean over pairs is (|sum u|^2 - n) / (n (n - 1)). The null draws as many
    rows, each of another group, among the rows of the mask ``null`` (perturbations known to do
    nothing; by default all labelled rows).
    """
    require_labels(meta, [same])
    unit, group = unit_rows(read_embedding(embedding, meta), "cosine"), codes(meta, [same])
    pool = group >= 0 if null is None else np.asarray(null, bool) & (group >= 0)
    sizes = np.bincount(group[group >= 0])
    wanted = np.flatnonzero(sizes > 1)
    if not len(wanted):
        raise SchemaError(
            f"no group of {same!r} has two rows", expected="replicates", fix="another same="
        )

    def mean_cosine(rows: Array) -> float:
        u = unit[rows]
        n = len(u)
        return float((np.square(u.sum(axis=0)).sum() - np.square(u).sum()) / (n * (n - 1)))

    values = {int(code): mean_cosine(group == code) for code in wanted}
    drawn = _draw_null(
        lambda size: mean_cosine(_one_a_group(group, pool, size, rng)), sizes[wanted], draws
    )
    return _against_null(meta[same], group, values, "consistency", drawn)


def magnitude(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str,
    control: Array,
    draws: int = 1000,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Per group of two rows or more: ``size``, ``magnitude`` (energy distance to controls), p, q.

    The energy distance 2 E|x - y| - E|x - x'| - E|y - y'| is taken over pairs of different rows, so
    its mean is 0 where nothing was done, whatever the sizes. The null takes as many controls for
    treated and the others for controls.
    """
    from scipy.spatial.distance import cdist

    require_labels(meta, [same])
    vectors, group = np.asarray(read_embedding(embedding, meta), np.float64), codes(meta, [same])
    controls = np.asarray(control, bool)
    rows = np.flatnonzero(controls)
    if len(rows) > _MOST_CONTROLS:
        rows = np.sort(rng.choice(rows, _MOST_CONTROLS, replace=False))
    treated = np.where(controls, -1, group)
    sizes = np.bincount(treated[treated >= 0], minlength=1)
    wanted = np.flatnonzero(sizes > 1)
    if not len(wanted) or len(rows) < sizes[wanted].max() + 2:
        raise SchemaError(
            f"{len(rows)} controls and {len(wanted)} groups of {same!r} with two rows",
            expected="groups of at least two, and more controls than the largest group has rows",
        )
    # Once for all draws: a draw only chooses which of these distances are within and across.
    base = cdist(vectors[rows], vectors[rows])
    spread = _mean_pair(base)
    values = {}
    for code in wanted:
        own = vectors[treated == code]
        across = cdist(own, vectors[rows]).mean()
        values[int(code)] = 2 * across - _mean_pair(cdist(own, own)) - spread
    drawn = _draw_null(lambda size: _null_energy(base, size, rng), sizes[wanted], draws)
    return _against_null(meta[same], treated, values, "magnitude", drawn)


def _mean_pair(square: Array) -> float:
    """The mean over pairs of different rows of a symmetric matrix with a zero diagonal."""
    n = len(square)
    return float(square.sum() / (n * (n - 1)))


def _null_energy(base: Array, size: int, rng: np.random.Generator) -> float:
    """The energy distance of ``size`` random controls from all others, by their distances."""
    n, total = len(base), base.sum()
    inside = rng.choice(n, size, replace=False)
    to_all, within = base[inside].sum(), base[np.ix_(inside, inside)].sum()
    across, outside = to_all - within, total - 2 * to_all + within
    return float(
        2 * across / (size * (n - size))
        - within / (size * (size - 1))
        - outside / ((n - size) * (n - size - 1))
    )


def _one_a_group(group: Array, pool: Array, size: int, rng: np.random.Generator) -> Array:
    """``size`` random rows of the mask ``pool``, no two of one group."""
    # Permuted first, so that which row stands for its group is random.
    rows = rng.permutation(np.flatnonzero(pool))
    first = rows[np.unique(group[rows], return_index=True)[1]]
    if len(first) < size:
        raise SchemaError(
            f"{size} rows of different groups cannot be drawn from {len(first)} groups",
            expected="at least as many groups as the largest has members",
            fix="leave large groups (controls) unlabelled",
        )
    return rng.choice(first, size, replace=False)


def _draw_null(draw: Callable[[int], float], sizes: Array, draws: int) -> dict[int, Array]:
    """Null values (draws,) for each size of a group."""
    return {int(n): np.array([draw(int(n)) for _ in range(draws)]) for n in np.unique(sizes)}


def _against_null(
    labels: pd.Series,
    group: Array,
    values: Mapping[int, float],
    name: str,
    drawn: Mapping[int, Array],
) -> pd.DataFrame:
    """One row a group, by its label; ``drawn`` are null values by a group's size."""
    from scipy.stats import false_discovery_control

    sizes = np.bincount(group[group >= 0])[list(values)]
    # The group itself is one of the draws, so that no p is 0.
    p = [
        ((drawn[n] >= value).sum() + 1) / (len(drawn[n]) + 1)
        for n, value in zip(sizes, values.values(), strict=True)
    ]
    table = pd.DataFrame({"size": sizes, name: list(values.values()), "p": p})
    table["q"] = false_discovery_control(p)
    return table.set_axis(_names(labels, group, values))


def _names(labels: pd.Series, group: Array, wanted: Any) -> pd.Index:
    """The labels of groups, by their numbers."""
    first = [int(np.argmax(group == code)) for code in wanted]
    return pd.Index(labels.to_numpy()[first], name=labels.name)


def percent_replicating(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str,
    differ: str | None = None,
    similarity: Measure = "correlation",
    null_groups: int = 1000,
    quantile: float = 0.95,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Per group of two or more: ``median`` similarity of its pairs, ``threshold``, ``passes``.

    The threshold is the quantile of the median over pairs of ``null_groups`` random groups as
    large, of members that are all of different groups. ``table["passes"].mean()`` is percent
    replicating. With ``differ`` (same MoA, another compound: percent matching) only pairs that
    differ there count, ``size`` counts compounds, and a random group is made of whole compounds of
    different groups: their wells are no more independent in the null than in the data.
    """
    require_labels(meta, [same, *([differ] if differ else [])])
    vectors = read_embedding(embedding, meta)
    group, all_rows = codes(meta, [same]), np.arange(len(meta))
    # What must differ within a pair: the compound, or else the row.
    unit = codes(meta, [same, differ]) if differ else np.where(group >= 0, all_rows, -1)
    prepared = Similarity.of(vectors, all_rows, all_rows, similarity)
    product = prepared.product or (lambda left, right: left @ right.T)

    def pair_values(rows: Array) -> Array:
        """The similarities of all pairs of rows i < j that are of different units."""
        candidates = prepared.candidates[prepared.column[rows]]
        values = np.asarray(product(prepared.queries[rows], candidates))
        i, j = np.triu_indices(len(rows), 1)
        return values[i, j][unit[rows][i] != unit[rows][j]]

    def null_median(size: int) -> float:
        chosen = _one_a_group(group, unit >= 0, size, rng)
        return float(np.median(pair_values(np.flatnonzero(np.isin(unit, unit[chosen])))))

    medians, sizes = {}, {}
    for code in range(group.max(initial=-1) + 1):
        rows = np.flatnonzero((group == code) & (unit >= 0))
        # Pairs grow as the square: of a vehicle's thousands of wells some are enough.
        if len(rows) > _LARGEST:
            rows = np.sort(rng.choice(rows, _LARGEST, replace=False))
        values = pair_values(rows)
        if len(values):
            medians[code], sizes[code] = float(np.median(values)), len(np.unique(unit[rows]))
    if not medians:
        raise SchemaError(
            f"no group of {same!r} has a pair",
            expected="groups of at least two rows",
            fix="another same=",
        )
    table = pd.DataFrame({"size": sizes, "median": medians})
    # The median of few pairs spreads more than that of many: each size has a limit of its own.
    drawn = _draw_null(null_median, table["size"].to_numpy(), null_groups)
    limits = {size: float(np.quantile(null, quantile)) for size, null in drawn.items()}
    table["threshold"] = table["size"].map(limits)
    table["passes"] = table["median"] > table["threshold"]
    return table.set_axis(_names(meta[same], group, table.index))


def relationship_recall(
    embedding: pd.DataFrame,
    relations: pd.DataFrame,
    *,
    tail: float = 0.05,
    permutations: int = 1000,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The share of known pairs among the most alike and the most opposite ``tail`` of all pairs.

    ``embedding`` (perturbations, features), each once. ``recall`` counts both tails (chance 2
    tail), ``close`` the upper and ``opposite`` the lower one. p: the perturbations' names are
    permuted, so that a hub stays a hub; (permutations at least as good + 1) / (permutations + 1).
    """
    if not 0 < tail < 0.5:
        raise SchemaError(f"tail is {tail}", expected="between 0 and 0.5")
    pairs = _known_pairs(relations, embedding.index)
    if len(pairs) < _FEWEST:
        ours, theirs = shorten(embedding.index, 3), shorten(relations.get(_ENDS[0], []), 3)
        raise SchemaError(
            f"{len(pairs)} known pairs have both ends among {len(embedding):,} perturbations",
            expected=f"at least {_FEWEST}",
            cause="other identifiers (gene symbols, Ensembl ids)",
            fix=f"perturbations: {ours}; relations: {theirs}",
        )
    unit = unit_rows(read_embedding(embedding.to_numpy(), embedding[[]]), "cosine")
    low, high = np.quantile(_pair_cosines(unit, rng), [tail, 1 - tail])

    def shares(order: Array) -> Array:
        ends = unit[order[pairs]]
        values = np.einsum("ij,ij->i", ends[:, 0], ends[:, 1])
        return np.array([(values >= high).mean(), (values <= low).mean()])

    all_rows = np.arange(len(unit))
    close, opposite = shares(all_rows)
    drawn = [shares(rng.permutation(all_rows)).sum() for _ in range(permutations)]
    # A permutation that gives the same pairs may differ by rounding.
    reached = int((np.array(drawn) >= close + opposite - 1e-12).sum())
    return {
        "pairs": len(pairs),
        "recall": float(close + opposite),
        "close": float(close),
        "opposite": float(opposite),
        "chance": 2 * tail,
        "p": (reached + 1) / (permutations + 1),
    }


def _known_pairs(relations: pd.DataFrame, labels: pd.Index) -> Array:
    """(pairs, 2) places among ``labels`` of the relations' ends, each unordered pair once.

    ``relations`` has the columns entity1 and entity2; a pair with an end that was not measured is
    dropped.
    """
    absent = [name for name in _ENDS if name not in relations]
    if absent:
        raise SchemaError(
            f"the relations have no column {shorten(absent)}", expected="entity1 and entity2"
        )
    twice = labels[labels.duplicated()]
    if len(twice):
        raise SchemaError(
            f"{len(twice)} perturbations occur twice: {shorten(twice.unique())}",
            expected="each once",
            fix="average its replicates first",
        )
    ends = np.stack([labels.get_indexer(pd.Index(relations[name])) for name in _ENDS], axis=1)
    ends = np.sort(ends[(ends >= 0).all(axis=1)], axis=1)
    return np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)


def _pair_cosines(unit: Array, rng: np.random.Generator) -> Array:
    """Cosines of all pairs of different rows, or of very many random ones."""
    n = len(unit)
    if n * (n - 1) // 2 <= _MOST:
        return (unit @ unit.T)[np.triu_indices(n, 1)]
    left = rng.integers(n, size=_MOST)
    right = (left + rng.integers(1, n, size=_MOST)) % n
    parts = [slice(i, i + 1_000_000) for i in range(0, _MOST, 1_000_000)]
    return np.concatenate(
        [np.einsum("ij,ij->i", unit[left[part]], unit[right[part]]) for part in parts]
    )
