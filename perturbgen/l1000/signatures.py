"""Replicates to one signature: MODZ in both published variants, its strength and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.l1000.schema import decode

if TYPE_CHECKING:
    from anndata import AnnData

_Variant = Literal["cmapm", "cmappy"]
_CLIP: Final = 10.0
# Where no replicates agree the weights would else add up to nothing.
_LEAST_WEIGHT: Final = 0.01
_STRONG: Final = 2.0  # |z| sqrt(n) of a gene that counts as changed


@dataclass(frozen=True)
class _Consensus:
    """A signature: ``values`` over genes, ``weights`` of replicates, and how good it is.

    ``cc_q75`` is the replicates' agreement, ``ss_ngene`` the number of genes that change, ``tas``
    the transcriptional activity, which is of both.
    """

    values: pd.Series
    weights: pd.Series
    cc_q75: float
    ss_ngene: int
    tas: float


def modz(
    replicates: pd.DataFrame | np.ndarray,
    *,
    landmarks: Sequence[object] | None = None,
    variant: _Variant = "cmapm",
    clip: float | None = _CLIP,
) -> _Consensus:
    """The mean of replicate z-scores (replicates, genes), weighted by agreement with the others.

    Agreement is Spearman's correlation over the ``landmarks`` (ids; None for all genes). The
    variants differ where the least weight binds: CMap's own code halves the sum of correlations,
    cmapPy and pycytominer take their mean and round the weights. Missing values count for nothing:
    a gene's mean is over the replicates that have it.
    """
    frame = pd.DataFrame(replicates)
    places = _locate_genes(frame.columns, landmarks)
    values, weights, measures = _modz_batch(frame.to_numpy(float)[None], places, variant, clip)
    return _Consensus(
        pd.Series(values[0], index=frame.columns),
        pd.Series(weights[0], index=frame.index),
        **{name: found[0].item() for name, found in measures.items()},
    )


def _locate_genes(known: pd.Index, wanted: Sequence[object] | None) -> np.ndarray:
    """Positions of genes by id, None for all; whole numbers match their text."""
    if wanted is None:
        return np.arange(len(known))
    names = pd.Index([decode(name) for name in known], dtype=object)
    asked = pd.Index([decode(name) for name in wanted], dtype=object)
    found = names.get_indexer(asked)
    if (found < 0).any():
        missing = asked[found < 0]
        raise SchemaError(
            f"{len(missing)} landmarks are not among the genes: {shorten(missing)}",
            fix=suggest(missing[0], names),
        )
    return found


def _modz_batch(
    z: np.ndarray, landmarks: np.ndarray, variant: _Variant, clip: float | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """MODZ of equal groups at once: z (groups, replicates, genes), ``landmarks`` positions.

    Returns signatures (groups, genes), weights (groups, replicates) and measures, each (groups,).
    """
    z = z if clip is None else np.clip(z, -clip, clip)
    correlation = _replicate_correlation(z[..., landmarks])
    weights = _modz_weights(correlation, variant=variant)
    known = np.isfinite(z)
    total = np.einsum("br,brg->bg", weights, known.astype(float))
    summed = np.einsum("br,brg->bg", weights, np.where(known, z, 0.0))
    # of the weights, those that a gene has values for: 1 where none lacks
    share = total / weights.sum(axis=1, keepdims=True)
    values = np.where(total > 0, summed / np.where(total > 0, share, 1.0), np.nan)
    quality = _cc_q75(correlation)
    strength = (np.abs(values[:, landmarks]) * np.sqrt(z.shape[1]) >= _STRONG).sum(axis=-1)
    activity = _tas(strength, quality, len(landmarks))
    return values, weights, {"cc_q75": quality, "ss_ngene": strength, "tas": activity}


def _replicate_correlation(z: np.ndarray) -> np.ndarray:
    """Spearman's correlation of replicates, (groups, n, n); 0 with a constant profile.

    Genes that any replicate lacks are left out of its group.
    """
    complete = np.isfinite(z).all(axis=1, keepdims=True)
    # last of all in every replicate: what is missing shifts the other ranks alike
    ranks = rankdata(np.where(complete, z, -np.inf), axis=-1)
    ranks = np.where(complete, ranks, np.nan) if not complete.all() else ranks
    counts = np.maximum(complete.sum(axis=-1, keepdims=True), 1)
    centred = np.where(complete, ranks - np.nansum(ranks, axis=-1, keepdims=True) / counts, 0.0)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit = centred / np.where(length > 0, length, 1.0)
    return unit @ unit.swapaxes(-1, -2)


def _modz_weights(correlation: np.ndarray, *, variant: _Variant = "cmapm") -> np.ndarray:
    """Weights (groups, n) from correlations (groups, n, n), of which negative ones count as 0."""
    known = get_args(_Variant)
    if variant not in known:
        raise SchemaError(f"there is no MODZ variant {variant!r}", fix=suggest(variant, known))
    n = correlation.shape[-1]
    others = np.where(np.eye(n, dtype=bool), 0.0, np.maximum(correlation, 0.0)).sum(axis=-1)
    raw = np.maximum(others / 2 if variant == "cmapm" else others / max(n - 1, 1), _LEAST_WEIGHT)
    weights = raw / raw.sum(axis=-1, keepdims=True)
    return weights.round(4) if variant == "cmappy" else weights


def _cc_q75(correlation: np.ndarray) -> np.ndarray:
    """The 75th percentile (MATLAB's, Hazen) of replicate correlations; NaN of one replicate."""
    n = correlation.shape[-1]
    if n < 2:
        return np.full(len(correlation), np.nan)
    pairs = correlation[:, *np.triu_indices(n, 1)]
    return np.quantile(pairs, 0.75, axis=-1, method="hazen")


def _tas(strength: np.ndarray, quality: np.ndarray, genes: int) -> np.ndarray:
    """Transcriptional activity: sqrt(max(SS, .001) clip(CC, 0, 1)) / sqrt(genes), in 0 to 1."""
    return np.sqrt(np.maximum(strength, 0.001) * np.clip(quality, 0, 1) / genes)


def collapse(
    data: AnnData,
    by: Sequence[str],
    *,
    landmarks: Sequence[object] | None = None,
    variant: _Variant = "cmapm",
    clip: float | None = _CLIP,
) -> AnnData:
    """Signatures of all groups of samples that agree in the columns ``by``.

    obs holds ``by``, ``replicates``, ``cc_q75``, ``ss_ngene``, ``tas``, ``weights`` and ``members``
    (joined by ``|``).
    """
    import anndata

    for name in by:
        if name not in data.obs:
            raise SchemaError(f"no column {name!r} of samples", fix=suggest(name, data.obs.columns))
    # controls have no dose, and are a group all the same
    groups = data.obs.groupby(list(by), sort=False, observed=True, dropna=False).indices
    rows = [np.asarray(group) for group in groups.values()]
    places = _locate_genes(data.var_names, landmarks)
    values = np.empty((len(rows), data.n_vars), np.float32)
    about: list[dict[str, object]] = [{} for _ in rows]
    # groups of one size are one array, and are collapsed at once
    for size in sorted({len(group) for group in rows}):
        chosen = [i for i, group in enumerate(rows) if len(group) == size]
        stacked = np.asarray(data.X)[np.stack([rows[i] for i in chosen])].astype(float)
        values[chosen], weights, measures = _modz_batch(stacked, places, variant, clip)
        for place, i in enumerate(chosen):
            about[i] = {
                "replicates": size,
                **{name: found[place] for name, found in measures.items()},
                "weights": ",".join(f"{weight:.2f}" for weight in weights[place]),
                "members": "|".join(map(str, data.obs_names[rows[i]])),
            }
    first = data.obs[list(by)].iloc[[group[0] for group in rows]]
    obs = first.assign(**pd.DataFrame(about, index=first.index))
    names = [str(i) for i in range(len(rows))]
    return anndata.AnnData(values, obs=obs.set_axis(names), var=data.var.copy())


def robust_z(expression: np.ndarray, *, least_mad: float | None = None) -> np.ndarray:
    """Level 3 to 4: z over the wells of a plate (wells, genes), (x - median) / (1.4826 MAD).

    No MAD counts as less than the first percentile of all (``least_mad`` None), or than a given one
    (cmapPy: 0.1).
    """
    middle = np.median(expression, axis=0)
    mad = np.median(np.abs(expression - middle), axis=0)
    eps = float(np.finfo(np.float32).eps)
    least = max(float(np.percentile(mad, 1)), eps) if least_mad is None else least_mad
    # 1.4826 MADs of normal values are their standard deviation
    return (expression - middle) / (1.4826 * np.maximum(mad, least))
