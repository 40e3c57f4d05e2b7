"""The controls that every retrieval number needs: other plates, other wells, shuffled labels, the plate itself.

Are batches mixed? The batches of each row's nearest neighbours, against what chance would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.retrieval.evaluator import as_list, retrieve
from perturbgen.retrieval.nearest import nearest
from perturbgen.retrieval.pairs import Array, codes, read_mask, require_labels
from perturbgen.retrieval.ranks import Measure, read_embedding

_SHOWN: Final = ("ap", "nap", "auc", "median_q", "top_0.01", "p_at_1")


def controlled(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str | Sequence[str],
    differ: str | Sequence[str] = (),
    plate: str | None = None,
    well: str | None = None,
    rng: np.random.Generator,
    **options: Any,
) -> pd.DataFrame:
    """A row per variant of one retrieval (means per query), ``note`` saying why a variant is impossible.

    * ``other plate``, ``other well``: positives must lie on another plate, at another position, so that neither can
      help; ``negatives on the plate``: negatives share the query's plate, so that the plate cannot help either;
    * ``shuffled labels``: labels permuted (within the plate, where one is given): what the design alone gives;
    * ``the plate itself``, ``the well itself``: the plate (or the position, on another plate) as the label, positives
      and negatives being of other groups: how well a batch is retrieved. Chance is an auc of one half, more is leakage.

    ``options`` go to :func:`retrieve`.
    """
    same, differ = as_list(same), as_list(differ)
    require_labels(meta, [column for column in (plate, well) if column])
    found = read_mask(options.get("candidates"), meta, "candidates")
    shuffled = shuffle_labels(meta, same, within=[plate] if plate else [], rows=found, rng=rng)
    variants: dict[str, tuple[pd.DataFrame, dict[str, Any]]] = {"as given": (meta, {})}
    if plate:
        variants["other plate"] = meta, {"differ": [*differ, plate]}
        variants["negatives on the plate"] = meta, {"negatives_same": [plate]}
    if well:
        variants["other well"] = meta, {"differ": [*differ, well]}
    if plate and well:
        variants["other plate and well"] = meta, {"differ": [*differ, plate, well]}
    variants["shuffled labels"] = shuffled, {}
    if plate:
        variants["the plate itself"] = (
            meta,
            {"same": [plate], "differ": same, "negatives_differ": same},
        )
    if plate and well:
        variants["the well itself"] = (
            meta,
            {"same": [well], "differ": [*same, plate], "negatives_differ": [*same, plate]},
        )
    rows = {
        name: _variant(embedding, labels, {"same": same, "differ": differ, **options, **rule})
        for name, (labels, rule) in variants.items()
    }
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=[*_SHOWN, "queries", "note"])


def _variant(
    embedding: Array | pd.DataFrame, meta: pd.DataFrame, rule: dict[str, Any]
) -> dict[str, Any]:
    """One row."""
    try:
        result = retrieve(embedding, meta, **rule)
    except SchemaError as error:
        return {"note": error.what}
    summary: Any = result.summary().loc["per query"]
    return {
        **{name: float(summary[name]) for name in _SHOWN},
        "queries": int(summary["n"]),
        "note": "",
    }


def shuffle_labels(
    meta: pd.DataFrame,
    columns: Sequence[str],
    *,
    within: Sequence[str] = (),
    rows: Array | None = None,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The same table with the labels permuted among the rows that agree in ``within``; groups keep their sizes.

    Rows outside the mask ``rows`` (the vehicle) and rows without a label keep what they have.
    """
    require_labels(meta, [*columns, *within])
    place = np.arange(len(meta))
    movable = read_mask(rows, meta, "rows") & (codes(meta, columns) >= 0)
    stratum = codes(meta, within)
    for code in np.unique(stratum):
        here = np.flatnonzero((stratum == code) & movable)
        place[here] = rng.permutation(here)
    shuffled = meta.copy()
    for column in columns:
        shuffled[column] = meta[column].take(place).set_axis(meta.index)
    return shuffled


_ACCEPTED = 0.05
_FEWEST = 3  # rows that a stratum needs to have neighbours worth counting


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
        if len(rows) >= _FEWEST and len(np.unique(batches[rows])) > 1:
            out[rows] = _mix(vectors[rows], batches[rows], min(k, len(rows) - 1), similarity)
    names = ["neighbours", "batches", "same_batch", "expected", "lisi", "p"]
    return pd.DataFrame(out, columns=names, index=meta.index)


def _mix(vectors: Array, batch: Array, k: int, similarity: Measure) -> Array:
    """(rows, 6) what :func:`knn_mixing` says of one stratum."""
    from scipy.stats import chi2

    batch = pd.factorize(batch)[0]
    neighbour, _ = nearest(
        vectors, pd.DataFrame(index=range(len(vectors))), k=k, similarity=similarity
    )
    size = np.bincount(batch)
    counts = np.stack([(batch[neighbour] == b).sum(axis=1) for b in range(len(size))], axis=1)
    others = size - (batch[:, None] == np.arange(len(size)))  # the row itself is no neighbour
    expected = k * others / (len(batch) - 1)
    with np.errstate(invalid="ignore"):
        squares = np.where(expected > 0, (counts - expected) ** 2 / expected, 0).sum(axis=1)
    own = np.arange(len(batch)), batch
    return np.stack(
        [
            np.full(len(batch), k),
            np.full(len(batch), len(size)),
            counts[own] / k,
            expected[own] / k,
            1 / ((counts / k) ** 2).sum(axis=1),
            chi2.sf(squares, len(size) - 1),
        ],
        axis=1,
    )


def mixing_summary(mixing: pd.DataFrame) -> dict[str, float]:
    """``ilisi`` (0 no mixing, 1 perfect), kBET's ``acceptance``, and how often a neighbour is of the own batch.

    ``ilisi`` is the median over rows of (lisi - 1) / (batches - 1), with the batches of the row's own stratum.
    """
    used = mixing.dropna()
    if used.empty:
        raise SchemaError(
            "no stratum holds two batches",
            expected="a stratum of three rows or more in at least two batches",
            cause="labels nested in batches: each compound on one plate only",
            fix="use controls, or no within=",
        )
    return {
        "ilisi": float(((used["lisi"] - 1) / (used["batches"] - 1)).median()),
        "acceptance": float((used["p"] >= _ACCEPTED).mean()),
        "same_batch": float(used["same_batch"].mean()),
        "expected": float(used["expected"].mean()),
        "rows": len(used),
    }
