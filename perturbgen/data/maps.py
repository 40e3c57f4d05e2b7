"""Pseudobulk profiles in two dimensions, before and after plate effects are taken out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE
from perturbgen.core.stats import log_cpm
from perturbgen.data.aggregate import pseudobulk

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from anndata import AnnData

    from perturbgen.core.page import Page

_MIN_CELLS = 5  # a profile of fewer cells is mostly counting noise
# So is a gene of fewer counts a sample: its log CPM says how deep the sample is.
_MIN_COUNT = 1.0
_MIN_GENES = 50  # unless hardly any gene has more
GREY = "#c4c9cf"
_MAX_NAMED = 8  # more colours than this cannot be told apart
_SAMPLE = ("plate", "well", "donor", "cell_type", "compound")  # what tells pseudobulk samples apart
_MAP_CAPTION = (
    "A sample is the sum of a well's cells of one type. Plate effects are those of the fit "
    "compound + plate in each cell type. Named compounds are those farthest from the vehicle. "
    "Hover for a sample's labels."
)


def add_maps(page: Page, adata: AnnData, seed: int, tick: Callable[[], None]) -> None:
    """PCA and UMAP of pseudobulk samples, coloured by what may separate them.

    ``tick`` is called after the sums, and after each of the two pairs of maps.
    """
    bulk = pseudobulk(adata, by=[name for name in _SAMPLE if name in adata.obs])
    values, obs = _log_profiles(bulk)
    tick()
    page.section("Pseudobulk maps")
    if min(values.shape) < 4:
        few = f"{len(obs)} pseudobulk samples of {_MIN_CELLS} or more cells"
        page.text(f"{few} and {values.shape[1]} genes are too few for a map.")
        return
    maps = {"before": _map_samples(values, seed=seed)}
    tick()
    if "plate" in obs and obs["plate"].nunique() > 1:
        corrected = _remove_plate_effects(values, obs["cell_type"], obs["plate"], obs["compound"])
        maps["after"] = _map_samples(corrected, seed=seed)
    tick()

    colours = {"cell type": named(obs["cell_type"])}
    batch = next((name for name in ("plate", "donor") if name in obs), None)
    if batch is not None:
        colours[batch] = named(obs[batch])
    # There are more compounds than colours: the vehicle and those farthest from it are named.
    vehicle, first = adata.uns.get("vehicle"), []
    if vehicle is not None and vehicle in set(obs["compound"]):
        strongest = _strength(values, obs["cell_type"], obs["compound"], vehicle)
        first = [vehicle, *strongest.index]
    colours["compound"] = named(obs["compound"], first)

    labels = obs[[name for name in _SAMPLE if name in obs]]
    for method, axes in ("Principal components", ("PC1", "PC2")), ("UMAP", ("UMAP1", "UMAP2")):
        caption = f"{method} of {len(obs):,} samples. {_MAP_CAPTION}"
        page.figure(_maps_figure(maps, labels, colours, axes), caption)


def pseudobulk_components(bulk: AnnData) -> tuple[np.ndarray, pd.DataFrame]:
    """Component scores (samples, components), and obs, of the samples with enough cells."""
    values, obs = _log_profiles(bulk)
    return _principal_components(values), obs


def _log_profiles(bulk: AnnData) -> tuple[np.ndarray, pd.DataFrame]:
    """log CPM (samples, genes) and obs, of the samples and genes with enough cells and counts."""
    dense = bulk.X.todense() if hasattr(bulk.X, "todense") else bulk.X
    counts = np.asarray(dense, dtype=np.float64)
    seen = counts.mean(axis=0) >= _MIN_COUNT
    counts = counts[:, seen] if seen.sum() >= _MIN_GENES else counts
    enough = min(_MIN_CELLS, bulk.obs["n_cells"].max())
    keep = (bulk.obs["n_cells"].to_numpy() >= enough) & (counts.sum(axis=1) > 0)
    counts = counts[keep]
    return log_cpm(counts, counts.sum(axis=1)), bulk.obs[keep].reset_index(drop=True)


def _remove_plate_effects(
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


def _strength(
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


def _principal_components(values: np.ndarray, *, seed: int = 0, components: int = 30) -> np.ndarray:
    """Scores (samples, components) of ``values`` (samples, genes) on its most variable genes."""
    from scanpy.pp import pca

    chosen = values[:, _variable_genes(values)].astype(np.float32)
    possible = min(components, *(size - 1 for size in chosen.shape))
    return pca(chosen, n_comps=possible, random_state=seed)


def _map_samples(values: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """PC1, PC2, UMAP1 and UMAP2 (samples, 4) of ``values`` (samples, genes)."""
    import scanpy as sc
    from anndata import AnnData

    data = AnnData(obsm={"pca": _principal_components(values, seed=seed)})
    with warnings.catch_warnings():
        # umap-learn says at every call that a fixed seed means one thread.
        warnings.simplefilter("ignore")
        near = min(15, len(values) - 1)
        sc.pp.neighbors(data, n_neighbors=near, use_rep="pca", random_state=seed)
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


def _maps_figure(
    maps: dict[str, pd.DataFrame],
    labels: pd.DataFrame,
    colours: dict[str, pd.Series],
    axes: tuple[str, str],
) -> go.Figure:
    """Maps of pseudobulk samples: a column of panels for each colouring, a row for each map."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        len(maps),
        len(colours),
        column_titles=list(colours),
        horizontal_spacing=0.05,
        vertical_spacing=0.05,
        row_titles=[f"{version} plate removal" for version in maps] if len(maps) > 1 else None,
    )
    hover = labels.astype(str).agg(" · ".join, axis=1)
    for i, points in enumerate(maps.values()):
        for j, (title, colour) in enumerate(colours.items()):
            for name, tint in tints(colour).items():
                rows = (colour == name).to_numpy()
                figure.add_scattergl(
                    x=points.loc[rows, axes[0]],
                    y=points.loc[rows, axes[1]],
                    text=hover[rows],
                    hoverinfo="text",
                    mode="markers",
                    name=name,
                    legendgroup=f"{title}{name}",
                    showlegend=i == 0,
                    legend=f"legend{j + 1}",
                    marker={"size": 5, "color": tint, "opacity": 0.75 if tint != GREY else 0.35},
                    row=i + 1,
                    col=j + 1,
                )
    legend = {"y": -0.04, "yanchor": "top", "font": {"size": 11}, "itemsizing": "constant"}
    for j in range(len(colours)):
        figure.update_layout({f"legend{j + 1}": {"x": j / len(colours) + 0.01, **legend}})
    figure.update_xaxes(showticklabels=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, zeroline=False)
    return figure.update_layout(height=430 * len(maps) + 190)


def named(values: pd.Series, first: list[str] | None = None, most: int = _MAX_NAMED) -> pd.Series:
    """The values as text, all but ``first`` and then the most frequent ones called ``other``."""
    text = values.astype(str)
    keep = list(dict.fromkeys([*(first or []), *text.value_counts().index]))[:most]
    return text.where(text.isin(keep), "other")


def tints(colour: pd.Series) -> dict[str, str]:
    """A colour for each value; ``other`` is grey and drawn first."""

    def by_number(name: str) -> list[str | float]:
        # 3 uM comes before 10 uM.
        parts = re.split(r"(\d+(?:\.\d+)?)", name)
        return [float(part) if i % 2 else part for i, part in enumerate(parts)]

    names = sorted((name for name in colour.unique() if name != "other"), key=by_number)
    grey = {"other": GREY} if (colour == "other").any() else {}
    return grey | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
