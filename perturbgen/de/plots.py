"""A page of plots of a DE table: voom's trend, and volcano and MA plots of the strongest conditions."""

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
    """A page about a table: what was tested, voom's trends, and plots of the conditions with most genes below level."""
    hits = (table.adj_p < level).sum(axis=1).sort_values(ascending=False, kind="stable")
    page = Page(
        "Differential expression",
        f"{len(hits)} conditions, {len(table.genes)} genes; {_describe(table)}",
    )
    page.section(
        "Conditions", f"Genes with adjusted p < {level:g}; the twenty conditions with most of them."
    )
    page.table([summary(table, label, int(n)) for label, n in hits.head(20).items()])
    page.section(
        "Mean and variance",
        "Each point is a gene; the line is the trend from which voom takes its weights.",
    )
    caption = "Higher counts vary less; a trend that falls towards the left means sparse genes."
    page.figure(_trend_plots(table.mean_variance), caption)
    caption = "Left: effect against evidence. Right: effect against expression, where a healthy cloud is centred on zero."
    page.section("Strongest conditions")
    for label in hits.head(conditions).index:
        page.figure(_condition_plots(table, label, level), caption)
    return page


def _describe(table: DETable) -> str:
    """The method in a few words."""
    info = table.info
    words = [f"design {info.get('design', '?')}", f"control {info.get('control', '?')}"]
    words += [f"{info.get('contrasts', '?')} contrasts"]
    return ", ".join(words + [word for word in ("robust", "trend", "joint") if info.get(word)])


def summary(table: DETable, label: Any, hits: int) -> dict[str, Any]:
    """A row of the table of conditions."""
    row = table.conditions.loc[label]
    return {
        "condition": _show(label),
        "samples": int(row["n_samples"]),
        "controls": int(row["n_control"]),
        "genes": hits,
        "up": int(((table.adj_p.loc[label] < 0.05) & (table.logfc.loc[label] > 0)).sum()),
        "largest |log2 FC|": float(table.logfc.loc[label].abs().max()),
    }


def _show(label: Any) -> str:
    """A condition's label as text."""
    return " | ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _thin(frame: pd.DataFrame) -> pd.DataFrame:
    """All significant genes and evenly chosen others."""
    rest = frame[~frame["significant"]]
    step = max(1, len(rest) // _POINTS)
    return pd.concat([rest.iloc[::step], frame[frame["significant"]]])


def _gene_frame(table: DETable, label: Any, level: float) -> pd.DataFrame:
    """One condition, genes in rows."""
    names = ("logfc", "ave_expr", "log10_p", "adj_p")
    frame = pd.DataFrame({name: getattr(table, name).loc[label] for name in names}).dropna()
    return _thin(frame.assign(significant=frame["adj_p"] < level))


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
    """A condition's volcano (log fold change against -log10 p) and MA plot (expression against log fold change)."""
    from plotly.subplots import make_subplots

    frame = _gene_frame(table, label, level)
    figure = make_subplots(1, 2, horizontal_spacing=0.09)
    for column, (x, y) in enumerate(
        ((frame["logfc"], -frame["log10_p"]), (frame["ave_expr"], frame["logfc"])), 1
    ):
        for significant, name, colour in (
            (False, "other genes", "#8a949e"),
            (True, f"adjusted p < {level:g}", PALETTE[1]),
        ):
            rows = frame["significant"] == significant
            figure.add_scattergl(
                x=x[rows],
                y=y[rows],
                text=frame.index[rows],
                mode="markers",
                name=name,
                row=1,
                col=column,
                legendgroup=name,
                showlegend=column == 1,
                marker={"size": 4, "color": colour, "opacity": 0.7 if significant else 0.35},
            )
    figure.update_xaxes(title="log2 fold change", col=1).update_xaxes(
        title="average log2 CPM", col=2
    )
    figure.update_yaxes(title="−log10 p", col=1).update_yaxes(title="log2 fold change", col=2)
    return figure.update_layout(title=_show(label), height=400)
