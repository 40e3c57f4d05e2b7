"""A page of plots of a DE table: voom's trend, and volcano and MA plots of the strongest conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.de.table import DETable
from perturbgen.page import Page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from perturbgen.de.voom import MeanVariance

POINTS = 4000  # of the genes far from significance, a sample is enough


def de_page(table: DETable, *, conditions: int = 3, level: float = 0.05) -> Page:
    """A page about a table: what was tested, voom's trends, and plots of the conditions with most genes below level."""
    hits = (table.adj_p < level).sum(axis=1).sort_values(ascending=False, kind="stable")
    page = Page("Differential expression", f"{len(hits)} conditions, {len(table.genes)} genes; {describe(table)}")
    page.section("Conditions", f"Genes with adjusted p < {level:g}; the twenty conditions with most of them.")
    page.table([summary(table, label, int(n)) for label, n in hits.head(20).items()])
    page.section("Mean and variance", "Each point is a gene; the line is the trend from which voom takes its weights.")
    for name, found in table.mean_variance.items():
        page.figure(
            trend_plot(found, name), "Higher counts vary less; a trend that rises at the left means sparse genes."
        )
    page.section("Strongest conditions")
    for label in hits.head(conditions).index:
        page.figure(volcano(table, label, level), "Effect against evidence. Coloured: adjusted p below the level.")
        page.figure(ma_plot(table, label, level), "Effect against expression. A healthy cloud is centred on zero.")
    return page


def describe(table: DETable) -> str:
    """The method in a few words."""
    info = table.info
    words = [f"design {info.get('design', '?')}", f"control {info.get('control', '?')}"]
    words += [f"{info.get('contrasts', '?')} contrasts"]
    return ", ".join(words + [word for word in ("robust", "trend", "joint") if info.get(word)])


def summary(table: DETable, label: Any, hits: int) -> dict[str, Any]:
    """A row of the table of conditions."""
    row = table.conditions.loc[label]
    return {
        "condition": show(label),
        "samples": int(row["n_samples"]),
        "controls": int(row["n_control"]),
        "genes": hits,
        "up": int(((table.adj_p.loc[label] < 0.05) & (table.logfc.loc[label] > 0)).sum()),
        "largest |log2 FC|": float(table.logfc.loc[label].abs().max()),
    }


def show(label: Any) -> str:
    """A condition's label as text."""
    return " | ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """All significant genes and evenly chosen others."""
    rest = frame[~frame["significant"]]
    step = max(1, len(rest) // POINTS)
    return pd.concat([rest.iloc[::step], frame[frame["significant"]]])


def gene_frame(table: DETable, label: Any, level: float) -> pd.DataFrame:
    """One condition, genes in rows."""
    names = ("logfc", "ave_expr", "log10_p", "adj_p")
    frame = pd.DataFrame({name: getattr(table, name).loc[label] for name in names}).dropna()
    return thin(frame.assign(significant=frame["adj_p"] < level))


def trend_plot(found: MeanVariance, name: str) -> Figure:
    """voom's plot."""
    import plotly.graph_objects as go

    step = max(1, len(found.mean) // POINTS)
    order = np.argsort(found.mean)[::step]
    figure = go.Figure()
    figure.add_scattergl(
        x=found.mean[order], y=found.root_sd[order], mode="markers", marker={"size": 3, "opacity": 0.4}, name="gene"
    )
    figure.add_scatter(x=found.trend.x, y=found.trend.y, mode="lines", line={"width": 3}, name="trend")
    figure.update_layout(title=name or "all samples", xaxis_title="mean log2 count", yaxis_title="√ residual SD")
    return figure


def volcano(table: DETable, label: Any, level: float) -> Figure:
    """log fold change against -log10 p."""
    frame = gene_frame(table, label, level)
    figure = two_colours(frame, "logfc", -frame["log10_p"], level)
    figure.update_layout(title=show(label), xaxis_title="log2 fold change", yaxis_title="−log10 p")
    return figure


def ma_plot(table: DETable, label: Any, level: float) -> Figure:
    """Average expression against log fold change."""
    frame = gene_frame(table, label, level)
    figure = two_colours(frame, "ave_expr", frame["logfc"], level)
    figure.update_layout(title=show(label), xaxis_title="average log2 CPM", yaxis_title="log2 fold change")
    return figure


def two_colours(frame: pd.DataFrame, x: str, y: pd.Series, level: float) -> Figure:
    """A scatter of genes, significant ones apart."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for significant, name in ((False, "other genes"), (True, f"adjusted p < {level:g}")):
        rows = frame["significant"] == significant
        figure.add_scattergl(
            x=frame.loc[rows, x], y=y[rows], text=frame.index[rows], mode="markers", name=name,
            marker={"size": 4, "opacity": 0.7 if significant else 0.25},
        )  # fmt: skip
    return figure
