"""A page about one retrieval: the curve, the groups, the controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE, Page
from perturbgen.retrieval.evaluator import SIGNIFICANT, Retrieval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SHOWN = ("ap", "nap", "auc", "median_q", "early_auc", "top_0.01", "top_0.1", "p_at_1", "r_at_10")
_LISTED = 12
_GREY = "#8c959f"


def retrieval_page(
    result: Retrieval, *, title: str, lead: str, controls: pd.DataFrame | None = None
) -> Page:
    """The page; ``controls`` is the table of :func:`perturbgen.retrieval.controlled`."""
    page = Page(title, lead)
    page.section(
        "Summary",
        "ap: average precision. nap: the same, 0 by chance and 1 at best. median_q: the share of "
        "negatives above a positive. auc: 1 - mean q. early_auc: the top of the list first. In "
        "brackets 95 % intervals.",
    )
    page.table(_summary_rows(result))
    page.section("Retrieval curve")
    page.figure(
        _curve_figure(result),
        "The share of all positives that have at most this part of their negatives above them.",
    )
    found = int((result.groups["p_bh"] < SIGNIFICANT).sum())
    lonely = int((result.queries["positives"] == 0).sum())
    page.section(
        "Groups",
        f"{found:,} of {len(result.groups):,} groups are found above chance (Benjamini-Hochberg, "
        f"{SIGNIFICANT:g})."
        + (f" {lonely:,} queries had no positive and are skipped." if lonely else ""),
    )
    page.figure(
        _groups_figure(result),
        "Each group's mean average precision; the tick is what chance gives its size.",
    )
    page.table(_listed_groups(result, best=True))
    page.section("Groups that are found least")
    page.table(_listed_groups(result, best=False))
    if controls is not None:
        page.section(
            "Controls",
            "Chance is an auc of one half. What stays when labels are shuffled comes from the "
            "design; what finds the plate or the well itself is leakage.",
        )
        page.table([{"variant": name, **_without_nan(row)} for name, row in controls.iterrows()])
    return page


def _summary_rows(result: Retrieval) -> list[dict[str, Any]]:
    """A row per metric, its means by group, by query and by pair, with their intervals, as text."""
    table: dict[Any, Any] = result.summary().to_dict("index")
    intervals: dict[Any, Any] = result.intervals().to_dict("index")
    means = ("per group", "per query", "pooled")
    rows: list[dict[str, Any]] = [
        {"metric": "n", **{name: f"{int(table[name]['n']):,}" for name in means}}
    ]
    for metric in _SHOWN:
        row: dict[str, Any] = {"metric": metric}
        for name in means:
            value = table[name][metric]
            low, high = (intervals[name, side].get(metric, np.nan) for side in ("low", "high"))
            interval = "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
            row[name] = "-" if np.isnan(value) else f"{value:.3f}{interval}"
        rows.append(row)
    return rows


def _curve_figure(result: Retrieval) -> Figure:
    """Pooled ROC curve with a logarithmic x axis, and chance."""
    import plotly.graph_objects as go

    # Logarithmic: what a search shows is the first percent of its candidates.
    fewest = max(1e-4, 0.5 / result.queries["negatives"].max())  # half of one negative
    x = np.geomspace(fewest, 1, 400)
    figure = go.Figure()
    figure.add_scatter(
        x=x, y=result.curve(x), mode="lines", name="found", line={"color": PALETTE[0], "width": 3}
    )
    figure.add_scatter(
        x=x, y=x, mode="lines", name="by chance", line={"color": _GREY, "dash": "dash"}
    )
    figure.update_xaxes(title="part of the negatives above", type="log", dtick=1, tickformat="~%")
    figure.update_yaxes(title="share of positives", range=[0, 1.02], tickformat=".0%")
    return figure.update_layout(height=420)


def _groups_figure(result: Retrieval) -> Figure:
    """AP of the groups, sorted, those above chance coloured."""
    import plotly.graph_objects as go

    groups = result.groups.sort_values("ap", ascending=False, kind="stable", ignore_index=True)
    names = groups[list(result.same)].astype(str).agg(", ".join, axis=1)
    found = groups["p_bh"] < SIGNIFICANT
    figure = go.Figure()
    for mask, name, colour in (
        (found, f"p_bh < {SIGNIFICANT}", PALETTE[0]),
        (~found, "not above chance", _GREY),
    ):
        figure.add_scattergl(
            x=groups.index[mask] + 1,
            y=groups.loc[mask, "ap"],
            text=names[mask],
            name=f"{name} ({mask.sum():,})",
            mode="markers",
            marker={"color": colour, "size": 8},
            hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
        )
    tick = {"symbol": "line-ew-open", "color": PALETTE[1], "size": 8}
    figure.add_scattergl(
        x=groups.index + 1,
        y=groups["chance"],
        mode="markers",
        name="chance",
        marker=tick,
        hoverinfo="skip",
    )
    figure.update_xaxes(title="groups, the best first")
    return figure.update_yaxes(title="mean average precision", range=[0, 1.02]).update_layout(
        height=420
    )


def _listed_groups(result: Retrieval, *, best: bool) -> list[dict[str, Any]]:
    """The groups with the highest or the lowest normalised AP."""
    order = result.groups.sort_values("nap", ascending=not best, kind="stable").head(_LISTED)
    columns = [*result.same, "queries", "ap", "nap", "auc", "median_q", "p_at_1", "p", "p_bh"]
    return [_without_nan(row) for row in order[columns].to_dict("records")]


def _without_nan(row: Any) -> dict[str, Any]:
    """A table row with None for NaN."""
    return {
        str(k): None if isinstance(v, float) and np.isnan(v) else v for k, v in dict(row).items()
    }
