"""Pseudobulk profiles in two dimensions, before and after plate effects are taken out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.stats import log_cpm

if TYPE_CHECKING:
    from anndata import AnnData

MIN_CELLS = 5  # a profile of fewer cells is mostly counting noise
_MIN_COUNT = (
    1.0  # and so is a gene of fewer counts a sample; its log CPM says how deep the sample is
)
_MIN_GENES = 50  # unless hardly any gene has more


def log_profiles(bulk: AnnData) -> tuple[np.ndarray, pd.DataFrame]:
    """log CPM (samples, genes) and obs, of the samples and genes with enough cells and counts."""
    dense = bulk.X.todense() if hasattr(bulk.X, "todense") else bulk.X
    counts = np.asarray(dense, dtype=np.float64)
    seen = counts.mean(axis=0) >= _MIN_COUNT
    counts = counts[:, seen] if seen.sum() >= _MIN_GENES else counts
    enough = min(MIN_CELLS, bulk.obs["n_cells"].max())
    keep = (bulk.obs["n_cells"].to_numpy() >= enough) & (counts.sum(axis=1) > 0)
    counts = counts[keep]
    return log_cpm(counts, counts.sum(axis=1)), bulk.obs[keep].reset_index(drop=True)


def remove_plate_effects(
    values: np.ndarray, cell_type: pd.Series, plate: pd.Series, compound: pd.Series
) -> np.ndarray:
    """``values`` (samples, genes) without the plate part of ``compound + plate`` by cell type."""
    corrected = values.copy()
    for rows in _rows_by_label(cell_type):
        compounds = pd.get_dummies(compound.to_numpy()[rows]).to_numpy(float)
        plates = pd.get_dummies(plate.to_numpy()[rows]).to_numpy(float)
        deviations = plates[:, :-1] - plates[:, -1:]  # plate effects that sum to zero
        # Least squares over all wells: a shift read off a plate's few vehicle wells has an error
        # that all wells of the plate would then share, and be told apart by. Plates are linked by
        # the compounds they have in common.
        effects = np.linalg.lstsq(np.hstack([compounds, deviations]), values[rows], rcond=None)[0]
        corrected[rows] -= deviations @ effects[compounds.shape[1] :]
    return corrected


def strength(
    values: np.ndarray, cell_type: pd.Series, compound: pd.Series, vehicle: str
) -> pd.Series:
    """How far each compound lies from the vehicle of the same cell type, strongest first.

    The root mean square over the most variable genes of the mean difference in ``values`` (samples,
    genes).
    """
    chosen = values[:, _variable_genes(values)]
    treated = (compound != vehicle).to_numpy()
    distances: dict[str, list[float]] = {}
    for rows in _rows_by_label(cell_type):
        reference = rows[~treated[rows]]
        if not len(reference):
            continue
        for within in _rows_by_label(compound.iloc[rows]):
            group = rows[within]
            difference = chosen[group].mean(axis=0) - chosen[reference].mean(axis=0)
            distance = float(np.sqrt((difference**2).mean()))
            distances.setdefault(str(compound.iloc[group[0]]), []).append(distance)
    distances.pop(vehicle, None)
    mean = {name: np.mean(found) for name, found in distances.items()}
    return pd.Series(mean, dtype=float).sort_values(ascending=False)


def principal_components(values: np.ndarray, *, seed: int = 0, components: int = 30) -> np.ndarray:
    """Scores (samples, components) of ``values`` (samples, genes) on its most variable genes."""
    from scanpy.pp import pca

    chosen = values[:, _variable_genes(values)].astype(np.float32)
    return pca(
        chosen, n_comps=min(components, *(size - 1 for size in chosen.shape)), random_state=seed
    )


def map_samples(values: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """PC1, PC2, UMAP1 and UMAP2 (samples, 4) of ``values`` (samples, genes)."""
    import scanpy as sc
    from anndata import AnnData

    data = AnnData(obsm={"pca": principal_components(values, seed=seed)})
    with warnings.catch_warnings():
        # umap-learn says at every call that a fixed seed means one thread.
        warnings.simplefilter("ignore")
        sc.pp.neighbors(
            data, n_neighbors=min(15, len(values) - 1), use_rep="pca", random_state=seed
        )
        sc.tl.umap(data, random_state=seed)
    coordinates = np.hstack([data.obsm["pca"][:, :2], data.obsm["X_umap"]])
    return pd.DataFrame(coordinates, columns=["PC1", "PC2", "UMAP1", "UMAP2"])


def _rows_by_label(labels: pd.Series) -> list[np.ndarray]:
    """Row numbers of each label, labels in sorted order."""
    codes, names = pd.factorize(labels.to_numpy(), sort=True)
    return [np.flatnonzero(codes == code) for code in range(len(names))]


def _variable_genes(values: np.ndarray, n: int = 2000) -> np.ndarray:
    """The columns of ``values`` (samples, genes) that vary most, in their own order."""
    return np.sort(np.argsort(-values.var(axis=0), kind="stable")[:n])
