"""A page of a DE table: voom's trend, volcano and MA plots of the strongest conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE, Page
from perturbgen.de.table import DETable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from perturbgen.de.voom import MeanVariance

_POINTS = 4000  # of the genes far from significance, a sample is enough


def de_page(table: DETable, *, conditions: int = 3, level: float = 0.05) -> Page:
    """What was tested, voom's trends, and plots of the conditions with most genes below level."""
    info = table.info
    words = [f"design {info.get('design', '?')}", f"control {info.get('control', '?')}"]
    words.append(f"{info.get('contrasts', '?')} contrasts")
    words += [word for word in ("robust", "trend", "joint") if info.get(word)]
    summary = f"{len(table.conditions)} conditions, {len(table.genes)} genes; {', '.join(words)}"
    page = Page("Differential expression", summary)
    caption = f"Genes with adjusted p < {level:g}; the twenty conditions with most of them."
    page.section("Conditions", caption)
    page.table(table.strongest(20, level=level))
    caption = "Each point is a gene; the line is the trend from which voom takes its weights."
    page.section("Mean and variance", caption)
    caption = "Higher counts vary less; a trend that falls towards the left means sparse genes."
    page.figure(_trend_plots(table.mean_variance), caption)
    caption = (
        "Left: effect against evidence. "
        "Right: effect against expression, where a healthy cloud is centred on zero."
    )
    page.section("Strongest conditions")
    for label in table.hits(level).head(conditions).index:
        page.figure(_condition_plots(table, label, level), caption)
    return page


def _trend_plots(fits: Mapping[str, MeanVariance], across: int = 3) -> Figure:
    """voom's plot of each fit, in one figure: a browser draws only so many WebGL figures."""
    from plotly.subplots import make_subplots

    rows, columns = -(-len(fits) // across), min(across, len(fits))
    titles = [name or "all samples" for name in fits]
    figure = make_subplots(
        rows, columns, subplot_titles=titles, x_title="mean log2 count", y_title="√ residual SD"
    )
    for i, found in enumerate(fits.values()):
        at = {"row": i // across + 1, "col": i % across + 1, "showlegend": False}
        order = np.argsort(found.mean)[:: max(1, len(found.mean) // _POINTS)]
        genes = {"mode": "markers", "marker": {"size": 3, "opacity": 0.4, "color": PALETTE[0]}}
        figure.add_scattergl(x=found.mean[order], y=found.root_sd[order], **genes, **at)
        line = {"mode": "lines", "line": {"width": 3, "color": PALETTE[1]}}
        figure.add_scattergl(x=found.trend.x, y=found.trend.y, **line, **at)
    return figure.update_layout(height=110 + 250 * rows)


def _condition_plots(table: DETable, label: Any, level: float) -> Figure:
    """A condition's volcano (fold change, p) and MA plot (expression, fold change)."""
    from plotly.subplots import make_subplots

    names = ("logfc", "ave_expr", "log10_p", "adj_p")
    frame = pd.DataFrame({name: getattr(table, name).loc[label] for name in names}).dropna()
    significant = frame["adj_p"] < level
    others = frame[~significant]
    few = others.iloc[:: max(1, len(others) // _POINTS)]
    shown = (
        ("other genes", few, "#8a949e", 0.35),
        (f"adjusted p < {level:g}", frame[significant], PALETTE[1], 0.7),
    )
    figure = make_subplots(1, 2, horizontal_spacing=0.09)
    for column in (1, 2):
        for name, genes, colour, opacity in shown:
            figure.add_scattergl(
                x=genes["logfc"] if column == 1 else genes["ave_expr"],
                y=-genes["log10_p"] if column == 1 else genes["logfc"],
                text=genes.index,
                mode="markers",
                marker={"size": 4, "color": colour, "opacity": opacity},
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(title="log2 fold change", col=1)
    figure.update_xaxes(title="average log2 CPM", col=2)
    figure.update_yaxes(title="−log10 p", col=1).update_yaxes(title="log2 fold change", col=2)
    return figure.update_layout(title=table.show_label(label), height=400)
