"""Pseudobulk profiles in two dimensions, before and after plate effects are taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

MIN_CELLS = 5  # a profile of fewer cells is mostly counting noise
MIN_COUNT = 1.0  # and so is a gene with fewer counts a sample; its log CPM says how deep the sample is
MIN_GENES = 50  # unless hardly any gene has more


def log_cpm(counts: np.ndarray) -> np.ndarray:
    """log2 counts per million with half a count added, (samples, genes), as voom defines it."""
    library = counts.sum(axis=1, keepdims=True)
    return np.log2((counts + 0.5) / (library + 1) * 1e6)


def remove_plate_effects(values: np.ndarray, cell_type: pd.Series, plate: pd.Series, compound: pd.Series) -> np.ndarray:
    """``values`` (samples, genes) without the plate part of the fit ``compound + plate`` in each cell type.

    Least squares over all wells, since a shift read off a plate's few vehicle wells has an error that all wells of the
    plate would then share, and be told apart by. Plates are linked by the compounds they have in common.
    """
    corrected = values.copy()
    for rows in blocks(cell_type.to_numpy()):
        compounds, plates = one_hot(compound.to_numpy()[rows]), one_hot(plate.to_numpy()[rows])
        deviations = plates[:, :-1] - plates[:, -1:]  # plate effects that sum to zero
        effects = np.linalg.lstsq(np.hstack([compounds, deviations]), values[rows], rcond=None)[0]
        corrected[rows] -= deviations @ effects[compounds.shape[1] :]
    return corrected


def one_hot(labels: np.ndarray) -> np.ndarray:
    """(samples, labels) of 0 and 1, labels in sorted order."""
    codes, names = pd.factorize(labels, sort=True)
    return np.eye(len(names))[codes]


def blocks(labels: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each label, labels in sorted order."""
    codes, _ = pd.factorize(labels, sort=True)
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def variable_genes(values: np.ndarray, n: int = 2000) -> np.ndarray:
    """The columns of ``values`` (samples, genes) that vary most, in their own order."""
    return np.sort(np.argsort(-values.var(axis=0), kind="stable")[:n])


def strength(values: np.ndarray, cell_type: pd.Series, compound: pd.Series, vehicle: str) -> pd.Series:
    """How far each compound's profiles lie from the vehicle's of the same cell type, strongest first, vehicle left out.

    The root mean square over the most variable genes of the mean difference in ``values`` (samples, genes).
    """
    chosen = values[:, variable_genes(values)]
    treated = (compound != vehicle).to_numpy()
    distance: dict[str, list[float]] = {}
    for rows in blocks(cell_type.to_numpy()):
        reference = rows[~treated[rows]]
        if len(reference):
            for group in (rows[block] for block in blocks(compound.to_numpy()[rows])):
                difference = chosen[group].mean(axis=0) - chosen[reference].mean(axis=0)
                distance.setdefault(str(compound.iloc[group[0]]), []).append(float(np.sqrt((difference**2).mean())))
    distance.pop(vehicle, None)
    return pd.Series({name: np.mean(found) for name, found in distance.items()}, dtype=float).sort_values(
        ascending=False
    )


def principal_components(values: np.ndarray, *, seed: int = 0, components: int = 30) -> np.ndarray:
    """Scores (samples, components) of ``values`` (samples, genes) on its most variable genes."""
    from scanpy.pp import pca

    chosen = values[:, variable_genes(values)].astype(np.float32)
    return pca(chosen, n_comps=min(components, *(size - 1 for size in chosen.shape)), random_state=seed)


def embed(values: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """The first two principal components and a UMAP of ``values`` (samples, genes): columns PC1, PC2, UMAP1, UMAP2."""
    import warnings

    import scanpy as sc
    from anndata import AnnData

    data = AnnData(obsm={"pca": principal_components(values, seed=seed)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn says at every call that a fixed seed means one thread
        sc.pp.neighbors(data, n_neighbors=min(15, len(values) - 1), use_rep="pca", random_state=seed)
        sc.tl.umap(data, random_state=seed)
    coordinates = np.hstack([data.obsm["pca"][:, :2], data.obsm["X_umap"]])
    return pd.DataFrame(coordinates, columns=["PC1", "PC2", "UMAP1", "UMAP2"])


def profiles(bulk: AnnData) -> tuple[np.ndarray, pd.DataFrame]:
    """log CPM (samples, genes) and obs of the pseudobulk samples and genes that have enough cells and counts."""
    counts = np.asarray(bulk.X.todense() if hasattr(bulk.X, "todense") else bulk.X, dtype=np.float64)
    seen = counts.mean(axis=0) >= MIN_COUNT
    counts = counts[:, seen] if seen.sum() >= MIN_GENES else counts
    keep = (bulk.obs["n_cells"].to_numpy() >= min(MIN_CELLS, bulk.obs["n_cells"].max())) & (counts.sum(axis=1) > 0)
    return log_cpm(counts[keep]), bulk.obs[keep].reset_index(drop=True)
