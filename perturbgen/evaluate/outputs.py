"""A scorecard as markdown, JSON and parquet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from perturbgen.core.console import format_value, plain
from perturbgen.core.files import atomic_path
from perturbgen.evaluate.records import METRICS
from perturbgen.evaluate.scorecard import HEADLINE_NAME, Scorecard


def to_markdown(card: Scorecard) -> str:
    """The scorecard for reading: headline, every metric between its controls, paired differences, strata."""
    parts = [
        "# Scorecard",
        describe(card),
        "## Headline",
        headline_note(card),
        markdown_table(headline_records(card)),
        "## Metrics",
        "Mean over conditions [95 % interval]; in brackets the share of the dynamic range, from the negative control "
        "(0) to the positive (1). A metric whose controls do not differ beyond chance has no range and ranks nobody.",
        markdown_table(metric_records(card)),
        "## Difference to the best baseline",
        "Paired over conditions [95 % interval], in the metric's own units; ↑ more is better, ↓ less.",
        markdown_table(_difference_records(card)),
    ]
    if len(card.stratum_table):
        parts += [
            "## Strata",
            f"Headline within groups of conditions.\n\n{markdown_table(stratum_records(card))}",
        ]
    return "\n\n".join(parts) + "\n"


def describe(card: Scorecard) -> str:
    """What was scored, in a sentence."""
    unit = (
        "conditions"
        if card.clusters is None
        else f"groups of conditions of equal {card.clusters.name or 'cluster'}"
    )
    negatives = " or ".join(card.negatives) + (
        ", the better on each metric" if len(card.negatives) > 1 else ""
    )
    return (
        f"{len(card.methods)} methods, controls among them, on {card.scores.shape[1]} conditions. Negative control: "
        f"{negatives}; positive control: "
        f"{card.positive or 'none, a perfect prediction in its place'}. Intervals: {card.resamples} bootstrap "
        f"resamples of {unit}, seed {card.seed}."
    )


def headline_note(card: Scorecard) -> str:
    """How the headline is made, and what is missing of it."""
    ranks = card.overall.ranks
    have = {metric.name: bool(ranks[i]) for i, metric in enumerate(card.metrics)}
    used = [name for name in card.headline if have.get(name)]
    without = [name for name in card.headline if name in have and not have[name]]
    if not have.keys() & set(card.headline):
        return "None of the headline's metrics was computed: nobody is ranked."
    if not used:
        return "No metric of the headline has a dynamic range on these data: nobody is ranked."
    note = f"Mean share of the dynamic range over {', '.join(used)}"
    note += (
        ": what no rescaling of a prediction can move."
        if all(METRICS[name].scale_free for name in used)
        else "."
    )
    return note + (f" Without range here: {', '.join(without)}." if without else "")


def _span(value: Any, low: Any, high: Any) -> str:
    """A value with its interval."""
    if pd.isna(value):
        return "-"
    return _digits(value) if pd.isna(low) else f"{_digits(value)} [{_digits(low)}, {_digits(high)}]"


def _digits(value: float, places: int = 3) -> str:
    """A number with so many decimals, and no sign where they are all 0."""
    return f"{round(float(value), places) + 0.0:.{places}f}"


def headline_records(card: Scorecard) -> list[dict[str, Any]]:
    """The ranking; controls and baselines have no place of their own but are shown where they stand."""
    records, place = [], 0
    for row in card.ranking.itertuples():
        ranked = row.role in ("method", "baseline") and not math.isnan(float(str(row.value)))
        place += ranked
        records.append(
            {
                "place": place if ranked else None,
                "method": row.method,
                "role": row.role,
                "headline": _span(row.value, row.low, row.high),
                f"to {row.baseline}": _span(
                    row.difference, row.difference_low, row.difference_high
                ),
            }
        )
    return records


def metric_records(card: Scorecard) -> list[dict[str, Any]]:
    """A row for each metric, a column for each method, best headline first."""
    rows = _by_method(card)
    return [
        {"metric": _title(card, metric.name)}
        | {name: _with_share(rows[name][metric.name]) for name in card.ranking["method"]}
        for metric in card.metrics
    ]


def _with_share(row: Any) -> str:
    """A mean, its interval and its share of the dynamic range."""
    share = (
        f" ({_digits(row.share, 2)})" if pd.notna(row.share) else "" if row.ranks else " (no range)"
    )
    return _span(row.value, row.low, row.high) + share


def _difference_records(card: Scorecard) -> list[dict[str, Any]]:
    """Paired differences of the methods, a row for each metric."""
    rows = _by_method(card)
    methods = [name for name in card.ranking["method"] if card.role(name) in ("method", "baseline")]
    return [
        {
            "metric": _title(card, metric.name),
            "best baseline": rows[card.methods[0]][metric.name].baseline,
        }
        | {
            name: _span(row.difference, row.difference_low, row.difference_high)
            for name, row in ((name, rows[name][metric.name]) for name in methods)
        }
        for metric in card.metrics
    ]


def stratum_records(card: Scorecard) -> list[dict[str, Any]]:
    """The headline of each level of each stratum, a column for each method."""
    rows = card.stratum_table[card.stratum_table["metric"] == HEADLINE_NAME]
    records = []
    for (stratum, level), group in rows.groupby(["stratum", "level"], sort=False):
        values = {row.method: _span(row.value, row.low, row.high) for row in group.itertuples()}
        shown = {name: values[name] for name in card.ranking["method"]}
        records.append(
            {"by": stratum, "level": level, "conditions": int(group["conditions"].iloc[0]), **shown}
        )
    return records


def _title(card: Scorecard, name: str) -> str:
    """A metric's name with an arrow for its direction."""
    metric = next(metric for metric in card.metrics if metric.name == name)
    return f"{name} {'↑' if metric.higher_is_better else '↓'}"


