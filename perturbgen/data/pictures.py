"""Figures of a counts matrix: depth, zeros, plates, pseudobulk maps. Each is a function of tables."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from perturbgen.page import PALETTE

WELL = r"([A-Z]+)0*(\d+)"  # row and column
GREY = "#c4c9cf"
MAX_NAMED = 8  # more colours than this cannot be told apart


def depth_figure(total: pd.Series, cell_type: pd.Series) -> go.Figure:
    """Distribution of counts per cell, a line for each cell type; the x axis is logarithmic."""
    logs = np.log10(total[total > 0])
    edges = np.linspace(logs.min() - 0.05, logs.max() + 0.05, 61)
    figure = go.Figure()
    for name, values in logs.groupby(cell_type, observed=True):
        share, _ = np.histogram(values, bins=edges)
        x = 10 ** ((edges[1:] + edges[:-1]) / 2)
        figure.add_scatter(x=x, y=share / share.sum(), mode="lines", name=f"{name} ({len(values):,})")
    figure.update_xaxes(title="counts per cell", type="log", dtick="D2")
    return figure.update_yaxes(title="share of cells", rangemode="tozero").update_layout(height=380)


def zeros_figure(mean: pd.Series, zeros: pd.Series, *, most: int = 4000) -> go.Figure:
    """Share of cells without a count against the mean count of each gene, with what Poisson counts would give."""
    shown = mean[mean > 0].sort_values()
    shown = shown.iloc[np.linspace(0, len(shown) - 1, min(most, len(shown))).astype(int)]
    grid = np.geomspace(shown.iloc[0], shown.iloc[-1], 200)
    figure = go.Figure()
    points = {"mode": "markers", "name": "genes", "marker": {"size": 4, "opacity": 0.5}}
    figure.add_scattergl(x=shown, y=zeros[shown.index], text=shown.index, **points)
    figure.add_scatter(x=grid, y=np.exp(-grid), mode="lines", name="Poisson, equal depth", line={"dash": "dash"})
    figure.update_xaxes(title="mean count per cell", type="log", dtick="D2")
    return figure.update_yaxes(title="share of cells with zero", range=[-0.02, 1.02]).update_layout(height=380)


def plates_figure(obs: pd.DataFrame, values: pd.Series, *, unit: str) -> go.Figure:
    """The sum of ``values`` (aligned to obs) in each well, a panel for each plate, as the plates lie on the bench."""
    groups = obs.assign(value=values).groupby(["plate", "well"], observed=True)
    wells = groups.agg(
        value=("value", "sum"), compound=("compound", lambda names: ", ".join(sorted(map(str, set(names)))))
    )
    wells[["row", "column"]] = wells.index.get_level_values("well").astype(str).str.extract(f"^{WELL}$").to_numpy()
    plates = list(wells.index.unique("plate"))
    rows = sorted(wells["row"].unique(), key=lambda name: (len(name), name))
    columns = list(range(1, wells["column"].astype(int).max() + 1))
    across = min(3, len(plates))
    figure = make_subplots(
        -(-len(plates) // across), across, subplot_titles=[str(p) for p in plates], vertical_spacing=0.13
    )
    for i, plate in enumerate(plates):
        here = wells.loc[plate].assign(column=lambda t: t["column"].astype(int))
        grid = here.pivot_table(index="row", columns="column", values="value").reindex(index=rows, columns=columns)
        names = (
            here.pivot(index="row", columns="column", values="compound")
            .reindex(index=rows, columns=columns)
            .astype(object)
        )
        heat = go.Heatmap(
            z=grid, x=columns, y=rows, text=names.fillna("empty"), coloraxis="coloraxis", xgap=1, ygap=1,
            hovertemplate="%{y}%{x}: %{z:,} " + unit + "<br>%{text}<extra>" + str(plate) + "</extra>",
        )  # fmt: skip
        figure.add_trace(heat, row=i // across + 1, col=i % across + 1)
    figure.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(showgrid=False, dtick=2)
    scale = {"colorscale": "Viridis", "colorbar": {"title": unit}, "cmin": 0}
    return figure.update_layout(coloraxis=scale, height=60 + 250 * -(-len(plates) // across))


def cells_figure(obs: pd.DataFrame) -> go.Figure:
    """Number of cells of each cell type."""
    count = obs["cell_type"].value_counts().sort_values()
    share = [f"{value:,} ({value / len(obs):.1%})" for value in count]
    figure = go.Figure(go.Bar(x=count, y=count.index.astype(str), orientation="h", text=share, textposition="auto"))
    return figure.update_xaxes(title="cells").update_layout(height=110 + 32 * len(count))


def maps_figure(
    before: pd.DataFrame,
    after: pd.DataFrame | None,
    obs: pd.DataFrame,
    colours: dict[str, pd.Series],
    axes: tuple[str, str],
) -> go.Figure:
    """Maps of pseudobulk samples: a column of panels for each colouring, a row for before and after plate removal."""
    versions = {"before": before} if after is None else {"before": before, "after": after}
    figure = make_subplots(
        len(versions), len(colours), column_titles=list(colours), horizontal_spacing=0.05, vertical_spacing=0.05,
        row_titles=[f"{version} plate removal" for version in versions] if after is not None else None,
    )  # fmt: skip
    hover = obs.astype(str).agg(" · ".join, axis=1)
    for i, points in enumerate(versions.values()):
        for j, (title, colour) in enumerate(colours.items()):
            for name, tint in tints(colour).items():
                rows = (colour == name).to_numpy()
                figure.add_scattergl(
                    x=points.loc[rows, axes[0]], y=points.loc[rows, axes[1]], text=hover[rows], hoverinfo="text",
                    mode="markers", name=name, legendgroup=f"{title}{name}", showlegend=i == 0, legend=f"legend{j + 1}",
                    marker={"size": 5, "color": tint, "opacity": 0.75 if tint != GREY else 0.35}, row=i + 1, col=j + 1,
                )  # fmt: skip
    for j in range(len(colours)):
        place = {
            "x": j / len(colours) + 0.01,
            "y": -0.04,
            "yanchor": "top",
            "font": {"size": 11},
            "itemsizing": "constant",
        }
        figure.update_layout({f"legend{j + 1}": place})
    figure.update_xaxes(showticklabels=False, zeroline=False).update_yaxes(showticklabels=False, zeroline=False)
    return figure.update_layout(height=430 * len(versions) + 190)


def tints(colour: pd.Series) -> dict[str, str]:
    """A colour for each value; ``other`` is grey and drawn first."""
    names = sorted((name for name in colour.unique() if name != "other"), key=by_number)
    grey = {"other": GREY} if (colour == "other").any() else {}
    return grey | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def by_number(name: str) -> list[str | float]:
    """A key that sorts ``3 uM`` before ``10 uM``."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))]


def named(values: pd.Series, first: list[str] | None = None, most: int = MAX_NAMED) -> pd.Series:
    """The values as text, all but ``first`` and then the most frequent ones called ``other``."""
    text = values.astype(str)
    keep = list(dict.fromkeys([*(first or []), *text.value_counts().index]))[:most]
    return text.where(text.isin(keep), "other")
