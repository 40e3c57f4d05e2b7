"""``report.html``: one self-contained page about a scorecard, to be used from the keyboard.

Its controls are ``report_controls.html`` (a paragraph a section), their script ``report.js``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.console import format_value
from perturbgen.core.page import PALETTE, Page
from perturbgen.core.stats import Array
from perturbgen.evaluate.card import HEADLINE_NAME, Scorecard
from perturbgen.evaluate.labels import same_levels
from perturbgen.evaluate.markdown import ScorecardText
from perturbgen.evaluate.scoring import calibration
from perturbgen.evaluate.verdict import EFFECT_NOTE, Verdict, range_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_Intervals = Mapping[float, tuple[pd.DataFrame, pd.DataFrame]]
_BUDGET: Final = 2_200_000  # bytes of tables: with plotly and the scores, the page stays below 8 MB
_OWN: Final = 20  # of each condition's own strongest genes are embedded besides
_BYTES: Final = 2 * 4 / 3  # of a value: 16 bits in base64


def report_page(
    card: Scorecard,
    truth: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    title: str = "Scorecard",
    intervals: Mapping[str, _Intervals] | None = None,
    ladder: Sequence[Mapping[str, Any]] = (),
    metadata: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    budget: int = _BUDGET,
) -> Page:
    """The page: ranking, groups, predicted against true, genes, calibration, definitions, run.

    ``predictions`` are those scored (zeros need no table). ``intervals`` give for a method and a
    nominal level the lower and upper tables; ``ladder`` are oracles of the same experiment, rows
    with ``prediction`` and ``ratio`` (its MRRMSE over that of zeros). ``warnings`` are sentences
    that stand near the top. ``budget`` limits the bytes of embedded tables: where they do not hold
    all genes, the page says which it shows.
    """
    data = _payload(card, truth, predictions, budget=budget)
    here = files("perturbgen.evaluate")
    controls = (here / "report_controls.html").read_text("utf-8").rstrip().split("\n\n")
    ranking, groups, conditions, genes = controls
    text = ScorecardText(card)
    answer = Verdict(card)
    first, *rest = answer.sentences()
    page = Page(title, answer=first)
    for sentence in rest:
        page.text(sentence)
    for warning in warnings:
        page.warning(warning)
    page.text(text.describe())
    page.section("Ranking", text.headline_note())
    page.table(_unbroken(text.headline_records()))
    page.block(ranking)
    if effects := answer.effects():
        page.section("Strong and weak conditions", f"By how many genes respond. {EFFECT_NOTE}")
        page.table(_unbroken(effects))
        page.figure(_effects_plot(card), "Headlines among conditions of strong and weak effects.")
    page.section(
        "By cell type and compound", "Mean score of each group. A column's heading sorts by it."
    )
    page.block(groups)
    page.section("Predicted against true", _gene_note(data))
    page.block(conditions)
    page.section(
        "Genes", "One gene over all conditions, and the conditions in which it responds most."
    )
    page.block(genes)
    if intervals:
        _calibration_section(page, truth, intervals)
    if ladder:
        _ladder_section(page, card, ladder)
    _tables_section(page, card)
    page.section("Run")
    page.table(_flat({**card.info, **(metadata or {})}))
    # The script has the colours of the figures that are drawn here. They are a script of their own,
    # since "use strict" counts only where it stands first.
    palette = ",".join(f'"{colour}"' for colour in PALETTE)
    page.block(
        f'<script type="application/json" id="data">{Page.json(data)}</script>'
        f"<script>const PALETTE = [{palette}];</script>"
        f"<script>{(here / 'report.js').read_text('utf-8')}</script>",
        draws=True,
    )
    return page


def _gene_note(data: Mapping[str, Any]) -> str:
    """Which genes are embedded."""
    shown, total = len(data["genes"]), data["all_genes"]
    if shown == total:
        return (
            f"A point is a gene; all {total:,} are shown, the {_OWN} strongest of the condition in "
            "another colour."
        )
    return (
        f"A point is a gene: the {_OWN} strongest of the condition, and genes that are the same "
        f"for all. To keep this page small, of the {total:,} genes these are {shown:,}: half are "
        "those of largest root mean square over the conditions, half an even sample of the rest, "
        "from strong to silent. Scores are over all genes."
    )


def _unbroken(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records whose intervals stay on one line each; a line may end before one."""
    return [
        {k: v.replace(", ", ",\u00a0") if isinstance(v, str) else v for k, v in r.items()}
        for r in records
    ]