def _by_method(card: Scorecard) -> dict[str, dict[str, Any]]:
    """Rows of the table, without the headline, by method and metric."""
    found: dict[str, dict[str, Any]] = {name: {} for name in card.methods}
    for row in card.table[card.table["metric"] != HEADLINE_NAME].itertuples():
        found[str(row.method)][str(row.metric)] = row
    return found


def markdown_table(records: list[dict[str, Any]]) -> str:
    """Records as a markdown table."""
    if not records:
        return "(none)"
    head = list(records[0])
    lines = [head, ["---"] * len(head)]
    lines += [[format_value(record[key]).replace("|", "\\|") for key in head] for record in records]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _all_rows(card: Scorecard) -> pd.DataFrame:
    """The long table: every method and metric over all conditions (stratum and level empty) and in every stratum."""
    overall = card.table.assign(stratum="", level="")
    if not len(card.stratum_table):
        return overall
    return pd.concat([overall, card.stratum_table[overall.columns]], ignore_index=True)


def to_record(card: Scorecard) -> dict[str, Any]:
    """The scorecard for other programs: settings, metric records, the long table."""
    rows = _all_rows(card).astype(object)
    return {
        "negatives": list(card.negatives),
        "positive": card.positive,
        "baselines": list(card.baselines),
        "references": list(card.references),
        "headline": list(card.headline),
        "resamples": card.resamples,
        "seed": card.seed,
        "info": dict(card.info),
        "metrics": [metric.record() for metric in card.metrics],
        "rows": plain(rows.where(rows.notna(), None).to_dict("records")),
    }


def write_scorecard(card: Scorecard, folder: str | Path) -> list[Path]:
    """Save ``scorecard.md``, ``scorecard.parquet`` (the long table), ``scores.parquet`` (conditions) and JSON."""
    folder = Path(folder)
    paths = [
        folder / name
        for name in ("scorecard.md", "scorecard.parquet", "scores.parquet", "scorecard.json")
    ]
    with atomic_path(paths[0]) as part:
        part.write_text(to_markdown(card), encoding="utf-8")
    with atomic_path(paths[1]) as part:
        _all_rows(card).to_parquet(part, index=False)
    with atomic_path(paths[2]) as part:
        _condition_scores(card).to_parquet(part, index=False)
    with atomic_path(paths[3]) as part:
        part.write_text(json.dumps(to_record(card), indent=1, default=str), encoding="utf-8")
    return paths


def _condition_scores(card: Scorecard) -> pd.DataFrame:
    """Scores of single conditions: a row for each method and condition, a column for each metric."""
    conditions = list(range(card.scores.columns.nlevels))
    long = card.scores.stack(conditions, future_stack=True).unstack("metric")
    return long.reset_index()
