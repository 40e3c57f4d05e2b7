"""A scorecard in writing: markdown and the records of its tables, JSON, parquet."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.console import format_value, plain
from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path
from perturbgen.evaluate.card import FEW, HEADLINE_NAME, Scorecard
from perturbgen.evaluate.catalogue import METRICS
from perturbgen.evaluate.values import Metric
from perturbgen.evaluate.verdict import EFFECT_NOTE, Verdict


@dataclass(frozen=True)
class ScorecardText:
    """What is written about a scorecard: sentences, the records of its tables, its files."""

    card: Scorecard

    def markdown(self) -> str:
        """The scorecard for reading: headline, metrics between controls, differences, strata."""
        parts = [
            "# Scorecard",
            " ".join(Verdict(self.card).sentences()),
            self.describe(),
            "## Headline",
            self.headline_note(),
            markdown_table(self.headline_records()),
            "## Metrics",
            "Mean over conditions [95 % interval]; in brackets the share of the dynamic range, "
            "from the negative control (0) to the positive (1). A metric whose controls do not "
            "differ beyond chance has no range and ranks nobody.",
            markdown_table(self.metric_records()),
            "## Difference to the best baseline",
            "Paired over conditions [95 % interval], in the metric's own units; ↑ more is better, "
            "↓ less.",
            markdown_table(self._difference_records()),
        ]
        if effects := Verdict(self.card).effects():
            note = f"By how many genes respond in truth. {EFFECT_NOTE}"
            parts += ["## Strong and weak conditions", note, markdown_table(effects)]
        if len(self.card.stratum_table):
            parts += ["## Strata", self.strata_note()]
            parts += [markdown_table(self.stratum_records())]
        return "\n\n".join(parts) + "\n"

    def describe(self) -> str:
        """What was scored, in a sentence."""
        card, unit = self.card, "conditions"
        if self._clusters is not None:
            unit = f"groups of conditions of equal {self._cluster_name}"
        drawn = f"Intervals: {card.resamples} bootstrap resamples of {unit}, seed {card.seed}."
        better = ", the better on each metric" if len(card.negatives) > 1 else ""
        return (
            f"{len(card.methods)} methods, controls among them, on {card.scores.shape[1]} "
            f"conditions. Negative control: {' or '.join(card.negatives)}{better}; "
            f"positive control: {card.positive or 'none, a perfect prediction in its place'}. "
            + " ".join([*([drawn] if card.overall.drawn >= FEW else []), *self.notes()])
        )

    def notes(self) -> list[str]:
        """What a reader has to know of the intervals and of the headline, in sentences."""
        return [*self._about_chance(), *self._not_in_the_headline()]

    @property
    def _clusters(self) -> list[Any] | None:
        return self.card.clusters_of(np.ones(self.card.scores.shape[1], bool))

    @property
    def _cluster_name(self) -> str:
        clusters = self.card.clusters
        return str((clusters is not None and clusters.name) or "cluster")

    def _about_chance(self) -> Iterator[str]:
        """What is resampled, where it is not what was asked for."""
        drawn, name = self.card.overall.drawn, self._cluster_name
        if drawn < FEW:
            said = "one condition says" if drawn == 1 else f"{drawn} conditions say"
            yield f"No intervals: {said} nothing of chance; at least {FEW} are needed."
        elif self.card.clusters is not None and self._clusters is None:
            count = self.card.clusters.nunique()
            there = f"there is one {name}" if count == 1 else f"there are only {count} {name}s"
            yield f"Resampled: conditions, since {there}: intervals say nothing of another {name}."

    def _not_in_the_headline(self) -> Iterator[str]:
        """Metrics of somebody else, who may wonder why theirs ranks nobody."""
        for metric in self.card.metrics:
            if metric.code and metric.name not in self.card.headline:
                named = json.dumps([*self.card.headline, metric.name])
                yield f"{metric.name} is shown, and not in the headline: headline = {named} has it."

    def headline_note(self) -> str:
        """How the headline is made, and what is missing of it."""
        # A reader has to see which of the headline's metrics said nothing on these data.
        ranks, taken = self.card.overall.ranks, self.card.overall.heads
        have = {metric.name: bool(ranks[i]) for i, metric in enumerate(self.card.metrics)}
        heads = {metric.name for i, metric in enumerate(self.card.metrics) if taken[i]}
        enough = {metric.name: self._of_all(metric) for metric in self.card.metrics}
        used = [name for name in self.card.headline if name in heads]
        few = [name for name in self.card.headline if have.get(name) and name not in heads]
        without = [name for name in self.card.headline if name in have and not have[name]]
        if not have.keys() & set(self.card.headline):
            return "None of the headline's metrics was computed: nobody is ranked."
        left = "".join(f" Left out: {METRICS[name].title}{enough[name]} only." for name in few)
        if not used:
            said = "No metric of the headline has a dynamic range on these data: nobody is ranked."
            return said + left
        free = all(METRICS[name].scale_free for name in used)
        note = f"Mean share of the dynamic range over {_titles(used)}"
        note += ": what no rescaling of a prediction can move." if free else "."
        return note + (f" Without range here: {_titles(without)}." if without else "") + left

    def headline_records(self) -> list[dict[str, Any]]:
        """The ranking; controls and references are shown where they stand, without a place."""
        records, place = [], 0
        for row in self.card.ranking.itertuples():
            # Controls are there to be compared with, references to be seen: neither takes a place.
            ranked = row.role in ("method", "baseline") and not math.isnan(float(str(row.value)))
            place += ranked
            about = {"place": place if ranked else None, "method": row.method, "role": row.role}
            difference = _span(row.difference, row.difference_low, row.difference_high)
            shown = {"headline": _span(row.value, row.low, row.high)}
            records.append(about | shown | {f"to {row.baseline}": difference})
        return records

    def metric_records(self) -> list[dict[str, Any]]:
        """A row for each metric, a column for each method: mean, interval, share of the range."""

        def text(row: Any) -> str:
            share = "" if row.ranks else " (no range)"
            if pd.notna(row.share):
                share = f" ({_digits(row.share, 2)})"
            return _span(row.value, row.low, row.high) + share

        return [
            {"metric": title} | {name: text(rows[name]) for name in self.card.ranking["method"]}
            for title, rows in self._rows()
        ]

    def _difference_records(self) -> list[dict[str, Any]]:
        """Paired differences of the methods to the best baseline, a row for each metric."""
        shown = self.card.ranking
        methods = shown.loc[shown["role"].isin(["method", "baseline"]), "method"]
        records = []
        for title, rows in self._rows():
            record = {"metric": title, "best baseline": rows[self.card.methods[0]].baseline}
            for row in (rows[name] for name in methods):
                record[row.method] = _span(row.difference, row.difference_low, row.difference_high)
            records.append(record)
        return records

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each metric with the way that is better, and its rows by method."""
        for metric in self.card.metrics:
            rows = self.card.table[self.card.table["metric"] == metric.name]
            title = f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"
            yield title + self._of_all(metric), {str(row.method): row for row in rows.itertuples()}

    def titles(self) -> dict[str, str]:
        """The title of each metric, with the number of its conditions where they are not all."""
        return {one.name: one.title + self._of_all(one) for one in self.card.metrics}

    def _of_all(self, metric: Metric) -> str:
        """Of how many conditions a metric says something, where it is not all."""
        names = [one.name for one in self.card.metrics]
        known, every = self.card.overall.known[names.index(metric.name)], self.card.scores.shape[1]
        return "" if known == every else f", on {known} of {every} conditions"

    def strata_note(self) -> str:
        """What the numbers of strata are, and how their intervals are made."""
        note = "Headline within groups of conditions"
        if self._clusters is not None:
            note += f"; where they are of fewer than {FEW} {self._cluster_name}s, conditions are "
            note += "resampled"
        return f"{note}; fewer than {FEW} conditions have no interval."

    def stratum_records(self) -> list[dict[str, Any]]:
        """The headline of each level of each stratum, a column for each method."""
        rows = self.card.stratum_table[self.card.stratum_table["metric"] == HEADLINE_NAME]
        records = []
        for (stratum, level), group in rows.groupby(["stratum", "level"], sort=False):
            values = {row.method: _span(row.value, row.low, row.high) for row in group.itertuples()}
            about = {"by": stratum, "level": level, "conditions": int(group["conditions"].iloc[0])}
            records.append(about | {name: values[name] for name in self.card.ranking["method"]})
        return records

    def _all_rows(self) -> pd.DataFrame:
        """The long table: every method and metric over all conditions and in every stratum."""
        overall = self.card.table.assign(stratum="", level="")
        if not len(self.card.stratum_table):
            return overall
        return pd.concat([overall, self.card.stratum_table[overall.columns]], ignore_index=True)

    def record(self) -> dict[str, Any]:
        """The scorecard for other programs: settings, metric records, the long table."""
        # NaN is no JSON, and only an object column can hold None.
        rows = self._all_rows().astype(object)
        return {
            "negatives": list(self.card.negatives),
            "positive": self.card.positive,
            "baselines": list(self.card.baselines),
            "references": list(self.card.references),
            "headline": list(self.card.headline),
            "resamples": self.card.resamples,
            "seed": self.card.seed,
            "info": dict(self.card.info),
            "metrics": [metric.record() for metric in self.card.metrics],
            "rows": plain(rows.where(rows.notna(), None).to_dict("records")),
        }

    def write(self, folder: str | Path) -> list[Path]:
        """Save the scorecard: markdown, JSON, the long table and the scores of conditions."""
        names = ("scorecard.md", "scorecard.parquet", "scores.parquet", "scorecard.json")
        text, table, scores, record = paths = [Path(folder) / name for name in names]
        with atomic_path(text) as part:
            part.write_text(self.markdown(), encoding="utf-8")
        write_table(self._all_rows(), table)
        levels = list(range(self.card.scores.columns.nlevels))
        by_condition = self.card.scores.stack(levels, future_stack=True).unstack("metric")
        write_table(by_condition.reset_index(), scores)
        with atomic_path(record) as part:
            part.write_text(json.dumps(self.record(), indent=1, default=str), encoding="utf-8")
        return paths


def _titles(names: list[str]) -> str:
    return ", ".join(METRICS[name].title for name in names)


def _span(value: Any, low: Any, high: Any) -> str:
    """A value with its interval."""
    if pd.isna(value):
        return "-"
    return _digits(value) if pd.isna(low) else f"{_digits(value)} [{_digits(low)}, {_digits(high)}]"


def _digits(value: float, places: int = 3) -> str:
    # Adding 0 takes the sign from a number whose decimals are all 0.
    return f"{round(float(value), places) + 0.0:.{places}f}"


def markdown_table(records: list[dict[str, Any]]) -> str:
    """Records as a markdown table."""
    if not records:
        return "(none)"
    head = list(records[0])
    lines = [head, ["---"] * len(head)]
    lines += [[_escaped(format_value(record[key])) for key in head] for record in records]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _escaped(text: str) -> str:
    """A name as it is: one may hold the bar that separates columns, a link or a tag."""
    return re.sub(r"[|<>]|\](?=\()", lambda found: "\\" + found[0], text)
