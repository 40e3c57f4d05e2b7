"""Figures of a counts matrix: depth, zeros, plates, pseudobulk maps. Each is a function of tables.

A one-screen summary of counts: size, sparsity, depth, cells by cell type and compound.

The page that shows a counts file: how deep, how sparse, where on the plates, and what separates its pseudobulks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from perturbgen.core.errors import shorten
from perturbgen.core.page import PALETTE, Page
from perturbgen.data.aggregate import (
    MIN_CELLS,
    embed,
    profiles,
    pseudobulk,
    remove_plate_effects,
    strength,
)
from perturbgen.data.counts import is_sparse
from perturbgen.data.schema import depth

if TYPE_CHECKING:
    from anndata import AnnData

_WELL = r"([A-Z]+)0*(\d+)"  # row and column
GREY = "#c4c9cf"
_MAX_NAMED = 8  # more colours than this cannot be told apart


def _depth_figure(total: pd.Series, cell_type: pd.Series) -> go.Figure:
    """Distribution of counts per cell, a line for each cell type; the x axis is logarithmic."""
    logs = np.log10(total[total > 0])
    edges = np.linspace(logs.min() - 0.05, logs.max() + 0.05, 61)
    figure = go.Figure()
    for name, values in logs.groupby(cell_type, observed=True):
        share, _ = np.histogram(values, bins=edges)
        x = 10 ** ((edges[1:] + edges[:-1]) / 2)
        figure.add_scatter(
            x=x, y=share / share.sum(), mode="lines", name=f"{name} ({len(values):,})"
        )
    figure.update_xaxes(title="counts per cell", type="log", dtick="D2")
    return figure.update_yaxes(title="share of cells", rangemode="tozero").update_layout(height=380)


def _zeros_figure(mean: pd.Series, zeros: pd.Series, *, most: int = 4000) -> go.Figure:
    """Share of cells without a count against the mean count of each gene, with what Poisson counts would give."""
    shown = mean[mean > 0].sort_values()
    shown = shown.iloc[np.linspace(0, len(shown) - 1, min(most, len(shown))).astype(int)]
    grid = np.geomspace(shown.iloc[0], shown.iloc[-1], 200)
    figure = go.Figure()
    points = {"mode": "markers", "name": "genes", "marker": {"size": 4, "opacity": 0.5}}
    figure.add_scattergl(x=shown, y=zeros[shown.index], text=shown.index, **points)
    figure.add_scatter(
        x=grid, y=np.exp(-grid), mode="lines", name="Poisson, equal depth", line={"dash": "dash"}
    )
    figure.update_xaxes(title="mean count per cell", type="log", dtick="D2")
    return figure.update_yaxes(title="share of cells with zero", range=[-0.02, 1.02]).update_layout(
        height=380
    )


def _plates_figure(obs: pd.DataFrame, values: pd.Series, *, unit: str) -> go.Figure:
    """The sum of ``values`` (aligned to obs) in each well, a panel for each plate, as the plates lie on the bench."""
    groups = obs.assign(value=values).groupby(["plate", "well"], observed=True)
    wells = groups.agg(
        value=("value", "sum"),
        compound=("compound", lambda names: ", ".join(sorted(map(str, set(names))))),
    )
    wells[["row", "column"]] = (
        wells.index.get_level_values("well").astype(str).str.extract(f"^{_WELL}$").to_numpy()
    )
    plates = list(wells.index.unique("plate"))
    rows = sorted(wells["row"].unique(), key=lambda name: (len(name), name))
    columns = list(range(1, wells["column"].astype(int).max() + 1))
    across = min(3, len(plates))
    figure = make_subplots(
        -(-len(plates) // across),
        across,
        subplot_titles=[str(p) for p in plates],
        vertical_spacing=0.13,
    )
    for i, plate in enumerate(plates):
        here = wells.loc[plate].assign(column=lambda t: t["column"].astype(int))
        grid = here.pivot_table(index="row", columns="column", values="value").reindex(
            index=rows, columns=columns
        )
        names = (
            here.pivot(index="row", columns="column", values="compound")
            .reindex(index=rows, columns=columns)
            .astype(object)
        )
        heat = go.Heatmap(
            z=grid,
            x=columns,
            y=rows,
            text=names.fillna("empty"),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hovertemplate="%{y}%{x}: %{z:,} "
            + unit
            + "<br>%{text}<extra>"
            + str(plate)
            + "</extra>",
        )
        figure.add_trace(heat, row=i // across + 1, col=i % across + 1)
    figure.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(showgrid=False, dtick=2)
    scale = {"colorscale": "Viridis", "colorbar": {"title": unit}, "cmin": 0}
    return figure.update_layout(coloraxis=scale, height=60 + 250 * -(-len(plates) // across))


def _cells_figure(obs: pd.DataFrame) -> go.Figure:
    """Number of cells of each cell type."""
    count = obs["cell_type"].value_counts().sort_values()
    share = [f"{value:,} ({value / len(obs):.1%})" for value in count]
    figure = go.Figure(
        go.Bar(x=count, y=count.index.astype(str), orientation="h", text=share, textposition="auto")
    )
    return figure.update_xaxes(title="cells").update_layout(height=110 + 32 * len(count))


def _maps_figure(
    before: pd.DataFrame,
    after: pd.DataFrame | None,
    obs: pd.DataFrame,
    colours: dict[str, pd.Series],
    axes: tuple[str, str],
) -> go.Figure:
    """Maps of pseudobulk samples: a column of panels for each colouring, a row for before and after plate removal."""
    versions = {"before": before} if after is None else {"before": before, "after": after}
    figure = make_subplots(
        len(versions),
        len(colours),
        column_titles=list(colours),
        horizontal_spacing=0.05,
        vertical_spacing=0.05,
        row_titles=[f"{version} plate removal" for version in versions]
        if after is not None
        else None,
    )
    hover = obs.astype(str).agg(" · ".join, axis=1)
    for i, points in enumerate(versions.values()):
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
    for j in range(len(colours)):
        place = {
            "x": j / len(colours) + 0.01,
            "y": -0.04,
            "yanchor": "top",
            "font": {"size": 11},
            "itemsizing": "constant",
        }
        figure.update_layout({f"legend{j + 1}": place})
    figure.update_xaxes(showticklabels=False, zeroline=False).update_yaxes(
        showticklabels=False, zeroline=False
    )
    return figure.update_layout(height=430 * len(versions) + 190)


def tints(colour: pd.Series) -> dict[str, str]:
    """A colour for each value; ``other`` is grey and drawn first."""
    names = sorted((name for name in colour.unique() if name != "other"), key=_by_number)
    grey = {"other": GREY} if (colour == "other").any() else {}
    return grey | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def _by_number(name: str) -> list[str | float]:
    """A key that sorts ``3 uM`` before ``10 uM``."""
    return [
        float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))
    ]


def named(values: pd.Series, first: list[str] | None = None, most: int = _MAX_NAMED) -> pd.Series:
    """The values as text, all but ``first`` and then the most frequent ones called ``other``."""
    text = values.astype(str)
    keep = list(dict.fromkeys([*(first or []), *text.value_counts().index]))[:most]
    return text.where(text.isin(keep), "other")


_QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}


def overview(adata: AnnData) -> dict[str, Any]:
    """Cells, genes, share of zeros, vehicle and how many values each of our columns holds."""
    stored = adata.X.count_nonzero() if is_sparse(adata.X) else np.count_nonzero(adata.X)
    levels = {
        c: adata.obs[c].nunique()
        for c in ("cell_type", "compound", "donor", "plate")
        if c in adata.obs
    }
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "zeros": 1 - float(stored) / max(adata.n_obs * adata.n_vars, 1),
        "vehicle": adata.uns.get("vehicle"),
        **{f"{name}s": int(count) for name, count in levels.items()},
    }


def depth_quantiles(adata: AnnData) -> list[dict[str, Any]]:
    """Quantiles of counts and of genes detected per cell."""
    genes = (adata.X != 0).sum(axis=1)
    measures = {"counts per cell": depth(adata), "genes per cell": np.asarray(genes).ravel()}
    return [
        {"per cell": name} | {label: _quantile(values, q) for label, q in _QUANTILES.items()}
        for name, values in measures.items()
    ]


def _quantile(values: np.ndarray, q: float) -> int | None:
    """A quantile as a whole number; None where there are no values, or one of them is no number."""
    usable = values.size > 0 and bool(np.isfinite(values).all())
    return round(float(np.quantile(values, q))) if usable else None


def cells_by_condition(adata: AnnData, *, top: int = 12) -> list[dict[str, Any]]:
    """Cells of each cell type (columns) for the compounds with most cells (rows); the rest is summed in a last row."""
    obs = adata.obs[["compound", "cell_type"]].astype(str)
    table = pd.crosstab(obs["compound"], obs["cell_type"])
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    rows = [
        {"compound": str(name)} | row
        for name, row in zip(table.index[:top], _records(table[:top]), strict=True)
    ]
    rest = table[top:]
    if len(rest):
        rows.append({"compound": f"({len(rest)} more)"} | _records(rest.sum().to_frame().T)[0])
    return rows


def _records(table: pd.DataFrame) -> list[dict[str, int]]:
    """Rows of a table of counts as dictionaries of plain integers."""
    return [{str(k): int(v) for k, v in row.items()} for row in table.to_dict("records")]


_SAMPLE = (
    "plate",
    "well",
    "donor",
    "cell_type",
    "compound",
)  # what tells pseudobulk samples apart, where known


def summary_page(adata: AnnData, *, title: str, seed: int = 0) -> Page:
    """Depth, zeros, plate layout, and maps of pseudobulk before and after plate effects are removed."""
    obs = adata.obs
    total = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel(), obs.index)
    page = Page(
        title,
        f"{adata.n_obs:,} cells × {adata.n_vars:,} genes, {overview(adata)['zeros']:.1%} zeros",
    )
    _add_cells(page, obs, total)
    _add_genes(page, adata)
    if {"plate", "well"} <= set(obs):
        _add_plates(page, obs, total)
    _add_maps(page, adata, seed)
    return page


def _add_cells(page: Page, obs: pd.DataFrame, total: pd.Series) -> None:
    """How many cells of each type there are and how deeply they were sequenced."""
    page.section("Cells and depth")
    page.figure(_cells_figure(obs), "Cells of each type.")
    page.figure(
        _depth_figure(total, obs["cell_type"]),
        "Total counts of a cell, by cell type; cell numbers in brackets.",
    )
    empty = int((total == 0).sum())
    if empty:
        page.text(f"{empty:,} cells have no counts at all and are not drawn.")


def _add_genes(page: Page, adata: AnnData) -> None:
    """How sparse the genes are for their mean."""
    mean = pd.Series(np.asarray(adata.X.mean(axis=0)).ravel(), adata.var_names)
    zeros = pd.Series(
        1 - np.asarray((adata.X != 0).sum(axis=0)).ravel() / adata.n_obs, adata.var_names
    )
    page.section("Zeros")
    caption = "Each point is a gene. Above the dashed line there are more zeros than in Poisson counts of equal depth."
    page.figure(_zeros_figure(mean, zeros), caption)
    silent = int((mean == 0).sum())
    if silent:
        page.text(
            f"{silent:,} of {adata.n_vars:,} genes have no count in any cell and are not drawn."
        )


def _add_plates(page: Page, obs: pd.DataFrame, total: pd.Series) -> None:
    """Where on the plates the cells are; for wells sequenced in bulk, where the counts are."""
    page.section("Plates")
    wells = obs["well"].dropna().astype(str)
    odd = wells[~wells.str.fullmatch(_WELL)].unique()
    if len(odd):
        page.text(
            f"No picture: a well has to be named like A1 or H12, and here there are {shorten(odd)}."
        )
        return
    if obs.duplicated(["plate", "well"]).any():
        caption = "Cells in each well; empty squares have none. Toxic compounds are the dark wells."
        page.figure(_plates_figure(obs, pd.Series(1, obs.index), unit="cells"), caption)
    else:
        caption = "Counts of each well: every well is one profile here. Toxic compounds are the dark wells."
        page.figure(_plates_figure(obs, total, unit="counts"), caption)


def _add_maps(page: Page, adata: AnnData, seed: int) -> None:
    """PCA and UMAP of pseudobulk samples, coloured by what may separate them."""
    values, obs = profiles(pseudobulk(adata, by=[name for name in _SAMPLE if name in adata.obs]))
    page.section("Pseudobulk maps")
    if min(values.shape) < 4:
        what = f"{len(obs)} pseudobulk samples of {MIN_CELLS} or more cells and {values.shape[1]} genes"
        page.text(f"{what} are too few for a map.")
        return
    before, after = embed(values, seed=seed), None
    if "plate" in obs and obs["plate"].nunique() > 1:
        corrected = remove_plate_effects(values, obs["cell_type"], obs["plate"], obs["compound"])
        after = embed(corrected, seed=seed)
    colours = _colourings(obs, values, adata.uns.get("vehicle"))
    labels = obs[[name for name in _SAMPLE if name in obs]]
    for method, axes in {
        "Principal components": ("PC1", "PC2"),
        "UMAP": ("UMAP1", "UMAP2"),
    }.items():
        page.figure(
            _maps_figure(before, after, labels, colours, axes),
            f"{method} of {len(obs):,} samples. {_CAPTION}",
        )


_CAPTION = (
    "A sample is the sum of a well's cells of one type. Plate effects are those of the fit compound + plate "
    "in each cell type. Named compounds are those farthest from the vehicle. Hover for a sample's labels."
)


def _colourings(obs: pd.DataFrame, values: np.ndarray, vehicle: str | None) -> dict[str, pd.Series]:
    """What the maps are coloured by: cell type, plate (or donor), and the compounds that move cells most."""
    batch = next((name for name in ("plate", "donor") if name in obs), None)
    columns = {"cell type": named(obs["cell_type"])}
    columns |= {batch: named(obs[batch])} if batch else {}
    if vehicle is None or vehicle not in set(obs["compound"]):
        return columns | {"compound": named(obs["compound"])}
    strongest = strength(values, obs["cell_type"], obs["compound"], vehicle).index.tolist()
    return columns | {"compound": named(obs["compound"], [vehicle, *strongest])}
