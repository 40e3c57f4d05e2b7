"""Sums of counts over groups of cells.

Pseudobulk profiles in two dimensions, before and after plate effects are taken out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.core.errors import CountsError, SchemaError, shorten, suggest
from perturbgen.core.stats import log_cpm

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)


def pseudobulk(
    adata: AnnData, by: Sequence[str], *, layer: str | None = None, allow_fractional: bool = False
) -> AnnData:
    """Sum the counts of the cells that share their values in the columns ``by``.

    Returns a sample for each combination that occurs, in sorted order, named by its values joined with ``|``: X is CSR
    (samples, genes), int64 (float64 with ``allow_fractional``); obs has the columns that are constant within every
    sample, and ``n_cells``. Samples without a single count are dropped, and named in the log.
    """
    from anndata import AnnData

    by = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    codes, keys = group_codes(adata.obs, by)
    counts = sp.csr_array(adata.X if layer is None else adata.layers[layer])
    sums = _sum_rows(counts, codes, len(keys), allow_fractional=allow_fractional)
    obs = constant_columns(adata.obs, codes, by)
    obs["n_cells"] = np.bincount(codes, minlength=len(keys))
    obs.index = pd.Index(
        ["|".join(map(str, key)) for key in keys.itertuples(index=False)], name="sample"
    )
    bulk = AnnData(sums, obs=obs, var=adata.var.copy())
    bulk.uns.update({key: adata.uns[key] for key in ("vehicle",) if key in adata.uns})
    return _drop_empty(bulk)


def group_codes(obs: pd.DataFrame, by: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """A number for each cell's group, and the groups' values (groups, columns of ``by``) in sorted order."""
    for name in by:
        if name not in obs:
            raise SchemaError(
                f"pseudobulk by {name!r}: obs has no such column", fix=suggest(name, obs.columns)
            )
        if obs[name].isna().any():
            missing = obs.index[obs[name].isna()]
            raise SchemaError(
                f"pseudobulk by {name!r}: {len(missing)} cells have no value: {shorten(missing)}",
                fix="drop those cells, or give them a value",
            )
    groups = obs.groupby(list(by), observed=True, sort=True)
    keys = groups.size().index.to_frame(index=False)
    return groups.ngroup().to_numpy(), keys


def _sum_rows(
    counts: sp.csr_array, codes: np.ndarray, groups: int, *, allow_fractional: bool = False
) -> sp.csr_array:
    """Sums (groups, genes) of the rows of ``counts`` (cells, genes) that share a code, added in 64 bits."""
    if (
        not allow_fractional
        and counts.dtype.kind == "f"
        and (counts.data != np.rint(counts.data)).any()
    ):
        raise CountsError(
            "pseudobulk of values that are not whole numbers",
            expected="raw counts",
            cause="the matrix was normalised, or holds means instead of drawn counts",
            fix="name the raw layer, or allow fractional values knowingly: allow_fractional=True",
        )
    from perturbgen.data.counts import group_sums

    dtype = np.float64 if allow_fractional else np.int64
    order, starts = (
        np.argsort(codes, kind="stable"),
        np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=groups))]),
    )
    lengths = np.diff(counts.indptr)
    most = (
        np.minimum(np.add.reduceat(lengths[order], starts[:-1]), counts.shape[1])
        if len(codes)
        else lengths
    )
    values, columns = np.empty(int(most.sum()) + 1, dtype), np.empty(int(most.sum()) + 1, np.int32)
    offsets, total = np.zeros(groups + 1, np.int64), np.zeros(counts.shape[1], dtype)
    indices, indptr = (
        counts.indices.astype(np.int32, copy=False),
        counts.indptr.astype(np.int64, copy=False),
    )
    group_sums(counts.data, indices, indptr, order, starts, total, values, columns, offsets)
    used = offsets[-1]
    return sp.csr_array((values[:used], columns[:used], offsets), shape=(groups, counts.shape[1]))


def constant_columns(obs: pd.DataFrame, codes: np.ndarray, by: Sequence[str]) -> pd.DataFrame:
    """The columns of obs that have one value in every group, ``by`` first; a row for each group."""
    first = pd.Series(np.arange(len(codes))).groupby(codes).first().to_numpy()
    rest = [name for name in obs if name not in by and _is_constant(obs[name], codes, first)]
    kept = obs[[*by, *rest]].iloc[first].reset_index(drop=True)
    for name in kept.select_dtypes("category"):
        kept[name] = kept[name].cat.remove_unused_categories()
    return kept


def _is_constant(values: pd.Series, codes: np.ndarray, first: np.ndarray) -> bool:
    """Whether every cell has the value of its group's first cell; missing equals missing."""
    numbers, _ = pd.factorize(values, use_na_sentinel=False)
    return bool((numbers == numbers[first][codes]).all())


def _drop_empty(bulk: AnnData) -> AnnData:
    """Without the samples that have no counts: no normalisation can use them."""
    empty = np.asarray(bulk.X.sum(axis=1)).ravel() == 0
    if empty.all():
        raise CountsError(
            f"none of the {len(empty)} pseudobulk samples has a count", expected="raw counts"
        )
    if empty.any():
        log.warning(
            "dropped %d pseudobulk samples without counts: %s",
            empty.sum(),
            shorten(bulk.obs_names[empty]),
        )
        bulk = bulk[~empty].copy()
    return bulk


