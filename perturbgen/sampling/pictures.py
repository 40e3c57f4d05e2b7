"""Pictures of what samplers foretold of hidden wells, and what was there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.page import PALETTE, Page
from perturbgen.sampling.scores import coverage
from perturbgen.sampling.validate import TARGETS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEANING: Final = {"cells": "cells in the well", "depth": "median library size of the well"}
ABOUT_SCORES: Final = (
    "CRPS: lower is better, in the quantity's own units. The last columns say how many of the hidden wells fell into "
    "the central 50, 80 and 95 % intervals."
)
ABOUT_FOUND: Final = (
    "Observed against the median of the draws, a point for each hidden well and cell type. On the dashed line they "
    "agree; hovering shows the 80 % interval."
)
ABOUT_PIT: Final = (
    "Where the observed value lies among the draws. A calibrated sampler gives flat bars: a hump in the middle is too "
    "wide, horns at the ends too narrow, a slope is bias."
)
ABOUT_COVERAGE: Final = (
    "Share of the wells inside the central interval against the interval's probability. On the dashed line is "
    "calibrated; the grey band is five points either way."
)
MOST_POINTS: Final = 3000
BINS: Final = 20


def calibration_page(scores: pd.DataFrame, summary: list[dict[str, Any]], *, title: str, lead: str) -> Page:
    """A page of the scores of hidden wells (see :func:`perturbgen.sampling.validate.score_wells`) and their summary."""
    page = Page(title, lead)
    page.section("Scores", ABOUT_SCORES)
    page.table(summary)
    for name in TARGETS:
        known = scores[scores[f"{name}_pit"].notna()]
        page.section(MEANING[name].capitalize())
        page.figure(found_figure(known, name), ABOUT_FOUND)
        page.figure(pit_figure(known, name), ABOUT_PIT)
        page.figure(coverage_figure(known, name), ABOUT_COVERAGE)
    return page


def found_figure(scores: pd.DataFrame, name: str) -> Figure:
    """Observed against predicted, both axes logarithmic."""
    import plotly.graph_objects as go

    step = -(-len(scores) // MOST_POINTS)
    figure = go.Figure()
    shift = int(name == "cells")  # wells may be empty, and the axes are logarithmic
    for (kind, part), colour in zip(scores.iloc[::step].groupby("cell_type", observed=True), PALETTE, strict=False):
        hover = part["compound"] + ", " + part["plate"] + ", 80 %: " + part[f"{name}_low"].map("{:,.0f}".format)
        hover = hover + " to " + part[f"{name}_high"].map("{:,.0f}".format)
        marker = {"size": 5, "opacity": 0.6, "color": colour}
        points = {"mode": "markers", "name": str(kind), "text": hover, "marker": marker}
        figure.add_scattergl(x=part[f"{name}_median"] + shift, y=part[name] + shift, **points)
    both = scores[[name, f"{name}_median"]] + shift
    ends = [float(both.min().min()), float(both.max().max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"dash": "dash", "color": PALETTE[7]})
    more = " + 1" if shift else ""
    figure.update_xaxes(title=f"predicted median{more}: {MEANING[name]}", type="log", dtick="D2")
    return figure.update_yaxes(title=f"observed{more}", type="log", dtick="D2").update_layout(height=460)


def pit_figure(scores: pd.DataFrame, name: str) -> Figure:
    """Histogram of the PIT, with the band that chance alone would fill."""
    import plotly.graph_objects as go

    edges = np.linspace(0, 1, BINS + 1)
    share = np.histogram(scores[f"{name}_pit"], edges)[0] / len(scores) * BINS
    middle = (edges[1:] + edges[:-1]) / 2
    noise = np.sqrt(BINS / len(scores))
    figure = go.Figure(go.Bar(x=middle, y=share, name="all wells", marker={"opacity": 0.6}))
    figure.add_hrect(y0=1 - 2 * noise, y1=1 + 2 * noise, fillcolor=PALETTE[7], opacity=0.15, line_width=0)
    figure.add_hline(y=1, line={"dash": "dash", "color": PALETTE[7]})
    figure.update_xaxes(title="place of the observed value among the draws (PIT)", range=[0, 1])
    return figure.update_yaxes(title="density (band: chance alone)", rangemode="tozero").update_layout(
        height=320, bargap=0.05
    )


def coverage_figure(scores: pd.DataFrame, name: str) -> Figure:
    """Found against nominal coverage, a line for each cell type."""
    import plotly.graph_objects as go

    levels = np.linspace(0.02, 0.98, 49)
    figure = go.Figure()
    band = np.concatenate([levels, levels[::-1]])
    figure.add_scatter(
        x=band, y=np.concatenate([levels - 0.05, levels[::-1] + 0.05]), fill="toself", name="within five points",
        line={"width": 0}, fillcolor="rgba(89,89,89,0.15)", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"dash": "dash", "color": PALETTE[7]})
    for (kind, part), colour in zip(scores.groupby("cell_type", observed=True), PALETTE, strict=False):
        found = [coverage(part[f"{name}_pit"].to_numpy(), level) for level in levels]
        figure.add_scatter(x=levels, y=found, mode="lines", name=str(kind), line={"color": colour})
    figure.update_xaxes(title="probability of the interval", range=[0, 1])
    return figure.update_yaxes(title="share of wells inside", range=[0, 1]).update_layout(height=420)
