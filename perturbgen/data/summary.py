"""The page that shows a counts file: how deep, how sparse, where on the plates, and what separates its pseudobulks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.data import embedding, pictures
from perturbgen.data.overview import overview
from perturbgen.data.pseudobulk import pseudobulk
from perturbgen.errors import shorten
from perturbgen.page import Page

if TYPE_CHECKING:
    from anndata import AnnData

SAMPLE = ("plate", "well", "donor", "cell_type", "compound")  # what tells pseudobulk samples apart, where known


def summary_page(adata: AnnData, *, title: str, seed: int = 0) -> Page:
    """Depth, zeros, plate layout, and maps of pseudobulk before and after plate effects are removed."""
    obs = adata.obs
    total = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel(), obs.index)
    page = Page(title, f"{adata.n_obs:,} cells × {adata.n_vars:,} genes, {overview(adata)['zeros']:.1%} zeros")
    add_cells(page, obs, total)
    add_genes(page, adata)
    if {"plate", "well"} <= set(obs):
        add_plates(page, obs, total)
    add_maps(page, adata, seed)
    return page


def add_cells(page: Page, obs: pd.DataFrame, total: pd.Series) -> None:
    """How many cells of each type there are and how deeply they were sequenced."""
    page.section("Cells and depth")
    page.figure(pictures.cells_figure(obs), "Cells of each type.")
    page.figure(
        pictures.depth_figure(total, obs["cell_type"]),
        "Total counts of a cell, by cell type; cell numbers in brackets.",
    )
    empty = int((total == 0).sum())
    if empty:
        page.text(f"{empty:,} cells have no counts at all and are not drawn.")


def add_genes(page: Page, adata: AnnData) -> None:
    """How sparse the genes are for their mean."""
    mean = pd.Series(np.asarray(adata.X.mean(axis=0)).ravel(), adata.var_names)
    zeros = pd.Series(1 - np.asarray((adata.X != 0).sum(axis=0)).ravel() / adata.n_obs, adata.var_names)
    page.section("Zeros")
    caption = "Each point is a gene. Above the dashed line there are more zeros than in Poisson counts of equal depth."
    page.figure(pictures.zeros_figure(mean, zeros), caption)
    silent = int((mean == 0).sum())
    if silent:
        page.text(f"{silent:,} of {adata.n_vars:,} genes have no count in any cell and are not drawn.")


def add_plates(page: Page, obs: pd.DataFrame, total: pd.Series) -> None:
    """Where on the plates the cells are; for wells sequenced in bulk, where the counts are."""
    page.section("Plates")
    wells = obs["well"].dropna().astype(str)
    odd = wells[~wells.str.fullmatch(pictures.WELL)].unique()
    if len(odd):
        page.text(f"No picture: a well has to be named like A1 or H12, and here there are {shorten(odd)}.")
        return
    if obs.duplicated(["plate", "well"]).any():
        caption = "Cells in each well; empty squares have none. Toxic compounds are the dark wells."
        page.figure(pictures.plates_figure(obs, pd.Series(1, obs.index), unit="cells"), caption)
    else:
        caption = "Counts of each well: every well is one profile here. Toxic compounds are the dark wells."
        page.figure(pictures.plates_figure(obs, total, unit="counts"), caption)


def add_maps(page: Page, adata: AnnData, seed: int) -> None:
    """PCA and UMAP of pseudobulk samples, coloured by what may separate them."""
    values, obs = embedding.profiles(pseudobulk(adata, by=[name for name in SAMPLE if name in adata.obs]))
    page.section("Pseudobulk maps")
    if min(values.shape) < 4:
        what = f"{len(obs)} pseudobulk samples of {embedding.MIN_CELLS} or more cells and {values.shape[1]} genes"
        page.text(f"{what} are too few for a map.")
        return
    before, after = embedding.embed(values, seed=seed), None
    if "plate" in obs and obs["plate"].nunique() > 1:
        corrected = embedding.remove_plate_effects(values, obs["cell_type"], obs["plate"], obs["compound"])
        after = embedding.embed(corrected, seed=seed)
    colours = colourings(obs, values, adata.uns.get("vehicle"))
    labels = obs[[name for name in SAMPLE if name in obs]]
    for method, axes in {"Principal components": ("PC1", "PC2"), "UMAP": ("UMAP1", "UMAP2")}.items():
        page.figure(
            pictures.maps_figure(before, after, labels, colours, axes), f"{method} of {len(obs):,} samples. {CAPTION}"
        )


CAPTION = (
    "A sample is the sum of a well's cells of one type. Plate effects are those of the fit compound + plate "
    "in each cell type. Named compounds are those farthest from the vehicle. Hover for a sample's labels."
)


def colourings(obs: pd.DataFrame, values: np.ndarray, vehicle: str | None) -> dict[str, pd.Series]:
    """What the maps are coloured by: cell type, plate (or donor), and the compounds that move cells most."""
    batch = next((name for name in ("plate", "donor") if name in obs), None)
    columns = {"cell type": pictures.named(obs["cell_type"])}
    columns |= {batch: pictures.named(obs[batch])} if batch else {}
    if vehicle is None or vehicle not in set(obs["compound"]):
        return columns | {"compound": pictures.named(obs["compound"])}
    strongest = embedding.strength(values, obs["cell_type"], obs["compound"], vehicle).index.tolist()
    return columns | {"compound": pictures.named(obs["compound"], [vehicle, *strongest])}