def _tables_section(page: Page, card: Scorecard) -> None:
    """Every number with its interval, and what the metrics mean."""
    page.section(
        "All metrics",
        "Mean over conditions [95 % interval], in brackets the share of the dynamic range between "
        "the controls.",
    )
    page.table(_unbroken(ScorecardText(card).metric_records()))
    if len(card.stratum_table):
        page.section("Strata", ScorecardText(card).strata_note())
        page.table(_unbroken(ScorecardText(card).stratum_records()))
    page.section("Definitions", "What each metric tells, and how it is computed.")
    page.table(
        [
            {
                "metric": metric.title,
                "what it tells": metric.meaning or "-",  # of an extension
                "better": "more" if metric.higher_is_better else "less",
                "range": f"{metric.low:g} to {metric.high:g}".replace("inf", "∞"),
                "definition": metric.definition,
                "negative control": metric.negative_control,
                "name": metric.name,
            }
            for metric in card.metrics
        ]
    )


def _effects_plot(card: Scorecard) -> Figure:
    """The headline of every method, a colour for each level of effect size."""
    from plotly.graph_objects import Figure

    order = [escape(str(name)) for name in card.ranking["method"][::-1]]
    figure = Figure()
    for colour, (level, group) in zip(PALETTE, Verdict(card).levels()[::-1], strict=False):
        figure.add_scatter(
            x=group["value"],
            y=[escape(str(name)) for name in group["method"]],
            name=f"{range_of(str(level))} genes",
            mode="markers",
            marker={"size": 10, "color": colour, "opacity": 0.85},
            hovertemplate="%{y}: %{x:.3f}<extra>%{fullData.name}</extra>",
        )
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=order, automargin=True
    )
    figure.update_xaxes(title="headline", gridcolor="#e5e9ed")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "title": {"text": "responding:"}}
    return figure.update_layout(height=170 + 26 * len(order), legend=legend)


def _calibration_section(
    page: Page, truth: pd.DataFrame, intervals: Mapping[str, _Intervals]
) -> None:
    """Nominal against actual coverage, a line for each method."""
    from plotly.graph_objects import Figure

    figure = Figure()
    diagonal = {"color": "#8a949e", "dash": "dot"}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="exact", line=diagonal)
    rows = []
    for i, (name, levels) in enumerate(intervals.items()):
        table = calibration(truth, levels).groupby(level="nominal").mean()
        marks = {"mode": "lines+markers", "line": {"color": PALETTE[i % len(PALETTE)]}}
        figure.add_scatter(x=table.index, y=table["coverage"], name=escape(name), **marks)
        for level, row in table.iterrows():
            found = {"coverage": float(row["coverage"]), "mean width": float(row["width"])}
            rows.append({"method": name, "nominal": level, **found})
    figure.update_xaxes(title="nominal coverage", range=[0, 1.02])
    figure.update_yaxes(title="coverage", range=[0, 1.02]).update_layout(height=420)
    page.section("Calibration", "How often the truth lies within the intervals that methods gave.")
    caption = "On the diagonal intervals hold what they promise; below it they are too narrow."
    page.figure(figure, caption)
    page.table(rows)


def _ladder_section(page: Page, card: Scorecard, ladder: Sequence[Mapping[str, Any]]) -> None:
    """What a perfect generator would score, and where the methods stand on the same scale."""
    rows = [
        ("oracle", str(rung["prediction"]), float(rung["ratio"]))
        for rung in ladder
        if rung["prediction"] != "zeros"
    ]
    errors = card.table[card.table["metric"] == "mean_rowwise_rmse"].set_index("method")["value"]
    if "zeros" in errors and errors["zeros"] > 0:
        ranked = [name for name in card.methods if card.role(name) in ("method", "baseline")]
        rows += [("method", name, float(errors[name] / errors["zeros"])) for name in ranked]
    page.section(
        "Oracle ladder",
        "MRRMSE over that of zeros; less is better. The oracle knows the truth of the simulation "
        "and draws its cells; what is done with them decides. The methods of this comparison "
        "stand beside it.",
    )
    page.figure(
        _ladder_plot(rows),
        "Hollow: the oracle's predictions. Filled: methods. Left of the line is better than "
        "predicting zeros.",
    )
    page.table(
        [
            {"prediction": name, "by": by, "ratio to zeros": ratio}
            for by, name, ratio in sorted(rows, key=lambda row: row[2])
        ]
    )


