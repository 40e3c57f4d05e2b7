"""A trained embedding beside its rivals on profiles that it was not trained on: tables and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.errors import ConfigError
from perturbgen.evaluate.retrieval import Retrieval, controlled, nearest
from perturbgen.evaluate.retrieval.neighbours import group_neighbours, neighbour_table
from perturbgen.page import PALETTE, Page
from perturbgen.profiles.embedder.data import ProfileTable, read_table, treatments
from perturbgen.profiles.embedder.judge import measure_of, ranked
from perturbgen.profiles.embedder.rivals import Rival, rivals
from perturbgen.profiles.embedder.run import Embedder, blank

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Array = np.ndarray[Any, Any]
MINE: Final = "trained embedding"
MAPPED: Final = 20_000  # profiles on the map, at most
LISTED: Final = 500  # perturbagens whose neighbours the page lists, at most


@dataclass(frozen=True, eq=False)
class Judged:
    """Every method's retrieval of the same profiles, the trained one's places and its controls."""

    table: ProfileTable
    vectors: Array
    found: dict[str, Retrieval]
    controls: pd.DataFrame
    label: str

    def rows(self) -> list[dict[str, Any]]:
        """A line for each method, the best mAP first."""
        rows = []
        for name, result in self.found.items():
            summary: Any = result.summary()
            query, pooled = summary.loc["per query"], summary.loc["pooled"]
            rows.append(
                {
                    "method": name, "mAP": float(query["ap"]), "AUC": float(query["auc"]),
                    "median q": float(pooled["median_q"]), "top .01": float(pooled["top_0.01"]),
                    "top .1": float(pooled["top_0.1"]), "P@1": float(query["p_at_1"]),
                    "retrieved": float(summary.loc["per group", "retrieved"]),
                }
            )  # fmt: skip
        return sorted(rows, key=lambda row: -row["mAP"])


def chosen_profiles(embedder: Embedder, path: Path | None, metadata: Path | None, part: str) -> ProfileTable:
    """Labelled treatments of a file: the run's own part, or all of them."""
    data = embedder.settings.data
    table = treatments(read_table(path or data.path, metadata or data.metadata), data)
    if part == "all":
        return table
    parts = embedder.parts()
    names = parts.index[parts == part]
    keep = table.samples.index.isin(names)
    if not keep.any():
        have = sorted(parts.unique()) if not len(names) else "the file that it was trained on"
        raise ConfigError(f"no profile of the file is in the run's part {part!r}", expected=f"{have}", fix="--part all")
    return table.take(keep)


def judge(embedder: Embedder, table: ProfileTable, *, seed: int, plate: str | None, well: str | None) -> Judged:
    """Rank the profiles by every method; linear rivals are fitted on the run's training profiles."""
    label = embedder.settings.data.label
    labels = table.samples.assign(**{label: table.samples[label].astype(str)})
    vectors, measure = embedder.embed(table), measure_of(embedder.model)
    train = chosen_profiles(embedder, None, None, "train")
    linear = rivals(train.values(), train.samples[label].astype(str).to_numpy(), table.values(), seed=seed)
    methods = [Rival(MINE, vectors, measure), untrained(embedder, table), *linear]
    found = {rival.name: ranked(rival.vectors, labels, label, rival.similarity) for rival in methods}
    controls = controlled(
        vectors, labels, same=label, plate=known(plate, labels), well=known(well, labels),
        rng=np.random.default_rng(seed), similarity=measure,
    )  # fmt: skip
    return Judged(table, vectors, found, controls, label)


def known(column: str | None, labels: pd.DataFrame) -> str | None:
    """A column that says something: it is there, and not the same everywhere."""
    return column if column in labels and labels[column].nunique() > 1 else None


def untrained(embedder: Embedder, table: ProfileTable) -> Rival:
    """The same network before its first step."""
    model = embedder.model
    counts = model.head.margins.new_ones(len(embedder.classes)).numpy(force=True)
    first = blank(embedder.settings, model.mean.cpu(), model.sd.cpu(), embedder.conditions.width, counts).eval()
    fresh = Embedder(embedder.path, embedder.settings, first, embedder.genes, embedder.classes, embedder.conditions)
    return Rival("the network, untrained", fresh.embed(table), measure_of(first))


def neighbours_of_labels(judged: Judged, measure: Any, *, k: int = 10) -> pd.DataFrame:
    """Which other perturbagens the nearest profiles of each one belong to."""
    samples = judged.table.samples
    labels = samples.assign(**{judged.label: samples[judged.label].astype(str)})
    k = min(k, len(labels) - 1)
    rows, values = nearest(judged.vectors, labels, k=k, similarity=measure)
    return group_neighbours(neighbour_table(labels, rows, values, same=[judged.label]), same=[judged.label])


