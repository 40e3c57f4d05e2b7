"""How well the hidden cells' table was predicted, by cell type and gene by gene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from perturbgen.core.page import PALETTE, Page


def draw_page(
    rows: list[dict[str, Any]], real: pd.DataFrame, predicted: Mapping[tuple[str, str], pd.Series]
) -> Page:
    """The table of ``rows``, and ``predicted`` t of each (cell type, model) against real t."""
    page = Page(
        "Kang: stimulated cells of a type that was only seen unstimulated",
        f"{len(real.columns):,} genes",
    )
    page.section("Agreement with the real table")
    page.figure(
        bars(rows),
        "Spearman's correlation with the real t; models: mean over seeds, error bars: their SD.",
    )
    page.table(rows)
    page.section("Gene by gene")
    page.figure(
        scatters(real, predicted),
        "Predicted (seed 0, plug-in t) against real t, a row for each model. On the dashed line "
        "they agree.",
    )
    return page


def bars(rows: list[dict[str, Any]]) -> go.Figure:
    """Spearman's correlation by cell type and prediction."""
    table = pd.DataFrame(rows)
    figure = go.Figure()
    for name, part in table[table["Spearman"] > 0].groupby("prediction", sort=False):
        figure.add_bar(
            name=str(name),
            x=part["cell type"],
            y=part["Spearman"],
            error_y={"array": part["SD"].astype(float).fillna(0)},
        )
    legend = {"orientation": "h", "y": -0.15}
    return figure.update_layout(barmode="group", yaxis_title="Spearman", height=480, legend=legend)


def scatters(real: pd.DataFrame, predicted: Mapping[tuple[str, str], pd.Series]) -> go.Figure:
    """Predicted against real t for each model (rows) and cell type (columns)."""
    kinds, models = (list(dict.fromkeys(key[i] for key in predicted)) for i in (0, 1))
    titles = [f"{kind}, {model}" for model in models for kind in kinds]
    figure = make_subplots(len(models), len(kinds), subplot_titles=titles, vertical_spacing=0.12)
    for (kind, model), t in predicted.items():
        place = {"row": models.index(model) + 1, "col": kinds.index(kind) + 1}
        x = real[real.index.get_level_values("cell_type") == kind].iloc[0]
        y = t.reindex(x.index)
        marker = {"size": 4, "opacity": 0.5, "color": PALETTE[place["row"] - 1]}
        figure.add_scattergl(x=x, y=y, text=list(x.index), mode="markers", marker=marker, **place)
        reach = [min(x.min(), y.min()), max(x.max(), y.max())]
        figure.add_scatter(
            x=reach, y=reach, mode="lines", line={"dash": "dash", "color": "#888"}, **place
        )
    figure.update_xaxes(title_text="real t", row=len(models)).update_yaxes(
        title_text="predicted t", col=1
    )
    figure.update_annotations(font_size=11)
    return figure.update_layout(showlegend=False, height=330 * len(models))
