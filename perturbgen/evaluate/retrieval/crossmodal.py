"""Matching two modalities in a shared space: does each profile find its partner among the other modality's?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten
from perturbgen.evaluate.retrieval.similarity import Measure, prepare, read_embedding

Array = np.ndarray[Any, Any]
DEPTHS: Final = (1, 5, 10)


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
    """Retrieval of partners in both directions; a row per direction and stratum, with permutation p-values.

    Both tables are (perturbations, features) in one space, indexed by perturbation, each once (average replicates
    first). Partners share the label; what is in one table only stays a candidate. ``strata`` maps perturbations to a
    stratum (reproducible in both assays, or not); candidates are never stratified. Columns: R@1, R@5, R@10, MRR and
    ``median_rank`` (a share of the candidates, 0 best, ties at the middle); each has its mean under the null and p. The
    null permutes partners within the stratum, (hits + 1) / (permutations + 1).
    """
    shared = shared_labels(first, second)
    stratum = np.full(len(shared), "all", object) if strata is None else read_strata(strata, shared)
    rows = []
    for source, target, name in (
        (first, second, f"{names[0]} to {names[1]}"),
        (second, first, f"{names[1]} to {names[0]}"),
    ):
        low, high = partner_ranks(source.loc[shared], target, shared, similarity)
        for value in pd.unique(stratum):
            here = np.flatnonzero(stratum == value)
            rows.append(
                {"direction": name, "stratum": value, **tested(low, high, here, len(target), permutations, rng)}
            )
    return pd.DataFrame(rows)


def shared_labels(first: pd.DataFrame, second: pd.DataFrame) -> pd.Index:
    """The perturbations in both, in the first one's order."""
    for table, name in ((first, "first"), (second, "second")):
        twice = table.index[table.index.duplicated()]
        if len(twice):
            raise SchemaError(
                f"the {name} modality repeats {len(twice)} labels: {shorten(twice.unique())}",
                expected="each perturbation once", fix="average its replicates: table.groupby(level=0).mean()",
            )  # fmt: skip
    if first.shape[1] != second.shape[1]:
        raise SchemaError(f"{first.shape[1]} and {second.shape[1]} features", expected="two modalities in one space")
    shared = first.index[first.index.isin(second.index)]
    if len(shared) < 2:
        raise SchemaError(
            f"the modalities share {len(shared)} perturbations", expected="at least two",
            cause="different identifiers", fix=f"first: {shorten(first.index, 3)}; second: {shorten(second.index, 3)}",
        )  # fmt: skip
    return shared


def read_strata(strata: pd.Series, shared: pd.Index) -> Array:
    """The stratum of each shared perturbation."""
    absent = shared.difference(strata.index)
    if len(absent) or strata.loc[shared].isna().any():
        raise SchemaError(f"no stratum for {len(absent)} perturbations: {shorten(absent)}", expected="one for each")
    return strata.loc[shared].to_numpy()


def partner_ranks(
    source: pd.DataFrame, target: pd.DataFrame, shared: pd.Index, measure: Measure
) -> tuple[Array, Array]:
    """(shared, shared) first and last rank, among all of target's rows, of each shared perturbation for each query."""
    both = pd.concat(
        [source.set_axis(range(len(source))), target.set_axis(range(len(source), len(source) + len(target)))]
    )
    vectors = read_embedding(both.to_numpy(), both[[]])
    everyone = np.arange(len(both))
    prepared = prepare(vectors, everyone[: len(source)], everyone[len(source) :], measure)
    wanted = target.index.get_indexer(shared)
    low = np.empty((len(shared), len(shared)), np.int32)
    high = np.empty_like(low)
    for i in range(len(shared)):
        values = prepared.block(slice(i, i + 1))[0, prepared.column]
        ordered = np.sort(values)
        low[i] = len(values) - np.searchsorted(ordered, values[wanted], side="right") + 1
        high[i] = len(values) - np.searchsorted(ordered, values[wanted], side="left")
    return low, high


def tested(
    low: Array, high: Array, here: Array, total: int, permutations: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The metrics of the queries ``here``, their null means and p-values."""
    observed = metrics(low[here, here], high[here, here], total)
    null = []
    for _ in range(permutations):
        partner = rng.permutation(here)
        null.append(metrics(low[here, partner], high[here, partner], total))
    drawn = np.array(null)
    better = drawn >= observed
    better[:, -1] = drawn[:, -1] <= observed[-1]  # a small rank is a good one
    p = (better.sum(axis=0) + 1) / (permutations + 1)
    result: dict[str, Any] = {"n": len(here), "candidates": total}
    for j, name in enumerate([*(f"R@{k}" for k in DEPTHS), "MRR", "median_rank"]):
        result |= {name: observed[j], f"{name} null": drawn[:, j].mean(), f"{name} p": p[j]}
    return result


def metrics(low: Array, high: Array, total: int) -> Array:
    """R@k, MRR and the median rank of partners whose rank lies anywhere from ``low`` to ``high``."""
    width = high - low + 1
    hits = [np.clip((k - low + 1) / width, 0, 1).mean() for k in DEPTHS]
    reciprocal = np.where(width == 1, 1 / low, (harmonic(high) - harmonic(low - 1)) / width)
    return np.array([*hits, reciprocal.mean(), np.median(((low + high) / 2 - 1) / (total - 1))])


def harmonic(n: Array) -> Array:
    """H_n."""
    from scipy.special import digamma

    return digamma(n + 1.0) + np.euler_gamma
