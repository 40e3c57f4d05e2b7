"""Are batches mixed? The batches of each row's nearest neighbours, against what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.evaluate.retrieval.evaluator import as_list
from perturbgen.evaluate.retrieval.neighbours import nearest
from perturbgen.evaluate.retrieval.pairs import codes, require_labels
from perturbgen.evaluate.retrieval.similarity import Measure, read_embedding

Array = np.ndarray[Any, Any]
ACCEPTED = 0.05
FEWEST = 3  # rows that a stratum needs to have neighbours worth counting


def knn_mixing(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    batch: str,
    within: str | Sequence[str] = (),
    k: int = 30,
    similarity: Measure = "euclidean",
) -> pd.DataFrame:
    """Per row: how its k nearest neighbours spread over batches. NaN where a stratum is too small or of one batch.

    ``within`` looks for neighbours in the row's own stratum only (its label, or the controls), which is what keeps a
    batch of other compounds from looking like a batch effect. ``same_batch`` is the share of neighbours of the row's
    own batch and ``expected`` that share by chance; ``lisi`` the inverse Simpson index of the neighbours' batches;
    ``p`` kBET's chi-squared p-value of their counts against the stratum's.
    """
    require_labels(meta, [batch, *as_list(within)])
    vectors = read_embedding(embedding, meta)
    batches, strata = codes(meta, [batch]), codes(meta, as_list(within))
    if k < 1:
        raise SchemaError(f"{k} neighbours", expected="at least one")
    out = np.full((len(meta), 6), np.nan)
    for code in np.unique(strata[strata >= 0]):
        rows = np.flatnonzero((strata == code) & (batches >= 0))
        if len(rows) >= FEWEST and len(np.unique(batches[rows])) > 1:
            out[rows] = mix(vectors[rows], batches[rows], min(k, len(rows) - 1), similarity)
    names = ["neighbours", "batches", "same_batch", "expected", "lisi", "p"]
    return pd.DataFrame(out, columns=names, index=meta.index)


def mix(vectors: Array, batch: Array, k: int, similarity: Measure) -> Array:
    """(rows, 6) what :func:`knn_mixing` says of one stratum."""
    from scipy.stats import chi2

    batch = pd.factorize(batch)[0]
    neighbour, _ = nearest(vectors, pd.DataFrame(index=range(len(vectors))), k=k, similarity=similarity)
    size = np.bincount(batch)
    counts = np.stack([(batch[neighbour] == b).sum(axis=1) for b in range(len(size))], axis=1)
    others = size - (batch[:, None] == np.arange(len(size)))  # the row itself is no neighbour
    expected = k * others / (len(batch) - 1)
    with np.errstate(invalid="ignore"):
        squares = np.where(expected > 0, (counts - expected) ** 2 / expected, 0).sum(axis=1)
    own = np.arange(len(batch)), batch
    return np.stack(
        [
            np.full(len(batch), k), np.full(len(batch), len(size)), counts[own] / k, expected[own] / k,
            1 / ((counts / k) ** 2).sum(axis=1), chi2.sf(squares, len(size) - 1),
        ],
        axis=1,
    )  # fmt: skip


def mixing_summary(mixing: pd.DataFrame) -> dict[str, float]:
    """``ilisi`` (0 no mixing, 1 perfect), kBET's ``acceptance``, and how often a neighbour is of the own batch.

    ``ilisi`` is the median over rows of (lisi - 1) / (batches - 1), with the batches of the row's own stratum.
    """
    used = mixing.dropna()
    if used.empty:
        raise SchemaError(
            "no stratum holds two batches", expected="a stratum of three rows or more in at least two batches",
            cause="labels nested in batches: each compound on one plate only", fix="use controls, or no within=",
        )  # fmt: skip
    return {
        "ilisi": float(((used["lisi"] - 1) / (used["batches"] - 1)).median()),
        "acceptance": float((used["p"] >= ACCEPTED).mean()),
        "same_batch": float(used["same_batch"].mean()),
        "expected": float(used["expected"].mean()),
        "rows": len(used),
    }
