"""What a scorecard answers, in sentences: who is best, by how much, how surely, and where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from perturbgen.evaluate.card import HEADLINE_NAME, Scorecard

# the stratum that scorecard() makes of the truth; labels of its levels begin with their order
EFFECT: Final = "responding genes"
EFFECT_NOTE: Final = (
    "The best method of each level (the best baseline where there is no method), and how far it is "
    "above the best baseline, paired [95 % interval]. Above 1 is nearer to the truth than the "
    "positive control, whose own noise counts where effects are small."
)
_RANKED: Final = ("method", "baseline")


@dataclass(frozen=True)
class Verdict:
    """The sentences about a scorecard, the first of which a reader came for."""

    card: Scorecard

    def sentences(self) -> list[str]:
        """Who is best; on which metrics it is not; and among strong and weak conditions."""
        ranked = self._ranked(self.card.table)
        if not len(ranked):
            return [
                "Nobody can be ranked: on no metric of the headline do the controls differ by "
                "more than chance."
            ]
        best = _champion(ranked)
        first = [_who(ranked, self.card), *self._effects(), self._above(best.value)]
        return [part for part in (*first, self._next(ranked), self._metrics(best.method)) if part]

    def _above(self, value: float) -> str:
        """What it means to be better than a second measurement, where something is."""
        if self.card.positive is None or not value > 1:
            return ""
        return (
            f"To stand above 1 is not to know more than {self.card.positive} does: where few genes "
            "respond, its own noise counts against it."
        )

    def effects(self) -> list[dict[str, Any]]:
        """A record for each level of effect size, the strongest first; none without strata."""
        records = []
        for level, group in self.levels():
            ranked = self._ranked(group)
            record = {EFFECT: range_of(level), "conditions": group["conditions"].iloc[0]}
            if not len(ranked):
                records.append(record | dict.fromkeys(["best", "headline", "to the best baseline"]))
                continue
            first = _champion(ranked)
            bar = "" if first.baseline == first.method else f" ({first.baseline})"
            difference = _span(first.difference, first.difference_low, first.difference_high)
            shown = {"best": first.method, "headline": _span(first.value, first.low, first.high)}
            records.append(record | shown | {"to the best baseline": f"{difference}{bar}"})
        return records

    def _ranked(self, table: pd.DataFrame) -> pd.DataFrame:
        """The headlines of what takes a place, best first."""
        rows = table[(table["metric"] == HEADLINE_NAME) & table["role"].isin(_RANKED)]
        rows = rows[rows["value"].notna()]
        return rows.sort_values(["value", "method"], ascending=[False, True], ignore_index=True)

    def levels(self) -> list[tuple[str, pd.DataFrame]]:
        """The headlines of each level of effect size, the strongest first."""
        table = self.card.stratum_table
        if not len(table):
            return []
        rows = table[(table["stratum"] == EFFECT) & (table["metric"] == HEADLINE_NAME)]
        groups = [(str(name), group) for name, group in rows.groupby("level", sort=False)]
        return sorted(groups, key=lambda found: _least(found[0]), reverse=True)

    def _next(self, ranked: pd.DataFrame) -> str:
        """How far the second is behind, unless it was named as the best baseline."""
        if len(ranked) < 2:
            return ""
        first, second = ranked["method"].iloc[:2]
        named = ranked["role"].eq("method").any()
        if named and ranked["baseline"].iloc[0] in (first, second):
            return ""
        value, low, high = self.card.difference(first, second)
        if _level(value, low, high):
            return f"{first} and {second} are level."
        sure = _certain(low, high)
        return f"The next, {second}, is {_digits(value)} behind{_interval(low, high)}{sure}."

    def _metrics(self, method: str) -> str:
        """On which of the metrics that rank a method is not above the best baseline."""
        table = self.card.table
        rows = table[(table["method"] == method) & (table["metric"] != HEADLINE_NAME)]
        known = {metric.name: metric for metric in self.card.metrics}
        better: list[str] = []
        worse: list[str] = []
        open_: list[str] = []
        for row in rows[rows["ranks"]].itertuples():
            metric = known[str(row.metric)]
            ends = [metric.sign * float(str(v)) for v in (row.difference_low, row.difference_high)]
            if row.baseline == method or pd.isna(ends[0]):
                continue
            low, high = sorted(ends)
            (better if low > 0 else worse if high < 0 else open_).append(metric.title)
        counted = len(better) + len(worse) + len(open_)
        if not counted:
            return ""
        if len(open_) == counted:
            each = f"Beside the best baseline on each metric, {method} cannot be told apart on any"
            return f"{each} of {counted} metrics."
        text = f"Beside the best baseline on each metric, {method} is better beyond chance on "
        text += f"{len(better)} of {counted} metrics"
        text += f", worse on {_listed(worse)}" if worse else ", worse on none"
        return text + (f", and cannot be told apart on {_listed(open_)}." if open_ else ".")

    def _effects(self) -> list[str]:
        """Who is best among the strongest conditions, and among the weakest."""
        levels = self.levels()
        if len(levels) < 2:
            return []
        told = [
            _among(name, level, self._ranked(group))
            for name, (level, group) in (("strong", levels[0]), ("weak", levels[-1]))
        ]
        return [f"{told[0]}; {told[1]}."]


def range_of(level: str) -> str:
    """The range of a level of effect size as people write it, without the number of its order."""
    least, _, most = level.split(": ", 1)[-1].partition(" to ")
    exclusive = most.startswith("below ")
    end = most.removeprefix("below ")
    if exclusive and end.isdigit():  # numbers of genes are whole
        end = str(int(end) - 1)
    return f"{least} to {end}" if end not in ("", least) else least


def _least(level: str) -> float:
    """The lower end of a level's range; few levels are single numbers, not to be sorted as text."""
    try:
        return float(range_of(level).split(" ")[0])
    except ValueError:
        return float("inf")


