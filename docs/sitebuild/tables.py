"""Tables of the reference that are written from the code: metrics, baselines."""

from __future__ import annotations

import math

from perturbgen.baselines import REGISTRY
from perturbgen.evaluate import HEADLINE, METRICS, Metric

_KINDS = {
    "tables": (
        "Of tables of differential expression",
        "A truth and a prediction of signed -log10 p, conditions x genes. `perturbgen score` and "
        "`perturbgen compare` compute these.",
    ),
    "layout": (
        "Of tables, and of where conditions were measured",
        "These need `score --layout`: a label of the plates and the row for every condition.",
    ),
    "reference": (
        "Of tables, beside the mean perturbation",
        "These need the mean perturbation of the training rows.",
    ),
    "cells": (
        "Of cells",
        "Real and generated cells of each condition, as points. `perturbgen.evaluate.score_points` "
        "and `perturbgen evaluate` compute these.",
    ),
    "counts": (
        "Of raw counts",
        "Measured and generated cells of perturbations, and measured control cells: the Virtual "
        "Cell Challenge's, with cell-eval2's names and values. `perturbgen score-cells` and "
        "`perturbgen.score_cells` compute these, each between the mean response of all "
        "perturbations (0) and a second measurement (1).",
    ),
    "log_probs": ("Of likelihoods", "How likely withheld cells are under a model."),
}


def pages() -> dict[str, str]:
    """The pages: names of files and their text."""
    return {"metrics.md": _metrics(), "baselines.md": _baselines()}


_METRICS_HEAD = """# Metrics

There are {all} metrics. This page is written from their definitions in the code.

* **best** is the value of a perfect prediction, **zeros** what a prediction of zeros gets (empty:
  it depends on the data).
* **scale-free** metrics do not change when a prediction is multiplied by a positive number. A
  method cannot win them by making its answers larger or smaller.
* The **negative control** of a metric is where its scale begins, when a report shows shares of the
  way from a negative to a positive control.
* The **headline** of a scorecard is the mean of {headline} scale-free metrics, marked ★.
"""
_BASELINES_HEAD = """# Baselines

{all} methods that a model has to beat. `perturbgen baseline NAME` prints the settings of one;
With `--train`, `--conditions` and `--out` it fits it and predicts.

* *random*: draws from the seed, so that a comparison runs it once a seed.
* *intervals*: says how sure it is of each value.
* *transductive*: what it predicts depends on which other conditions are asked for.

| baseline | what it is | in Open Problems | needs | uses | notes |
|---|---|---|---|---|---|"""


def _metrics() -> str:
    parts = [_METRICS_HEAD.format(all=len(METRICS), headline=len(HEADLINE))]
    needs = [*_KINDS, *dict.fromkeys(m.needs for m in METRICS.values() if m.needs not in _KINDS)]
    for need in needs:
        found = [metric for metric in METRICS.values() if metric.needs == need]
        title, text = _KINDS.get(need, (f"Of {need}", ""))
        if found:
            parts += [f"## {title}\n", text, "", _overview(found), "", *map(_definition, found)]
    return "\n".join(parts)


def _overview(metrics: list[Metric]) -> str:
    head = (
        "| metric | what it says | better | best | zeros | scale-free |\n|---|---|---|---|---|---|"
    )
    rows = [
        f"| [`{m.name}`](#metric-{_slug(m.name)}){' ★' if m.name in HEADLINE else ''} "
        f"| {markdown_cell(m.title)} | {'more' if m.higher_is_better else 'less'} "
        f"| {_number(m.best)} | {_number(m.zeros)} | {'yes' if m.scale_free else ''} |"
        for m in metrics
    ]
    return "\n".join([head, *rows])


def _definition(metric: Metric) -> str:
    control = markdown_cell(str(metric.negative_control).replace("_", " "))
    definition = markdown_cell(metric.definition)
    return (
        f"(metric-{_slug(metric.name)})=\n### {metric.name}\n\n{definition}\n\n"
        f"Range {_number(metric.low)} to {_number(metric.high)}; negative control: {control}; "
        f"version {metric.version}.\n"
    )


def _baselines() -> str:
    parts = [_BASELINES_HEAD.format(all=len(REGISTRY))]
    marks = ("random", "intervals", "transductive")
    for name, entry in REGISTRY.items():
        peer = f"`{entry.open_problems}`" if entry.open_problems else ""
        notes = ", ".join(mark for mark in marks if getattr(entry, mark, False))
        cells = (f"`{name}`", markdown_cell(entry.description), peer, ", ".join(entry.needs))
        parts.append(f"| {' | '.join((*cells, ', '.join(entry.uses), notes))} |")
    parts.append("\n## Settings and their defaults\n")
    for name, entry in REGISTRY.items():
        fields = entry.settings_class.model_fields.items()
        rows = [
            f"| `{key}` | `{field.get_default(call_default_factory=True)!r}` |"
            for key, field in fields
        ]
        if rows:
            parts += [f"### {name}\n", "| setting | default |\n|---|---|", *rows, ""]
    return "\n".join(parts) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return ("∞" if value > 0 else "-∞") if math.isinf(value) else f"{value:g}"


def markdown_cell(text: str) -> str:
    """A text of the code as Markdown: its marks are no emphasis and no end of a column."""
    pieces = text.split("`")
    for at in range(0, len(pieces), 2):
        for mark in "*_|<>[]$~#":
            pieces[at] = pieces[at].replace(mark, f"\\{mark}")
    return "`".join(pieces)


def _slug(name: str) -> str:
    return name.replace("_", "-")
