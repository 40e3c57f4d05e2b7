"""Do two assays agree on which perturbations are alike? Needs no map from one to the other."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from perturbgen.errors import SchemaError
from perturbgen.evaluate.retrieval.crossmodal import Array
from perturbgen.evaluate.retrieval.similarity import read_embedding


def mantel(
    first: pd.DataFrame, second: pd.DataFrame, *, permutations: int = 999, rng: np.random.Generator
) -> dict[str, float]:
    """Mantel's test: Spearman's correlation of the two assays' correlations between perturbations, all pairs i < j.

    Both tables are (perturbations, features), joined by their index, each perturbation once. The null permutes
    perturbations of one assay; p = (hits + 1) / (permutations + 1), one-sided.
    """
    shared = first.index[first.index.isin(second.index)]
    if len(shared) < 4 or first.index.has_duplicates or second.index.has_duplicates:
        raise SchemaError(
            f"{len(shared)} perturbations in both assays", expected="four or more, each once in each assay"
        )
    one, other = (similarities(table.loc[shared]) for table in (first, second))
    i, j = np.triu_indices(len(shared), 1)
    x = centred(rankdata(one[i, j]))
    ranked = np.zeros_like(other)
    ranked[i, j] = ranked[j, i] = centred(rankdata(other[i, j]))
    observed = float(x @ ranked[i, j])
    drawn = []
    for _ in range(permutations):
        order = rng.permutation(len(shared))
        drawn.append(float(x @ ranked[order[i], order[j]]))
    p = (sum(value >= observed for value in drawn) + 1) / (permutations + 1)
    return {"n": len(shared), "spearman": observed, "p": p}


def similarities(table: pd.DataFrame) -> Array:
    """(rows, rows) Pearson correlations of rows."""
    values = read_embedding(table.to_numpy(), table[[]])
    if (values.std(axis=1) == 0).any():
        raise SchemaError("a perturbation's profile is constant", expected="features that differ")
    return np.corrcoef(values)


def centred(values: Array) -> Array:
    """About the mean, of length one."""
    values = values - values.mean()
    return np.asarray(values / np.linalg.norm(values))
