"""Do replicates agree, and do they differ from controls? Consistency and magnitude of each perturbation, with nulls.

After EFAAR (Celik et al. 2024), with the sums done by algebra instead of over lists of pairs.

Percent replicating and percent matching: which groups resemble themselves more than random groups of their size.

Are perturbations that are known to belong together (genes of a complex, drugs of a target) close, or opposite?
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.retrieval.nulls import benjamini_hochberg
from perturbgen.retrieval.pairs import codes, require_labels
from perturbgen.retrieval.ranks import Measure, prepare, read_embedding, unit_rows

_Array = np.ndarray[Any, Any]
_MOST_CONTROLS = 1000  # whose distances are held at once; of more so many are drawn


def consistency(
    embedding: _Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str,
    null: _Array | None = None,
    draws: int = 1000,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Per group of two or more rows: ``size``, ``consistency`` (the mean cosine of its pairs), p and q (BH).

    With unit rows u the mean over pairs is (|sum u|^2 - n) / (n (n - 1)). The null draws as many rows, each of another
    group, among the rows of the mask ``null`` (perturbations known to do nothing; by default all labelled rows).
    """
    unit, group = unit_rows(read_embedding(embedding, meta), "cosine"), _labelled(meta, same)
    pool = group >= 0 if null is None else np.asarray(null, bool) & (group >= 0)
    sizes = np.bincount(group[group >= 0])
    wanted = np.flatnonzero(sizes > 1)
    if not len(wanted):
        raise SchemaError(
            f"no group of {same!r} has two rows", expected="replicates", fix="another same="
        )
    values = {int(code): _mean_cosine(unit[group == code]) for code in wanted}
    drawn = {
        int(size): np.sort(
            [_mean_cosine(unit[_one_a_group(group, pool, int(size), rng)]) for _ in range(draws)]
        )
        for size in np.unique(sizes[wanted])
    }
    p = [_upper_tail(drawn[int(sizes[code])], value) for code, value in values.items()]
    return _table_of(meta, same, group, sizes, values, "consistency", p)


def magnitude(
    embedding: _Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str,
    control: _Array,
    draws: int = 1000,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Per group of two or more rows: ``size``, ``magnitude`` (its energy distance to the controls), p and q (BH).

    The energy distance 2 E|x - y| - E|x - x'| - E|y - y'| is taken over pairs of different rows, so its mean is 0 where
    nothing was done, whatever the sizes. The null takes as many controls for treated and the others for controls.
    """
    vectors, group = np.asarray(read_embedding(embedding, meta), np.float64), _labelled(meta, same)
    rows = np.flatnonzero(np.asarray(control, bool))
    rows = (
        np.sort(rng.choice(rows, _MOST_CONTROLS, replace=False))
        if len(rows) > _MOST_CONTROLS
        else rows
    )
    treated = np.where(np.asarray(control, bool), -1, group)
    sizes = np.bincount(treated[treated >= 0], minlength=1)
    wanted = np.flatnonzero(sizes > 1)
    if not len(wanted) or len(rows) < sizes[wanted].max() + 2:
        raise SchemaError(
            f"{len(rows)} controls and {len(wanted)} groups of {same!r} with two rows",
            expected="groups of at least two, and more controls than the largest group has rows",
        )
    base = _distances(vectors[rows], vectors[rows])
    spread = _mean_pair(base)
    values = {}
    for code in wanted:
        own = vectors[treated == code]
        values[int(code)] = (
            2 * _distances(own, vectors[rows]).mean() - _mean_pair(_distances(own, own)) - spread
        )
    drawn = {
        int(size): _null_energy(base, int(size), draws, rng) for size in np.unique(sizes[wanted])
    }
    p = [_upper_tail(drawn[int(sizes[code])], value) for code, value in values.items()]
    return _table_of(meta, same, treated, sizes, values, "magnitude", p)


def _labelled(meta: pd.DataFrame, same: str) -> _Array:
    """The number of each row's group, -1 without a label."""
    require_labels(meta, [same])
    return codes(meta, [same])


def _mean_cosine(unit: _Array) -> float:
    """The mean product of two different unit rows (n, features)."""
    n = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()) / (n * (n - 1)))