def _ladder_plot(rows: Sequence[tuple[str, str, float]]) -> Figure:
    """A row for each prediction, (by what, its name, ratio), the best at the top."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for by, symbol, colour in (
        ("oracle", "diamond-open", PALETTE[1]),
        ("method", "circle", PALETTE[0]),
    ):
        line = {"width": 2, "color": colour}
        figure.add_scatter(
            x=[ratio for kind, _, ratio in rows if kind == by],
            y=[escape(name) for kind, name, _ in rows if kind == by],
            name=by,
            mode="markers",
            marker={"size": 11, "symbol": symbol, "color": colour, "line": line},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    order = [escape(name) for _, name, _ in sorted(rows, key=lambda row: -row[2])]
    figure.add_vline(x=1, line={"color": "#8a949e", "dash": "dot"})
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=order, automargin=True
    )
    figure.update_xaxes(title="MRRMSE over that of zeros", gridcolor="#e5e9ed")
    legend = {"orientation": "h", "y": 1.05}
    return figure.update_layout(height=150 + 26 * len(order), legend=legend)


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[dict[str, str]]:
    """Nested metadata as rows of dotted names and text."""
    rows: list[dict[str, str]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            listed = isinstance(value, (list, tuple))
            text = " ".join(map(str, value)) if listed else format_value(value)
            rows.append({"what": f"{prefix}{key}", "value": text})
    return rows


def _payload(
    card: Scorecard,
    truth: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    budget: int = _BUDGET,
) -> dict[str, Any]:
    """Everything that the page's script draws, ready for JSON."""
    columns = truth.columns
    for table in predictions.values():
        columns = columns[columns.isin(table.columns)]
    true = _on_card(card, truth, columns, "the truth")
    genes = _shown_genes(true, int(budget / (_BYTES * len(true) * (1 + len(predictions)))))
    # Genes that are strong over all conditions may miss what one condition does.
    strongest = np.argsort(-np.abs(true), axis=1, kind="stable")[:, :_OWN]
    names, codes = np.unique(strongest, return_inverse=True)
    shared, own = {}, {}
    # One at a time: a whole copy of each would be as large as all tables.
    for name, table in predictions.items():
        values = _on_card(card, table, columns, name)
        shared[name] = Page.packed(values[:, genes])
        own[name] = Page.packed(np.take_along_axis(values, strongest, axis=1))
    methods = card.ranking["method"]
    labels = [label if isinstance(label, tuple) else (label,) for label in card.scores.columns]
    head = {"name": HEADLINE_NAME, "title": "Headline", "up": True}
    metrics = [head | {"ranks": bool(card.ranking["value"].notna().any())}]
    scores = {}
    for metric, ranks in zip(card.metrics, card.overall.ranks, strict=True):
        about = {"name": metric.name, "title": metric.title, "up": metric.higher_is_better}
        metrics.append(about | {"ranks": bool(ranks)})
        of_metric = card.scores.xs(metric.name, level="metric").loc[methods]
        scores[metric.name] = Page.packed(of_metric.to_numpy(), "<f4")
    drawn = ["value", "low", "high", "share", "share_low", "share_high"]
    return {
        "methods": [{"name": name, "role": card.role(name)} for name in methods],
        "metrics": metrics,
        "headline": [name for name in card.headline if name in scores],
        "levels": [str(name or "condition") for name in card.scores.columns.names],
        "conditions": [list(map(str, label)) for label in labels],
        # Root mean square over all genes: what the page opens on, and the order of its lists.
        "strength": [float(f"{v:.4g}") for v in np.sqrt(np.square(true).mean(axis=1))],
        "overall": {
            str(metric): rows.set_index("method").loc[methods, drawn].to_numpy().tolist()
            for metric, rows in card.table.groupby("metric", sort=False)
        },
        "scores": scores,
        "genes": [str(gene) for gene in columns[genes]],
        "all_genes": len(columns),
        "truth": Page.packed(true[:, genes]),
        "tables": shared,
        "own": {
            "names": [str(gene) for gene in columns[names]],
            "codes": codes.reshape(strongest.shape).tolist(),
            "truth": Page.packed(np.take_along_axis(true, strongest, axis=1)),
            "tables": own,
        },
    }


def _on_card(card: Scorecard, table: pd.DataFrame, genes: pd.Index, name: str) -> Array:
    """The values (conditions, genes) that were scored, joined by label; what is missing is 0."""
    conditions = card.scores.columns
    found = same_levels(table, conditions, name).reindex(index=conditions, columns=genes)
    return np.nan_to_num(found.to_numpy(float), nan=0.0)


def _shown_genes(truth: Array, count: int) -> Array:
    """Positions of the genes to embed: half are the strongest, half an even sample of the rest.

    Strength is the root mean square over conditions (conditions, genes).
    """
    genes = truth.shape[1]
    if count >= genes:
        return np.arange(genes)
    strongest = np.argsort(-np.sqrt(np.square(truth).mean(axis=0)), kind="stable")
    # At least one of each half.
    count = max(count, 2)
    first, rest = strongest[: count // 2], strongest[count // 2 :]
    sample = rest[np.linspace(0, len(rest) - 1, count - count // 2).round().astype(int)]
    return np.concatenate([first, sample])