MIN_CELLS = 5  # a profile of fewer cells is mostly counting noise
_MIN_COUNT = (
    1.0  # and so is a gene with fewer counts a sample; its log CPM says how deep the sample is
)
_MIN_GENES = 50  # unless hardly any gene has more


def remove_plate_effects(
    values: np.ndarray, cell_type: pd.Series, plate: pd.Series, compound: pd.Series
) -> np.ndarray:
    """``values`` (samples, genes) without the plate part of the fit ``compound + plate`` in each cell type.

    Least squares over all wells, since a shift read off a plate's few vehicle wells has an error that all wells of the
    plate would then share, and be told apart by. Plates are linked by the compounds they have in common.
    """
    corrected = values.copy()
    for rows in _blocks(cell_type.to_numpy()):
        compounds, plates = _one_hot(compound.to_numpy()[rows]), _one_hot(plate.to_numpy()[rows])
        deviations = plates[:, :-1] - plates[:, -1:]  # plate effects that sum to zero
        effects = np.linalg.lstsq(np.hstack([compounds, deviations]), values[rows], rcond=None)[0]
        corrected[rows] -= deviations @ effects[compounds.shape[1] :]
    return corrected


def _one_hot(labels: np.ndarray) -> np.ndarray:
    """(samples, labels) of 0 and 1, labels in sorted order."""
    codes, names = pd.factorize(labels, sort=True)
    return np.eye(len(names))[codes]


def _blocks(labels: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each label, labels in sorted order."""
    codes, _ = pd.factorize(labels, sort=True)
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def _variable_genes(values: np.ndarray, n: int = 2000) -> np.ndarray:
    """The columns of ``values`` (samples, genes) that vary most, in their own order."""
    return np.sort(np.argsort(-values.var(axis=0), kind="stable")[:n])


def strength(
    values: np.ndarray, cell_type: pd.Series, compound: pd.Series, vehicle: str
) -> pd.Series:
    """How far each compound's profiles lie from the vehicle's of the same cell type, strongest first, vehicle left out.

    The root mean square over the most variable genes of the mean difference in ``values`` (samples, genes).
    """
    chosen = values[:, _variable_genes(values)]
    treated = (compound != vehicle).to_numpy()
    distance: dict[str, list[float]] = {}
    for rows in _blocks(cell_type.to_numpy()):
        reference = rows[~treated[rows]]
        if len(reference):
            for group in (rows[block] for block in _blocks(compound.to_numpy()[rows])):
                difference = chosen[group].mean(axis=0) - chosen[reference].mean(axis=0)
                distance.setdefault(str(compound.iloc[group[0]]), []).append(
                    float(np.sqrt((difference**2).mean()))
                )
    distance.pop(vehicle, None)
    return pd.Series(
        {name: np.mean(found) for name, found in distance.items()}, dtype=float
    ).sort_values(ascending=False)


def principal_components(values: np.ndarray, *, seed: int = 0, components: int = 30) -> np.ndarray:
    """Scores (samples, components) of ``values`` (samples, genes) on its most variable genes."""
    from scanpy.pp import pca

    chosen = values[:, _variable_genes(values)].astype(np.float32)
    return pca(
        chosen, n_comps=min(components, *(size - 1 for size in chosen.shape)), random_state=seed
    )


def embed(values: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """The first two principal components and a UMAP of ``values`` (samples, genes): columns PC1, PC2, UMAP1, UMAP2."""
    import warnings

    import scanpy as sc
    from anndata import AnnData

    data = AnnData(obsm={"pca": principal_components(values, seed=seed)})
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # umap-learn says at every call that a fixed seed means one thread
        sc.pp.neighbors(
            data, n_neighbors=min(15, len(values) - 1), use_rep="pca", random_state=seed
        )
        sc.tl.umap(data, random_state=seed)
    coordinates = np.hstack([data.obsm["pca"][:, :2], data.obsm["X_umap"]])
    return pd.DataFrame(coordinates, columns=["PC1", "PC2", "UMAP1", "UMAP2"])


def profiles(bulk: AnnData) -> tuple[np.ndarray, pd.DataFrame]:
    """log CPM (samples, genes) and obs of the pseudobulk samples and genes that have enough cells and counts."""
    counts = np.asarray(
        bulk.X.todense() if hasattr(bulk.X, "todense") else bulk.X, dtype=np.float64
    )
    seen = counts.mean(axis=0) >= _MIN_COUNT
    counts = counts[:, seen] if seen.sum() >= _MIN_GENES else counts
    keep = (bulk.obs["n_cells"].to_numpy() >= min(MIN_CELLS, bulk.obs["n_cells"].max())) & (
        counts.sum(axis=1) > 0
    )
    return log_cpm(counts[keep], counts[keep].sum(axis=1)), bulk.obs[keep].reset_index(drop=True)