def _one_a_group(group: _Array, pool: _Array, size: int, rng: np.random.Generator) -> _Array:
    """``size`` random rows of the pool, no two of one group."""
    rows = rng.permutation(np.flatnonzero(pool))
    first = rows[np.unique(group[rows], return_index=True)[1]]
    if len(first) < size:
        raise SchemaError(
            f"a null of {size} rows cannot be drawn from {len(first)} groups",
            expected="at least as many groups as the largest has rows",
            fix="leave large groups (controls) unlabelled",
        )
    return rng.choice(first, size, replace=False)


def _distances(left: _Array, right: _Array) -> _Array:
    """Euclidean distances, (left, right)."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(left, right))


def _mean_pair(square: _Array) -> float:
    """The mean over pairs of different rows of a symmetric matrix with a zero diagonal."""
    n = len(square)
    return float(square.sum() / (n * (n - 1)))


def _null_energy(base: _Array, size: int, draws: int, rng: np.random.Generator) -> _Array:
    """Energy distances of ``size`` controls from all others, sorted; ``base`` (controls, controls) are distances."""
    n, total = len(base), base.sum()
    found = np.empty(draws)
    for i in range(draws):
        inside = rng.choice(n, size, replace=False)
        to_all, within = base[inside].sum(), base[np.ix_(inside, inside)].sum()
        across, outside = to_all - within, total - 2 * to_all + within
        found[i] = (
            2 * across / (size * (n - size))
            - within / (size * (size - 1))
            - outside / ((n - size) * (n - size - 1))
        )
    return np.sort(found)


def _upper_tail(drawn: _Array, value: float) -> float:
    """(null values at least as large + 1) / (draws + 1); ``drawn`` is sorted."""
    return float((len(drawn) - np.searchsorted(drawn, value, side="left") + 1) / (len(drawn) + 1))


def _table_of(
    meta: pd.DataFrame,
    same: str,
    group: _Array,
    sizes: _Array,
    values: dict[int, float],
    name: str,
    p: list[float],
) -> pd.DataFrame:
    """One row a group, by its label."""
    labels = meta[same].to_numpy()[[int(np.argmax(group == code)) for code in values]]
    table = pd.DataFrame({"size": sizes[list(values)], name: list(values.values()), "p": p})
    return table.assign(q=benjamini_hochberg(np.array(p))).set_axis(pd.Index(labels, name=same))


_LARGEST = 50  # members of a group that are compared; of larger ones so many are drawn


def percent_replicating(
    embedding: _Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str,
    differ: str | None = None,
    similarity: Measure = "correlation",
    null_groups: int = 1000,
    quantile: float = 0.95,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Per group of two or more: ``median`` similarity of its pairs, the ``threshold`` of its size, ``passes``.

    The threshold is the quantile of the median over pairs of ``null_groups`` random groups as large, whose members are
    all of different groups. ``table["passes"].mean()`` is percent replicating. With ``differ`` (same MoA, another
    compound: percent matching) only pairs that differ there count, ``size`` counts compounds, and a random group is
    made of whole compounds of different groups: their wells are no more independent in the null than in the data.
    """
    require_labels(meta, [same, *([differ] if differ else [])])
    vectors = read_embedding(embedding, meta)
    group = codes(meta, [same])
    unit = codes(meta, [same, differ]) if differ else np.where(group >= 0, np.arange(len(meta)), -1)
    everyone = np.arange(len(meta))
    prepared = prepare(vectors, everyone, everyone, similarity)

    def compare(rows: _Array) -> _Array:
        block = prepared.queries[rows], prepared.candidates[prepared.column[rows]]
        return (
            block[0] @ block[1].T
            if prepared.product is None
            else np.asarray(prepared.product(*block))
        )

    medians, sizes = {}, {}
    for code in range(group.max(initial=-1) + 1):
        rows = np.flatnonzero((group == code) & (unit >= 0))
        rows = np.sort(rng.choice(rows, _LARGEST, replace=False)) if len(rows) > _LARGEST else rows
        values = _pair_values(compare(rows), unit[rows])
        if len(values):
            medians[code], sizes[code] = float(np.median(values)), len(np.unique(unit[rows]))
    if not medians:
        raise SchemaError(
            f"no group of {same!r} has a pair",
            expected="groups of at least two rows",
            fix="another same=",
        )
    limits = {
        size: float(
            np.quantile(
                [_null_median(compare, group, unit, size, rng) for _ in range(null_groups)],
                quantile,
            )
        )
        for size in sorted(set(sizes.values()))
    }
    table = pd.DataFrame({"size": sizes, "median": medians})
    table["threshold"] = table["size"].map(limits)
    table["passes"] = table["median"] > table["threshold"]
    names = meta[same].to_numpy()[[int(np.argmax(group == code)) for code in table.index]]
    return table.set_axis(pd.Index(names, name=same))


