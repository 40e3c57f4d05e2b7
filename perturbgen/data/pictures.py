"""What a counts file looks like: its size and depth as tables, and a page of figures.

The page shows how deep the cells are, how sparse the genes, where on the plates the cells lie, and
what separates their pseudobulks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import sparse

from perturbgen.core.console import progress
from perturbgen.core.errors import shorten
from perturbgen.core.page import Page
from perturbgen.data.maps import add_maps
from perturbgen.data.schema import depth

if TYPE_CHECKING:
    from anndata import AnnData

_WELL = r"([A-Z]+)0*(\d+)"  # row and column
_PARTS = 4  # of the page: the cells, the sums, maps before and after plate effects go
_QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Overview:
    """What is in a counts file, as tables."""

    adata: AnnData

    def summary(self) -> dict[str, Any]:
        """Cells, genes, share of zeros, vehicle and how many values each of our columns holds."""
        adata = self.adata
        is_sparse: bool = sparse.issparse(adata.X)
        stored = adata.X.count_nonzero() if is_sparse else np.count_nonzero(adata.X)
        counted = [n for n in ("cell_type", "compound", "donor", "plate") if n in adata.obs]
        return {
            "cells": adata.n_obs,
            "genes": adata.n_vars,
            "zeros": 1 - float(stored) / max(adata.n_obs * adata.n_vars, 1),
            "vehicle": adata.uns.get("vehicle"),
            **{f"{name}s": int(adata.obs[name].nunique()) for name in counted},
        }

    def depth(self) -> list[dict[str, Any]]:
        """Quantiles of counts and genes detected per cell; None where X is empty or not finite."""
        detected = np.asarray((self.adata.X != 0).sum(axis=1)).ravel()
        rows = []
        for name, values in (("counts", depth(self.adata)), ("genes", detected)):
            row: dict[str, Any] = {"per cell": f"{name} per cell", **dict.fromkeys(_QUANTILES)}
            if values.size and np.isfinite(values).all():
                row |= {
                    label: round(float(np.quantile(values, q))) for label, q in _QUANTILES.items()
                }
            rows.append(row)
        return rows

    def cells(self, *, top: int = 12) -> list[dict[str, Any]]:
        """Cells of each type (columns) of the compounds with most cells; the rest is a last row."""
        obs = self.adata.obs[["compound", "cell_type"]].astype(str)
        table = pd.crosstab(obs["compound"], obs["cell_type"])
        table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
        shown, rest = table[:top], table[top:]
        if len(rest):
            shown = pd.concat([shown, rest.sum().to_frame(f"({len(rest)} more)").T])
        return [
            {"compound": str(name), **{str(kind): int(cells) for kind, cells in row.items()}}
            for name, row in zip(shown.index, shown.to_dict("records"), strict=True)
        ]


def summary_page(adata: AnnData, *, title: str, seed: int = 0, maps: bool = True) -> Page:
    """Depth, zeros, plates, and maps of pseudobulk before and after plate effects are removed.

    Without ``maps``, which take most of the time, it is there at once.
    """
    zeros = Overview(adata).summary()["zeros"]
    page = Page(title, f"{adata.n_obs:,} cells × {adata.n_vars:,} genes, {zeros:.1%} zeros")
    with progress("drawing", _PARTS) as tick:
        _add_cells(page, adata)
        tick()
        if maps:
            add_maps(page, adata, seed, tick)
    return page


def _add_cells(page: Page, adata: AnnData) -> None:
    """What is seen of single cells and genes, and where on the plates the cells are."""
    obs = adata.obs
    total = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel(), obs.index)
    page.section("Cells and depth")
    page.figure(_cells_figure(obs), "Cells of each type.")
    caption = "Total counts of a cell, by cell type; cell numbers in brackets."
    page.figure(_depth_figure(total, obs["cell_type"]), caption)
    if empty := int((total == 0).sum()):
        page.text(f"{empty:,} cells have no counts at all and are not drawn.")

    page.section("Zeros")
    mean = pd.Series(np.asarray(adata.X.mean(axis=0)).ravel(), adata.var_names)
    detected = np.asarray((adata.X != 0).sum(axis=0)).ravel() / adata.n_obs
    line = "Above the dashed line there are more zeros than in Poisson counts of equal depth."
    figure = _zeros_figure(mean, pd.Series(1 - detected, adata.var_names))
    page.figure(figure, f"Each point is a gene. {line}")
    if silent := int((mean == 0).sum()):
        of_all = f"{silent:,} of {adata.n_vars:,} genes"
        page.text(f"{of_all} have no count in any cell and are not drawn.")

    if {"plate", "well"} <= set(obs):
        _add_plates(page, obs, total)


def _add_plates(page: Page, obs: pd.DataFrame, total: pd.Series) -> None:
    """Where on the plates the cells are; for wells sequenced in bulk, where the counts are."""
    wells = obs["well"].dropna().astype(str)
    odd = wells[~wells.str.fullmatch(_WELL)].unique()
    dark = "Toxic compounds are the dark wells."
    if len(odd):  # tubes and patients, which stand in place of wells, have no place on a plate
        found = f"here there are {shorten(odd)}."
        page.text(f"No picture of plates: a well has to be named like A1 or H12, and {found}")
        return
    page.section("Plates")
    if obs.duplicated(["plate", "well"]).any():
        figure = _plates_figure(obs, pd.Series(1, obs.index), unit="cells")
        page.figure(figure, f"Cells in each well; empty squares have none. {dark}")
    else:
        figure = _plates_figure(obs, total, unit="counts")
        page.figure(figure, f"Counts of each well, which is one profile here. {dark}")


def _cells_figure(obs: pd.DataFrame) -> go.Figure:
    """Number of cells of each cell type."""
    count = obs["cell_type"].value_counts().sort_values()
    share = [f"{value:,} ({value / len(obs):.1%})" for value in count]
    figure = go.Figure(
        go.Bar(x=count, y=count.index.astype(str), orientation="h", text=share, textposition="auto")
    )
    return figure.update_xaxes(title="cells").update_layout(height=110 + 32 * len(count))


def _depth_figure(total: pd.Series, cell_type: pd.Series) -> go.Figure:
    """Distribution of counts per cell, a line for each cell type; the x axis is logarithmic."""
    logs = np.log10(total[total > 0])
    edges = np.linspace(logs.min() - 0.05, logs.max() + 0.05, 61)
    middles = 10 ** ((edges[1:] + edges[:-1]) / 2)
    figure = go.Figure()
    for name, values in logs.groupby(cell_type, observed=True):
        share, _ = np.histogram(values, bins=edges)
        label = f"{name} ({len(values):,})"
        figure.add_scatter(x=middles, y=share / share.sum(), mode="lines", name=label)
    figure.update_xaxes(title="counts per cell", type="log", dtick="D2")
    return figure.update_yaxes(title="share of cells", rangemode="tozero").update_layout(height=380)


def _zeros_figure(mean: pd.Series, zeros: pd.Series, *, most: int = 4000) -> go.Figure:
    """Share of cells without a count against the mean of each gene, and what Poisson would give."""
    shown = mean[mean > 0].sort_values()
    # Evenly by rank: the same cloud of points, in a page that stays small.
    shown = shown.iloc[np.linspace(0, len(shown) - 1, min(most, len(shown))).astype(int)]
    grid = np.geomspace(shown.iloc[0], shown.iloc[-1], 200)
    figure = go.Figure()
    points = {"mode": "markers", "name": "genes", "marker": {"size": 4, "opacity": 0.5}}
    figure.add_scattergl(x=shown, y=zeros[shown.index], text=shown.index, **points)
    figure.add_scatter(
        x=grid, y=np.exp(-grid), mode="lines", name="Poisson, equal depth", line={"dash": "dash"}
    )
    figure.update_xaxes(title="mean count per cell", type="log", dtick="D2")
    figure.update_yaxes(title="share of cells with zero", range=[-0.02, 1.02])
    return figure.update_layout(height=380)


def _plates_figure(obs: pd.DataFrame, values: pd.Series, *, unit: str) -> go.Figure:
    """The sum of ``values`` (aligned to obs) in each well, a panel for each plate."""
    groups = obs.assign(value=values).groupby(["plate", "well"], observed=True)
    wells = groups.agg(
        value=("value", "sum"),
        compound=("compound", lambda names: ", ".join(sorted(map(str, set(names))))),
    )
    places = wells.index.get_level_values("well").astype(str).str.extract(f"^{_WELL}$").to_numpy()
    wells[["row", "column"]] = places
    wells["column"] = wells["column"].astype(int)
    plates = list(wells.index.unique("plate"))
    rows = sorted(wells["row"].unique(), key=lambda name: (len(name), name))  # AA comes after Z
    columns = list(range(1, wells["column"].max() + 1))
    across = min(3, len(plates))
    down = -(-len(plates) // across)
    titles = [str(plate) for plate in plates]
    height = 60 + 250 * down
    # room for a title and the columns' numbers; a share of the height would outgrow many rows
    gap = min(0.13, 60 / height)
    figure = make_subplots(down, across, subplot_titles=titles, vertical_spacing=gap)
    for i, plate in enumerate(plates):
        here = wells.loc[plate]
        grid = here.pivot_table(index="row", columns="column", values="value")
        names = here.pivot(index="row", columns="column", values="compound")
        heat = go.Heatmap(
            z=grid.reindex(index=rows, columns=columns),
            x=columns,
            y=rows,
            text=names.reindex(index=rows, columns=columns).astype(object).fillna("empty"),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hovertemplate=f"%{{y}}%{{x}}: %{{z:,}} {unit}<br>%{{text}}<extra>{plate}</extra>",
        )
        figure.add_trace(heat, row=i // across + 1, col=i % across + 1)
    figure.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(showgrid=False, dtick=2)
    scale = {"colorscale": "Viridis", "colorbar": {"title": unit}, "cmin": 0}
    return figure.update_layout(coloraxis=scale, height=height)
