"""A trained embedding beside its rivals, on profiles that it was not trained on, and their page.

The rivals are what it must beat, each fitted on the training profiles alone. On the real plate
LJP005 WCCN is still ahead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.console import plain
from perturbgen.core.page import PALETTE, Page
from perturbgen.l1000.embedder.data import EmbedProfiles
from perturbgen.l1000.embedder.probe import KINDS, MAJORITY, ProbeTask
from perturbgen.l1000.embedder.recipe import Embedder
from perturbgen.profiles.linear import PCA, WCCN, ReplicateMetric
from perturbgen.retrieval import Measure, Retrieval, controlled, group_neighbours, retrieve
from perturbgen.train.board import plane

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_CLIP = 10.0  # of z-scores, as for the network
_COMPONENTS = 64  # of the linear rivals
MINE = "trained embedding"
_MAPPED = 20_000  # profiles on the map, at most
_LISTED, _NEAR = 500, 4  # perturbagens that the page lists, and neighbours of each, at most
# A column of the table of methods: where it stands in a retrieval's summary.
_SHOWN = {
    "mAP": ("per query", "ap"),
    "AUC": ("per query", "auc"),
    "median q": ("pooled", "median_q"),
    "top .01": ("pooled", "top_0.01"),
    "top .1": ("pooled", "top_0.1"),
    "P@1": ("per query", "p_at_1"),
    "retrieved": ("per group", "retrieved"),
}
_PROBE_TEXT = (
    "How well classifiers read {column} from each method's places. They learn from some values of "
    "{label} and are tested on others, five folds together. balanced: the mean over classes of "
    "their share told rightly. top-1 of {label}s: all profiles of one decide together. It is "
    "shuffled over values of {label} for the control."
)


@dataclass(frozen=True)
class Rival:
    """Places of the judged profiles (rows, any width), and how they are compared."""

    name: str
    vectors: np.ndarray
    similarity: Measure = "cosine"

    @classmethod
    def fitted(
        cls, train: np.ndarray, labels: np.ndarray, judged: np.ndarray, *, seed: int
    ) -> list[Rival]:
        """All of them, from profiles (rows, genes) and the training rows' labels."""
        n, train, judged = _COMPONENTS, train.clip(-_CLIP, _CLIP), judged.clip(-_CLIP, _CLIP)
        metric, wccn = ReplicateMetric(32, n).fit(train, labels), WCCN(n).fit(train, labels)
        pca, whitened = PCA(n).fit(train), PCA(n, whiten=True).fit(train)
        return [
            cls("random", np.random.default_rng(seed).normal(size=(len(judged), 32))),
            cls("z-scores, Euclid", judged, "euclidean"),
            cls("z-scores, cosine", judged),
            cls("z-scores, Spearman", judged, "spearman"),
            cls(f"PCA-{n}", pca.transform(judged)),
            cls(f"PCA-{n}, whitened", whitened.transform(judged)),
            cls("replicate metric (PeML-like)", metric.transform(judged)),
            cls(f"WCCN, PCA-{n}", wccn.transform(judged)),
        ]


@dataclass(frozen=True, eq=False)
class Judged:
    """Every method's retrieval of the same profiles, the trained one's places and its controls."""

    table: EmbedProfiles
    vectors: np.ndarray
    found: dict[str, Retrieval]
    controls: pd.DataFrame
    label: str
    methods: tuple[Rival, ...]
    probes: dict[str, pd.DataFrame]  # by column

    @classmethod
    def of(
        cls,
        embedder: Embedder,
        table: EmbedProfiles,
        *,
        seed: int,
        plate: str,
        well: str,
        probes: Sequence[str] = (),
    ) -> Judged:
        """Rank the profiles by every method, and by linear rivals.

        The rivals are fitted on the run's training profiles. Every method sees the embedding's
        genes, found by id. ``probes`` are columns whose values classifiers are asked to read from
        each method's places.
        """
        label = embedder.settings.data.label
        train = embedder.profiles(part="train").with_genes(embedder.genes)
        table = table.with_genes(embedder.genes)
        labels = table.meta.assign(**{label: table.meta[label].astype(str)})
        # A column that cannot be probed is told before the networks and rivals are run.
        tasks = {
            name: ProbeTask.of(labels, name, label, rng=np.random.default_rng(seed))
            for name in probes
        }
        vectors, measure = embedder.embed(table), embedder.model.measure
        names = train.meta[label].astype(str).to_numpy()
        methods = (
            Rival(MINE, vectors, measure),
            Rival("the network, untrained", embedder.untrained().embed(table), measure),
            *Rival.fitted(train.dense(), names, table.dense(), seed=seed),
        )
        found = {
            rival.name: retrieve(rival.vectors, labels, same=label, similarity=rival.similarity)
            for rival in methods
        }
        controls = controlled(
            vectors,
            labels,
            same=label,
            plate=_known(plate, labels),
            well=_known(well, labels),
            rng=np.random.default_rng(seed),
            similarity=measure,
        )
        asked = probe_inputs(methods)
        probed = {name: task.probe(asked, seed=seed) for name, task in tasks.items()}
        return cls(table, vectors, found, controls, label, methods, probed)

    def rows(self) -> list[dict[str, Any]]:
        """A line for each method, the best mAP first."""
        rows = []
        for name, result in self.found.items():
            summary: Any = result.summary()
            measured = {column: float(summary.loc[where]) for column, where in _SHOWN.items()}
            rows.append({"method": name, **measured})
        return sorted(rows, key=lambda row: -row["mAP"])

    def probe_rows(self, column: str) -> list[dict[str, Any]]:
        """A line for each input and classifier, as they were asked for."""
        named = {"top-1 of groups": f"top-1 of {self.label}s"}
        return [plain(row) for row in self.probes[column].rename(columns=named).to_dict("records")]

    def neighbours(self, measure: Measure) -> pd.DataFrame:
        """Which other perturbagens the ten nearest profiles of each one belong to."""
        pairs = self.table.neighbours(self.vectors, self.label, measure, k=10)
        return group_neighbours(pairs, same=[self.label])

    def page(self, embedder: Embedder, groups: pd.DataFrame, *, title: str) -> Page:
        """The table of methods, curves, the map, leaks, probes and neighbours."""
        n, kinds = len(self.table), self.table.meta[self.label].nunique()
        page = Page(
            title, f"{n:,} profiles of {kinds:,} values of {self.label}, ranked by each method."
        )
        page.section(
            "Methods",
            "mAP, AUC and P@1: means over profiles. median q: the share of others that lie above a "
            "profile of the same kind. retrieved: the share of kinds found above chance. Rivals "
            "are fitted on the run's training profiles.",
        )
        page.table(self.rows())
        page.section("Retrieval curves")
        page.figure(
            _curves(self),
            "Share of pairs of one kind that have at most this part of the others between them.",
        )
        page.section("Map")
        page.figure(
            _profile_map(self),
            "The two directions of most variance; point at a profile for its name.",
        )
        page.section(
            "Leaks of the plate",
            "What is left on other plates and positions, what shuffled labels give, and how well "
            "the plate is found: an AUC of one half is chance, more is leakage.",
        )
        page.table(
            [{"variant": name, **plain(dict(row))} for name, row in self.controls.iterrows()]
        )
        for column in self.probes:
            page.section(f"Probe: {column}", _PROBE_TEXT.format(column=column, label=self.label))
            page.figure(
                _probe_figure(self, column),
                "Dotted: the same classifiers on shuffled classes; "
                "dashed: the most frequent class.",
            )
            page.table(self.probe_rows(column))
        page.section(
            "Neighbours",
            "The other kinds that a kind's ten nearest profiles belong to, "
            "the most frequent first.",
        )
        page.table(_neighbour_rows(self, groups))
        settings = embedder.settings.model
        page.section(
            "Network",
            f"{embedder.path.name}: {settings.encoder.kind} encoder, {settings.head.kind} head, "
            f"{len(embedder.card.classes):,} training classes, {settings.size} dimensions.",
        )
        return page


