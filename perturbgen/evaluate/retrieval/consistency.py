"""Do replicates agree, and do they differ from controls? Consistency and magnitude of each perturbation, with nulls.

After EFAAR (Celik et al. 2024), with the sums done by algebra instead of over lists of pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.evaluate.retrieval.nulls import benjamini_hochberg
from perturbgen.evaluate.retrieval.pairs import codes, require_labels
from perturbgen.evaluate.retrieval.similarity import read_embedding, unit_rows

Array = np.ndarray[Any, Any]
MOST_CONTROLS = 1000  # whose distances are held at once; of more so many are drawn


def consistency(
    embedding: Array | pd.DataFrame, meta: pd.DataFrame, *, same: str, null: Array | None = None,
    draws: int = 1000, rng: np.random.Generator,
) -> pd.DataFrame:  # fmt: skip
    """Per group of two or more rows: ``size``, ``consistency`` (the mean cosine of its pairs), p and q (BH).

    With unit rows u the mean over pairs is (|sum u|^2 - n) / (n (n - 1)). The null draws as many rows, each of another
    group, among the rows of the mask ``null`` (perturbations known to do nothing; by default all labelled rows).
    """
    unit, group = unit_rows(read_embedding(embedding, meta), "cosine"), labelled(meta, same)
    pool = group >= 0 if null is None else np.asarray(null, bool) & (group >= 0)
    sizes = np.bincount(group[group >= 0])
    wanted = np.flatnonzero(sizes > 1)
    if not len(wanted):
        raise SchemaError(f"no group of {same!r} has two rows", expected="replicates", fix="another same=")
    values = {int(code): mean_cosine(unit[group == code]) for code in wanted}
    drawn = {
        int(size): np.sort([mean_cosine(unit[one_a_group(group, pool, int(size), rng)]) for _ in range(draws)])
        for size in np.unique(sizes[wanted])
    }
    p = [upper_tail(drawn[int(sizes[code])], value) for code, value in values.items()]
    return table_of(meta, same, group, sizes, values, "consistency", p)


def magnitude(
    embedding: Array | pd.DataFrame, meta: pd.DataFrame, *, same: str, control: Array, draws: int = 1000,
    rng: np.random.Generator,
) -> pd.DataFrame:  # fmt: skip
    """Per group of two or more rows: ``size``, ``magnitude`` (its energy distance to the controls), p and q (BH).

    The energy distance 2 E|x - y| - E|x - x'| - E|y - y'| is taken over pairs of different rows, so its mean is 0 where
    nothing was done, whatever the sizes. The null takes as many controls for treated and the others for controls.
    """
    vectors, group = np.asarray(read_embedding(embedding, meta), np.float64), labelled(meta, same)
    rows = np.flatnonzero(np.asarray(control, bool))
    rows = np.sort(rng.choice(rows, MOST_CONTROLS, replace=False)) if len(rows) > MOST_CONTROLS else rows
    treated = np.where(np.asarray(control, bool), -1, group)
    sizes = np.bincount(treated[treated >= 0], minlength=1)
    wanted = np.flatnonzero(sizes > 1)
    if not len(wanted) or len(rows) < sizes[wanted].max() + 2:
        raise SchemaError(
            f"{len(rows)} controls and {len(wanted)} groups of {same!r} with two rows",
            expected="groups of at least two, and more controls than the largest group has rows",
        )
    base = distances(vectors[rows], vectors[rows])
    spread = mean_pair(base)
    values = {}
    for code in wanted:
        own = vectors[treated == code]
        values[int(code)] = 2 * distances(own, vectors[rows]).mean() - mean_pair(distances(own, own)) - spread
    drawn = {int(size): null_energy(base, int(size), draws, rng) for size in np.unique(sizes[wanted])}
    p = [upper_tail(drawn[int(sizes[code])], value) for code, value in values.items()]
    return table_of(meta, same, treated, sizes, values, "magnitude", p)


def labelled(meta: pd.DataFrame, same: str) -> Array:
    """The number of each row's group, -1 without a label."""
    require_labels(meta, [same])
    return codes(meta, [same])


def mean_cosine(unit: Array) -> float:
    """The mean product of two different unit rows (n, features)."""
    n = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()) / (n * (n - 1)))


def one_a_group(group: Array, pool: Array, size: int, rng: np.random.Generator) -> Array:
    """``size`` random rows of the pool, no two of one group."""
    rows = rng.permutation(np.flatnonzero(pool))
    first = rows[np.unique(group[rows], return_index=True)[1]]
    if len(first) < size:
        raise SchemaError(
            f"a null of {size} rows cannot be drawn from {len(first)} groups",
            expected="at least as many groups as the largest has rows", fix="leave large groups (controls) unlabelled",
        )  # fmt: skip
    return rng.choice(first, size, replace=False)


def distances(left: Array, right: Array) -> Array:
    """Euclidean distances, (left, right)."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(left, right))


def mean_pair(square: Array) -> float:
    """The mean over pairs of different rows of a symmetric matrix with a zero diagonal."""
    n = len(square)
    return float(square.sum() / (n * (n - 1)))


def null_energy(base: Array, size: int, draws: int, rng: np.random.Generator) -> Array:
    """Energy distances of ``size`` controls from all others, sorted; ``base`` (controls, controls) are distances."""
    n, total = len(base), base.sum()
    found = np.empty(draws)
    for i in range(draws):
        inside = rng.choice(n, size, replace=False)
        to_all, within = base[inside].sum(), base[np.ix_(inside, inside)].sum()
        across, outside = to_all - within, total - 2 * to_all + within
        found[i] = (
            2 * across / (size * (n - size)) - within / (size * (size - 1)) - outside / ((n - size) * (n - size - 1))
        )
    return np.sort(found)


def upper_tail(drawn: Array, value: float) -> float:
    """(null values at least as large + 1) / (draws + 1); ``drawn`` is sorted."""
    return float((len(drawn) - np.searchsorted(drawn, value, side="left") + 1) / (len(drawn) + 1))


def table_of(
    meta: pd.DataFrame, same: str, group: Array, sizes: Array, values: dict[int, float], name: str, p: list[float]
) -> pd.DataFrame:
    """One row a group, by its label."""
    labels = meta[same].to_numpy()[[int(np.argmax(group == code)) for code in values]]
    table = pd.DataFrame({"size": sizes[list(values)], name: list(values.values()), "p": p})
    return table.assign(q=benjamini_hochberg(np.array(p))).set_axis(pd.Index(labels, name=same))
