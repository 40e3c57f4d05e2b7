"""Are perturbations that are known to belong together (genes of a complex, drugs of a target) close, or opposite?"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten
from perturbgen.evaluate.retrieval.similarity import read_embedding, unit_rows

Array = np.ndarray[Any, Any]
ENDS: Final = ["entity1", "entity2"]
MOST: Final = 20_000_000  # pairs whose quantiles are exact; of more so many are drawn
FEWEST: Final = 20  # known pairs below which a share says nothing


def known_pairs(relations: pd.DataFrame, labels: pd.Index) -> Array:
    """(pairs, 2) places among ``labels`` of the relations' ends; each unordered pair once, none with itself.

    ``relations`` has the columns entity1 and entity2; a pair with an end that was not measured is left out.
    """
    absent = [name for name in ENDS if name not in relations]
    if absent:
        raise SchemaError(f"the relations have no column {shorten(absent)}", expected="entity1 and entity2")
    twice = labels[labels.duplicated()]
    if len(twice):
        raise SchemaError(f"{len(twice)} perturbations occur twice: {shorten(twice.unique())}",
                          expected="each once", fix="average its replicates first")  # fmt: skip
    ends = np.stack([labels.get_indexer(pd.Index(relations[name])) for name in ENDS], axis=1)
    ends = np.sort(ends[(ends >= 0).all(axis=1)], axis=1)
    return np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)


def relationship_recall(
    embedding: pd.DataFrame, relations: pd.DataFrame, *, tail: float = 0.05, permutations: int = 1000,
    rng: np.random.Generator,
) -> dict[str, Any]:  # fmt: skip
    """The share of known pairs among the most alike and the most opposite ``tail`` of all pairs of perturbations.

    ``embedding`` (perturbations, features), each once. ``recall`` counts both tails (chance 2 tail), ``close`` the
    upper and ``opposite`` the lower one. p: the perturbations' names are permuted, so that a hub stays a hub;
    (permutations at least as good + 1) / (permutations + 1).
    """
    if not 0 < tail < 0.5:
        raise SchemaError(f"tail is {tail}", expected="between 0 and 0.5")
    pairs = known_pairs(relations, embedding.index)
    if len(pairs) < FEWEST:
        raise SchemaError(
            f"{len(pairs)} known pairs have both ends among {len(embedding):,} perturbations",
            expected=f"at least {FEWEST}", cause="other identifiers (gene symbols, Ensembl ids)",
            fix=f"perturbations: {shorten(embedding.index, 3)}; relations: {shorten(relations.get(ENDS[0], []), 3)}",
        )  # fmt: skip
    unit = unit_rows(read_embedding(embedding.to_numpy(), embedding[[]]), "cosine")
    low, high = np.quantile(pair_cosines(unit, rng), [tail, 1 - tail])

    def shares(order: Array) -> Array:
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


def pair_cosines(unit: Array, rng: np.random.Generator) -> Array:
    """Cosines of all pairs of different rows, or of so many random ones that quantiles are the same to 1e-4."""
    n = len(unit)
    if n * (n - 1) // 2 <= MOST:
        return (unit @ unit.T)[np.triu_indices(n, 1)]
    left = rng.integers(n, size=MOST)
    right = (left + rng.integers(1, n, size=MOST)) % n
    parts = [slice(i, i + 1_000_000) for i in range(0, MOST, 1_000_000)]
    return np.concatenate([np.einsum("ij,ij->i", unit[left[part]], unit[right[part]]) for part in parts])