def probe_inputs(methods: Sequence[Rival]) -> dict[str, np.ndarray]:
    """What a classifier may tell apart: z-scores once, and one scale of principal components."""
    named = {"z-scores, cosine": "z-scores"}
    skipped = ("random", "z-scores, Euclid", "z-scores, Spearman")
    return {
        named.get(rival.name, rival.name): rival.vectors
        for rival in methods
        if rival.name not in skipped and not rival.name.endswith("whitened")
    }


def _known(column: str, labels: pd.DataFrame) -> str | None:
    """A column that says something: it is there, and not the same everywhere."""
    return column if column in labels and labels[column].nunique() > 1 else None


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


def _profile_map(judged: Judged) -> Figure:
    """The first two principal components, coloured by mechanism, else cell line."""
    import plotly.graph_objects as go

    samples = judged.table.meta
    chosen = np.random.default_rng(0).permutation(len(samples))[:_MAPPED]
    points = plane(judged.vectors.astype(float))[chosen]
    samples = samples.iloc[chosen]
    colour = next((name for name in ("moa", "cell_line") if _known(name, samples)), judged.label)
    said = dict.fromkeys(("name", judged.label, "dose", "cell_line", "plate", "well"))
    text = samples[[name for name in said if name in samples]].astype(str).agg(", ".join, axis=1)
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
                text=text.to_numpy()[mine],
                marker={"color": tone, "size": 5, "opacity": 0.7},
                hovertemplate="%{text}<extra></extra>",
            )
    figure.update_xaxes(title="first component")
    figure.update_yaxes(title="second component", scaleanchor="x")
    return figure.update_layout(height=560, legend_title=colour)


def _neighbour_rows(judged: Judged, groups: pd.DataFrame) -> list[dict[str, Any]]:
    """A line for each kind: how well it is found, and its nearest other kinds."""
    label = judged.label
    ap = judged.found[MINE].groups.set_index(label)["ap"]
    named = judged.table.display_names(label)
    rows = []
    for kind in sorted(groups[label].unique())[:_LISTED]:
        mine, score = groups[groups[label] == kind].head(_NEAR), ap.get(kind)
        others = [
            f"{named.get(other, other)} ({share:.0%})"
            for other, share in zip(mine[f"neighbour {label}"], mine["share"], strict=True)
        ]
        rows.append(
            {
                label: named.get(kind, kind),
                "AP": None if score is None else float(score),
                "nearest others": "; ".join(others),
            }
        )
    return rows


def _probe_figure(judged: Judged, column: str) -> Figure:
    """Bars of macro-F1 by input and classifier; what guessing gives as lines."""
    import plotly.graph_objects as go

    found = judged.probes[column]
    inputs = found["input"].unique()
    names = [name for name in inputs if name != "none" and not name.endswith(", shuffled")]
    scores = found.set_index(["input", "classifier"])["macro-F1"]
    figure = go.Figure()
    for kind, tone in zip(KINDS, PALETTE, strict=False):
        heights, guessed = [scores[name, kind] for name in names], f"{names[0]}, shuffled"
        figure.add_bar(x=names, y=heights, name=kind, marker_color=tone)
        figure.add_hline(y=scores[guessed, kind], line={"color": tone, "dash": "dot"})
    figure.add_hline(y=scores["none", MAJORITY], line={"color": "#595959", "dash": "dash"})
    figure.update_yaxes(title="macro-F1", range=[0, 1])
    return figure.update_layout(height=420, barmode="group")