def _pair_values(values: _Array, other: _Array) -> _Array:
    """The similarities of all pairs i < j whose ``other`` differs."""
    i, j = np.triu_indices(len(values), 1)
    return values[i, j][other[i] != other[j]]


def _null_median(
    compare: Any, group: _Array, unit: _Array, size: int, rng: np.random.Generator
) -> float:
    """The median similarity in a random group of ``size`` units (rows, or compounds), each of another group."""
    rows = rng.permutation(np.flatnonzero(unit >= 0))
    one_each = rows[np.unique(group[rows], return_index=True)[1]]
    if len(one_each) < size:
        raise SchemaError(
            f"a group of {size} cannot be drawn from {len(one_each)} groups",
            expected="at least as many groups as the largest has members",
            fix="leave large groups (controls) out",
        )
    chosen = np.flatnonzero(np.isin(unit, unit[rng.choice(one_each, size, replace=False)]))
    return float(np.median(_pair_values(compare(chosen), unit[chosen])))


_ENDS: Final = ["entity1", "entity2"]
_MOST: Final = 20_000_000  # pairs whose quantiles are exact; of more so many are drawn
_FEWEST: Final = 20  # known pairs below which a share says nothing


def _known_pairs(relations: pd.DataFrame, labels: pd.Index) -> _Array:
    """(pairs, 2) places among ``labels`` of the relations' ends; each unordered pair once, none with itself.

    ``relations`` has the columns entity1 and entity2; a pair with an end that was not measured is left out.
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


def relationship_recall(
    embedding: pd.DataFrame,
    relations: pd.DataFrame,
    *,
    tail: float = 0.05,
    permutations: int = 1000,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The share of known pairs among the most alike and the most opposite ``tail`` of all pairs of perturbations.

    ``embedding`` (perturbations, features), each once. ``recall`` counts both tails (chance 2 tail), ``close`` the
    upper and ``opposite`` the lower one. p: the perturbations' names are permuted, so that a hub stays a hub;
    (permutations at least as good + 1) / (permutations + 1).
    """
    if not 0 < tail < 0.5:
        raise SchemaError(f"tail is {tail}", expected="between 0 and 0.5")
    pairs = _known_pairs(relations, embedding.index)
    if len(pairs) < _FEWEST:
        raise SchemaError(
            f"{len(pairs)} known pairs have both ends among {len(embedding):,} perturbations",
            expected=f"at least {_FEWEST}",
            cause="other identifiers (gene symbols, Ensembl ids)",
            fix=f"perturbations: {shorten(embedding.index, 3)}; relations: {shorten(relations.get(_ENDS[0], []), 3)}",
        )
    unit = unit_rows(read_embedding(embedding.to_numpy(), embedding[[]]), "cosine")
    low, high = np.quantile(_pair_cosines(unit, rng), [tail, 1 - tail])

    def shares(order: _Array) -> _Array:
        values = np.einsum("ij,ij->i", unit[order[pairs[:, 0]]], unit[order[pairs[:, 1]]])
        return np.array([(values >= high).mean(), (values <= low).mean()])

    everyone = np.arange(len(unit))
    close, opposite = shares(everyone)
    drawn = [shares(rng.permutation(everyone)).sum() for _ in range(permutations)]
    reached = int((np.array(drawn) >= close + opposite - 1e-12).sum())
    return {
        "pairs": len(pairs),
        "recall": float(close + opposite),
        "close": float(close),
        "opposite": float(opposite),
        "chance": 2 * tail,
        "p": (reached + 1) / (permutations + 1),
    }


def _pair_cosines(unit: _Array, rng: np.random.Generator) -> _Array:
    """Cosines of all pairs of different rows, or of so many random ones that quantiles are the same to 1e-4."""
    n = len(unit)
    if n * (n - 1) // 2 <= _MOST:
        return (unit @ unit.T)[np.triu_indices(n, 1)]
    left = rng.integers(n, size=_MOST)
    right = (left + rng.integers(1, n, size=_MOST)) % n
    parts = [slice(i, i + 1_000_000) for i in range(0, _MOST, 1_000_000)]
    return np.concatenate(
        [np.einsum("ij,ij->i", unit[left[part]], unit[right[part]]) for part in parts]
    )
