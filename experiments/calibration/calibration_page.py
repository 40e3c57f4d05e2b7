"""The page of a calibration: real beside simulated, family by family, and the whole table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from tolerance import tolerance

from perturbgen.core.page import PALETTE, Page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SECTIONS = {
    "Ranks: one drug between cell types": "same drug",
    "Ranks: different drugs": "different drugs",
    "Ranks: how well a drug agrees with itself": "a drug's mean",
    "Effects of compounds": "effects",
    "The benchmark's table": (
        "zeros:",
        "random_draw",
        "gene_mean",
        "cell_type_mean",
        "compound_mean",
    ),
    "The competition's table": "table",
}


def calibration_page(
    real: dict[str, float], found: pd.DataFrame, rows: list[dict[str, Any]], *, title: str
) -> Page:
    """``found`` has a column for each seed; ``rows`` are the judged table."""
    off = sum(row["verdict"] == "off" for row in rows)
    known = sum(row["verdict"] in ("off", "as real") for row in rows)
    page = Page("Simulated and real", f"{title}. {known - off} of {known} statistics are as real.")
    for section, starts in _SECTIONS.items():
        here = [str(name) for name in found.index if str(name).startswith(starts)]
        page.section(section)
        caption = "Black: real, with the tolerance. Coloured: each simulated seed."
        page.figure(_dots(real, found.loc[here]), caption)
        page.table([row for row in rows if row["statistic"] in here])
    rest = [row for row in rows if not str(row["statistic"]).startswith(_flat())]
    if rest:
        page.section("Others")
        page.table(rest)
    return page


def _flat() -> tuple[str, ...]:
    names: list[str] = []
    for starts in _SECTIONS.values():
        names += [starts] if isinstance(starts, str) else starts
    return tuple(names)


def _dots(real: dict[str, float], found: pd.DataFrame) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    names = [name for name in found.index if name in real]
    figure.add_trace(
        Scatter(
            x=[real[name] for name in names],
            y=names,
            mode="markers",
            name="real",
            marker={"color": "black", "symbol": "line-ns-open", "size": 14},
            error_x={"type": "data", "array": [tolerance(name, real[name]) for name in names]},
        )
    )
    for i, seed in enumerate(found.columns):
        marker = {"color": PALETTE[i % len(PALETTE)], "size": 9, "opacity": 0.8}
        figure.add_trace(
            Scatter(
                x=found[seed],
                y=list(found.index),
                mode="markers",
                name=f"seed {seed}",
                marker=marker,
            )
        )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(height=140 + 26 * len(found))
    return figure
