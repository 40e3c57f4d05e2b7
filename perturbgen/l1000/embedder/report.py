"""The page of a judged embedding: its table, curves, map, neighbours, leaks and probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE, Page
from perturbgen.l1000.embedder.evaluation import MINE, Judged, as_record, display_names, known
from perturbgen.l1000.embedder.probe import KINDS, MAJORITY
from perturbgen.l1000.embedder.recipe import Embedder
from perturbgen.train.board import plane

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MAPPED = 20_000  # profiles on the map, at most
_LISTED = 500  # perturbagens whose neighbours the page lists, at most
_PROBE_TEXT = (
    "How well classifiers read {column} from each method's places. They learn from some values of "
    "{label} and are tested on others, five folds together. balanced: the mean over classes of "
    "their share told rightly. top-1 of {label}s: all profiles of one decide together. It is "
    "shuffled over values of {label} for the control."
)


def evaluation_page(
    judged: Judged, embedder: Embedder, groups: pd.DataFrame, *, title: str
) -> Page:
    """The table of methods, curves, the map, leaks, probes and neighbours."""
    n, kinds = len(judged.table), judged.table.meta[judged.label].nunique()
    page = Page(
        title, f"{n:,} profiles of {kinds:,} values of {judged.label}, ranked by each method."
    )
    page.section(
        "Methods",
        "mAP, AUC and P@1: means over profiles. median q: the share of others that lie above a "
        "profile of the same kind. retrieved: the share of kinds found above chance. Rivals are "
        "fitted on the run's training profiles.",
    )
    page.table(judged.rows())
    page.section("Retrieval curves")
    page.figure(
        _curves(judged),
        "Share of pairs of one kind that have at most this part of the others between them.",
    )
    page.section("Map")
    page.figure(
        _map_figure(judged), "The two directions of most variance; point at a profile for its name."
    )
    page.section(
        "Leaks of the plate",
        "What is left on other plates and positions, what shuffled labels give, and how well the "
        "plate is found: an AUC of one half is chance, more is leakage.",
    )
    page.table([{"variant": name, **as_record(row)} for name, row in judged.controls.iterrows()])
    for column in judged.probes:
        page.section(f"Probe: {column}", _PROBE_TEXT.format(column=column, label=judged.label))
        page.figure(
            _probe_figure(judged, column),
            "Dotted: the same classifiers on shuffled classes; dashed: the most frequent class.",
        )
        page.table(judged.probe_rows(column))
    page.section(
        "Neighbours",
        "The other kinds that a kind's ten nearest profiles belong to, the most frequent first.",
    )
    page.table(_neighbour_rows(judged, groups))
    settings = embedder.settings.model
    page.section(
        "Network",
        f"{embedder.path.name}: {settings.encoder.kind} encoder, {settings.head.kind} head, "
        f"{len(embedder.card.classes):,} training classes, {settings.size} dimensions.",
    )
    return page


def _curves(judged: Judged) -> Figure:
    """Pooled ROC curves with a logarithmic x axis."""
    import plotly.graph_objects as go

    order = [row["method"] for row in judged.rows()]
    fewest = max(1e-4, 0.5 / judged.found[MINE].queries["negatives"].max())
    x = np.geomspace(fewest, 1, 300)
    figure = go.Figure()
    for i, name in enumerate(order):
        width = 4 if name == MINE else 1.5
        dash = "solid" if i < len(PALETTE) else "dot"
        line = {"color": PALETTE[i % len(PALETTE)], "width": width, "dash": dash}
        figure.add_scatter(x=x, y=judged.found[name].curve(x), mode="lines", name=name, line=line)
    figure.update_xaxes(title="part of the others above", type="log", dtick=1, tickformat="~%")
    figure.update_yaxes(title="share of pairs", range=[0, 1.02], tickformat=".0%")
    return figure.update_layout(height=460)


def _map_figure(judged: Judged) -> Figure:
    """The first two principal components, coloured by mechanism, else cell line."""
    import plotly.graph_objects as go

    samples = judged.table.meta
    chosen = np.random.default_rng(0).permutation(len(samples))[:_MAPPED]
    points = plane(judged.vectors.astype(float))[chosen]
    samples = samples.iloc[chosen]
    colour = next((name for name in ("moa", "cell_line") if known(name, samples)), judged.label)
    text = _hover(samples, judged.label)
    kinds = samples[colour].astype(str).to_numpy()
    names, counts = np.unique(kinds, return_counts=True)
    common = list(names[np.argsort(-counts, kind="stable")][: len(PALETTE)])
    figure = go.Figure()
    for name, tone in [("other", "#b5bbc2"), *zip(sorted(common), PALETTE, strict=False)]:
        mine = ~np.isin(kinds, common) if name == "other" else kinds == name
        if mine.any():
            figure.add_scattergl(
                x=points[mine, 0],
                y=points[mine, 1],
                mode="markers",
                name=str(name),
                text=text[mine],
                marker={"color": tone, "size": 5, "opacity": 0.7},
                hovertemplate="%{text}<extra></extra>",
            )
    figure.update_xaxes(title="first component")
    figure.update_yaxes(title="second component", scaleanchor="x")
    return figure.update_layout(height=560, legend_title=colour)


def _hover(samples: pd.DataFrame, label: str) -> np.ndarray:
    """What a profile is, in a line."""
    names = [
        name for name in ("name", label, "dose", "cell_line", "plate", "well") if name in samples
    ]
    return samples[list(dict.fromkeys(names))].astype(str).agg(", ".join, axis=1).to_numpy()


def _neighbour_rows(judged: Judged, groups: pd.DataFrame, *, near: int = 4) -> list[dict[str, Any]]:
    """A line for each kind: how well it is found, and its nearest other kinds."""
    label = judged.label
    ap = judged.found[MINE].groups.set_index(label)["ap"]
    named = display_names(judged.table.meta, label)
    rows = []
    for kind in sorted(groups[label].unique())[:_LISTED]:
        mine = groups[groups[label] == kind]
        nearest_kinds = [
            f"{named.get(other, other)} ({share:.0%})"
            for other, share in zip(
                mine[f"neighbour {label}"].head(near), mine["share"].head(near), strict=True
            )
        ]
        score = ap.get(kind)
        rows.append(
            {
                label: named.get(kind, kind),
                "AP": None if score is None else float(score),
                "nearest others": "; ".join(nearest_kinds),
            }
        )
    return rows


def _probe_figure(judged: Judged, column: str) -> Figure:
    """Bars of macro-F1 by input and classifier; what guessing gives as lines."""
    import plotly.graph_objects as go

    found = judged.probes[column]
    names = [
        name
        for name in found["input"].unique()
        if name != "none" and not name.endswith(", shuffled")
    ]
    scores = found.set_index(["input", "classifier"])["macro-F1"]
    figure = go.Figure()
    for kind, tone in zip(KINDS, PALETTE, strict=False):
        figure.add_bar(
            x=names, y=[scores[name, kind] for name in names], name=kind, marker_color=tone
        )
        figure.add_hline(
            y=scores[f"{names[0]}, shuffled", kind], line={"color": tone, "dash": "dot"}
        )
    figure.add_hline(y=scores["none", MAJORITY], line={"color": "#595959", "dash": "dash"})
    figure.update_yaxes(title="macro-F1", range=[0, 1])
    return figure.update_layout(height=420, barmode="group")
