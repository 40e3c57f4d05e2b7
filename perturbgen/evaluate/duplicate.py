"""The positive control: what repeating the experiment would score, its noise taken out of silent
genes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array
from perturbgen.evaluate.labels import align


def interpolated_duplicate(
    duplicate: pd.DataFrame,
    mean: pd.DataFrame | pd.Series | None = None,
    *,
    adj_p: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """α · duplicate + (1 − α) · mean, gene by gene, α = 1 − adjusted p (after Miller et al. 2025).

    ``duplicate`` is a DE table, signed −log10 p, of replicates that the truth was not made from; as
    it is, it has noise in the genes that do not respond. The p must be that of a test against what
    is blended in: the duplicate's own, Benjamini-Hochberg adjusted within the condition, is against
    the control, whose value is 0. Miller et al. test against all other perturbed cells and blend
    with their ``mean`` (a value a gene, or conditions x genes): give both, ``mean`` and ``adj_p``.
    The control's p with the perturbed mean makes all conditions alike where few genes respond.
    """
    # On the semi-real experiment the blend with 0 has a discrimination of .82 (the raw duplicate
    # .83), that with the training mean .64.
    if mean is None:
        mean = duplicate * 0.0
    if isinstance(mean, pd.Series):
        absent = duplicate.columns[~duplicate.columns.isin(mean.index)]
        if len(absent):
            raise SchemaError(f"the mean has no value for {len(absent)} genes: {shorten(absent)}")
        row = mean.reindex(duplicate.columns).to_numpy(float)
        mean = pd.DataFrame(np.tile(row, (len(duplicate), 1)), duplicate.index, duplicate.columns)
    values, middle = align(duplicate, mean, genes="truth", rows="truth", name="the mean")
    if adj_p is None:
        p = _adjusted_p(np.abs(values.to_numpy()))
    else:
        p = align(values, adj_p, genes="truth", rows="truth", name="adj_p")[1].to_numpy()
        if ((p < 0) | (p > 1)).any():
            raise SchemaError("adj_p has values outside 0..1", expected="probabilities")
    return (1 - p) * values + p * middle


def _adjusted_p(strength: Array) -> Array:
    """Benjamini-Hochberg adjusted p within rows (conditions, genes), from −log10 p."""
    genes = strength.shape[1]
    order = np.argsort(-strength, axis=1)
    scaled = 10.0 ** -np.take_along_axis(strength, order, axis=1) * genes / np.arange(1, genes + 1)
    least = np.minimum.accumulate(scaled[:, ::-1], axis=1)[:, ::-1]
    adjusted = np.empty_like(strength)
    np.put_along_axis(adjusted, order, np.minimum(least, 1), axis=1)
    return adjusted