def evaluation_page(judged: Judged, embedder: Embedder, groups: pd.DataFrame, *, title: str) -> Page:
    """The page: the table, curves, the map, neighbours, then everything about the trained embedding's retrieval."""
    n, kinds = len(judged.table), judged.table.samples[judged.label].nunique()
    page = Page(title, f"{n:,} profiles of {kinds:,} values of {judged.label}, ranked by each method.")
    page.section(
        "Methods",
        "mAP, AUC and P@1: means over profiles. median q: the share of others that lie above a profile of the same "
        "kind. retrieved: the share of kinds found above chance. Rivals are fitted on the run's training profiles.",
    )
    page.table(judged.rows())
    page.section("Retrieval curves")
    page.figure(curves(judged), "Share of pairs of one kind that have at most this part of the others between them.")
    page.section("Map")
    page.figure(map_figure(judged), "The two directions of most variance; point at a profile for its name.")
    page.section("Neighbours", "The other kinds that a kind's ten nearest profiles belong to, the most frequent first.")
    page.table(neighbour_rows(judged, groups))
    page.section(
        "Leaks of the plate",
        "What is left on other plates and positions, what shuffled labels give, and how well the plate is found: "
        "an AUC of one half is chance, more is leakage.",
    )
    page.table([{"variant": name, **plain(row)} for name, row in judged.controls.iterrows()])
    settings = embedder.settings.model
    page.section("Network", f"{embedder.path.name}: {settings.encoder.kind} encoder, {settings.head.kind} head, "
                            f"{len(embedder.classes):,} training classes, {settings.size} dimensions.")  # fmt: skip
    return page


def curves(judged: Judged) -> Figure:
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


def map_figure(judged: Judged) -> Figure:
    """The first two principal components, coloured by mechanism, else cell line."""
    import plotly.graph_objects as go

    from perturbgen.train.pictures import plane

    samples = judged.table.samples
    chosen = np.random.default_rng(0).permutation(len(samples))[:MAPPED]
    points = plane(judged.vectors.astype(float))[chosen]
    samples = samples.iloc[chosen]
    colour = next((name for name in ("moa", "cell_line") if known(name, samples)), judged.label)
    text = hover(samples, judged.label)
    kinds = samples[colour].astype(str).to_numpy()
    names, counts = np.unique(kinds, return_counts=True)
    common = list(names[np.argsort(-counts, kind="stable")][: len(PALETTE)])
    figure = go.Figure()
    for name, tone in [("other", "#b5bbc2"), *zip(sorted(common), PALETTE, strict=False)]:
        mine = ~np.isin(kinds, common) if name == "other" else kinds == name
        if mine.any():
            figure.add_scattergl(
                x=points[mine, 0], y=points[mine, 1], mode="markers", name=str(name), text=text[mine],
                marker={"color": tone, "size": 5, "opacity": 0.7}, hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title="first component")
    figure.update_yaxes(title="second component", scaleanchor="x")
    return figure.update_layout(height=560, legend_title=colour)


def hover(samples: pd.DataFrame, label: str) -> Array:
    """What a profile is, in a line."""
    names = [name for name in ("name", label, "dose", "cell_line", "plate", "well") if name in samples]
    return samples[list(dict.fromkeys(names))].astype(str).agg(", ".join, axis=1).to_numpy()


def neighbour_rows(judged: Judged, groups: pd.DataFrame, *, near: int = 4) -> list[dict[str, Any]]:
    """A line for each kind: how well it is found, and its nearest other kinds."""
    label = judged.label
    ap = judged.found[MINE].groups.set_index(label)["ap"]
    named = display_names(judged.table.samples, label)
    rows = []
    for kind in sorted(groups[label].unique())[:LISTED]:
        mine = groups[groups[label] == kind]
        nearest_kinds = [
            f"{named.get(other, other)} ({share:.0%})"
            for other, share in zip(mine[f"neighbour {label}"].head(near), mine["share"].head(near), strict=True)
        ]
        score = ap.get(kind)
        rows.append(
            {label: named.get(kind, kind), "AP": None if score is None else float(score),
             "nearest others": "; ".join(nearest_kinds)}
        )  # fmt: skip
    return rows


def display_names(samples: pd.DataFrame, label: str) -> dict[str, str]:
    """A kind with its common name, where there is one."""
    if "name" not in samples or label == "name":
        return {}
    first = samples.drop_duplicates(label)
    pairs = zip(first[label].astype(str), first["name"].astype(str), strict=True)
    return {kind: name if name == kind else f"{name} ({kind})" for kind, name in pairs}


def plain(row: Any) -> dict[str, Any]:
    """A line with None for NaN."""
    return {str(k): None if isinstance(v, float) and np.isnan(v) else v for k, v in dict(row).items()}