def _champion(ranked: pd.DataFrame) -> Any:
    """The best that is no baseline, if anything is."""
    methods = ranked[ranked["role"] == "method"]
    return next((methods if len(methods) else ranked).itertuples())


def _who(ranked: pd.DataFrame, card: Scorecard) -> str:
    """Who is best, and how far above the best baseline (or the negative control above all)."""
    mine = _champion(ranked)
    ends = f"(0 is {' or '.join(card.negatives)}, 1 {card.positive or 'perfect'})"
    value = f"{_digits(mine.value)}{_interval(mine.low, mine.high)}"
    sure = _certain(mine.difference_low, mine.difference_high)
    apart = _interval(mine.difference_low, mine.difference_high)
    kind = "the negative control" if mine.baseline in card.negatives else "the best baseline"
    if mine.method == mine.baseline:
        return f"{mine.method} is best, all that was compared being baselines: {value} {ends}."
    difference = _digits(mine.difference)
    if _level(mine.difference, mine.difference_low, mine.difference_high):
        return f"{mine.method} and {mine.baseline}, {kind}, are level: headline {value} {ends}."
    if mine.difference > 0:
        above = f"{difference} above {mine.baseline}, {kind}"
        return f"{mine.method} is best: headline {value} {ends}, {above}{apart}{sure}."
    return (
        f"Nothing beats {kind}, {mine.baseline}: the best of the others, {mine.method}, stands at "
        f"{difference} to it{apart}{sure}; its headline is {_digits(mine.value)} {ends}."
    )


def _among(name: str, level: str, ranked: pd.DataFrame) -> str:
    where = f"mong the {name} conditions ({range_of(level)} responding genes)"
    where = f"A{where}" if name == "strong" else f"a{where}"
    if not len(ranked):
        return f"{where} nobody can be ranked, since the controls do not differ beyond chance"
    first: Any = next(ranked.itertuples())
    apart = f"{where} {first.method} is best ({_digits(first.value)})"
    if first.method == first.baseline:
        return f"{apart}, which is a baseline" if first.role == "baseline" else apart
    if _level(first.difference, first.difference_low, first.difference_high):
        return f"{where} {first.method} and {first.baseline} are level ({_digits(first.value)})"
    sure = _certain(first.difference_low, first.difference_high)
    return f"{apart}, {_digits(first.difference)} above {first.baseline}{sure}"


def _level(*numbers: float) -> bool:
    """Whether a difference and its interval, where there is one, are 0 as they are shown."""
    return all(pd.isna(number) or abs(number) < 0.0005 for number in numbers)


def _certain(low: float, high: float) -> str:
    """Whether a difference with this interval is more than chance."""
    if pd.isna(low):
        return " (too few conditions to speak of chance)"
    return ", which is more than chance" if low > 0 or high < 0 else ", which chance could explain"


def _interval(low: float, high: float) -> str:
    return "" if pd.isna(low) else f" [{_digits(low)}, {_digits(high)}]"


def _span(value: float, low: float, high: float) -> str:
    return f"{_digits(value)}{_interval(low, high)}"


def _digits(value: float) -> str:
    # Adding 0 takes the sign from a number whose decimals are all 0.
    return f"{round(float(value), 3) + 0.0:.3f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
