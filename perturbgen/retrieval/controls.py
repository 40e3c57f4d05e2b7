"""The controls that every retrieval number needs: other plates and wells, shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.core.stats import Array
from perturbgen.retrieval.embedding import as_list, codes, read_mask, require_labels
from perturbgen.retrieval.evaluator import retrieve

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
    """A row per variant of one retrieval (means per query); ``note`` says why one is impossible.

    * ``other plate``, ``other well``: positives must lie on another plate, at another position, so
      that neither can help; ``negatives on the plate``: negatives share the query's plate, so that
      the plate cannot help either;
    * ``shuffled labels``: labels permuted (within the plate, where one is given): what the design
      alone gives;
    * ``the plate itself``, ``the well itself``: the plate (or the position, on another plate) as
      the label, positives and negatives being of other groups: how well a batch is retrieved.
      Chance is an auc of one half, more is leakage.

    ``options`` go to :func:`retrieve`.
    """
    same, differ = as_list(same), as_list(differ)
    require_labels(meta, [column for column in (plate, well) if column])
    found = read_mask(options.get("candidates"), meta, "candidates")
    shuffled = _shuffle_labels(meta, same, within=[plate] if plate else [], rows=found, rng=rng)
    variants: dict[str, dict[str, Any]] = {"as given": {}}
    if plate:
        variants["other plate"] = {"differ": [*differ, plate]}
        variants["negatives on the plate"] = {"negatives_same": [plate]}
    if well:
        variants["other well"] = {"differ": [*differ, well]}
    if plate and well:
        variants["other plate and well"] = {"differ": [*differ, plate, well]}
    variants["shuffled labels"] = {}
    if plate:
        variants["the plate itself"] = {"same": [plate], "differ": same, "negatives_differ": same}
    if plate and well:
        # On another plate only: else the plate would help to find the well.
        apart = [*same, plate]
        variants["the well itself"] = {"same": [well], "differ": apart, "negatives_differ": apart}
    rows: dict[str, dict[str, Any]] = {}
    for name, rule in variants.items():
        labels = shuffled if name == "shuffled labels" else meta
        try:
            result = retrieve(
                embedding, labels, **{"same": same, "differ": differ, **options, **rule}
            )
        # One plate only, for instance: the other variants still say something.
        except SchemaError as error:
            rows[name] = {"note": error.what}
            continue
        means: Any = result.summary().loc["per query"]
        shown = {column: float(means[column]) for column in _SHOWN}
        rows[name] = {**shown, "queries": int(means["n"]), "note": ""}
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=[*_SHOWN, "queries", "note"])


def _shuffle_labels(
    meta: pd.DataFrame,
    columns: Sequence[str],
    *,
    within: Sequence[str] = (),
    rows: Array | None = None,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The table with labels permuted among the rows that agree in ``within``.

    Rows outside the mask ``rows`` (the vehicle) and rows without a label keep what they have.
    """
    require_labels(meta, [*columns, *within])
    place = np.arange(len(meta))
    movable = read_mask(rows, meta, "rows") & (codes(meta, columns) >= 0)
    # Within the plate: what retrieval still finds is then what plates and positions give.
    stratum = codes(meta, within)
    for code in np.unique(stratum):
        here = np.flatnonzero((stratum == code) & movable)
        place[here] = rng.permutation(here)
    shuffled = meta.copy()
    for column in columns:
        shuffled[column] = meta[column].take(place).set_axis(meta.index)
    return shuffled
