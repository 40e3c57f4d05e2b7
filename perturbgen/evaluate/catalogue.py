"""All metrics by name, and those of them that a scorecard is headed by."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import pandas as pd

from perturbgen.core.errors import ConfigError, PerturbgenError
from perturbgen.core.extensions import Catalogue
from perturbgen.evaluate.cells import CELL_METRICS
from perturbgen.evaluate.contract import metric_breaches
from perturbgen.evaluate.counts import COUNT_METRICS
from perturbgen.evaluate.foreign import adopt
from perturbgen.evaluate.metrics import TABLE_METRICS
from perturbgen.evaluate.values import Metric

_log = logging.getLogger(__name__)

_BUILT_IN: Final = {
    metric.name: metric for metric in (*TABLE_METRICS, *CELL_METRICS, *COUNT_METRICS)
}
METRICS: Final = Catalogue("metric", _BUILT_IN, adopt)
_OPEN_PROBLEMS: Final = (
    "mean_rowwise_rmse",
    "mean_rowwise_mae",
    "mean_rowwise_pearson",
    "mean_rowwise_spearman",
    "mean_rowwise_cosine",
)
# What neither rescaling nor answering everywhere can raise. Rescaling a shrunken prediction
# improves errors, inflation discrimination by L1 or Euclidean distance, a recall of 1 is had by
# calling everything responding; and correlations alone reward a prediction that tells no compound
# from another, which discrimination gives one half.
HEADLINE: Final = (
    "mean_rowwise_pearson",
    "mean_rowwise_spearman",
    "perturbation_discrimination",
    "top_100_overlap",
)
_EXPLAIN: Final[dict[str, tuple[str, str]]] = {
    "cells": (
        "needs cells, and DE tables were given",
        "score_points({condition: cells x features}, ...)",
    ),
    "tables": (
        "needs DE tables, and cells were given",
        "score(truth, prediction) with conditions x genes",
    ),
    "reference": (
        "needs the mean perturbation of the training rows, and none was given",
        "score(..., reference=train.mean()), or the mean of each cell type as a frame",
    ),
    "layout": (
        "needs to know where each condition was measured, and was not told",
        "score(..., layout=...), a label of plates and row for every condition",
    ),
    "counts": (
        "needs raw counts of cells, and those of a control",
        "perturbgen.score_cells(prediction, truth, perturbation=..., control=...)",
    ),
    "log_probs": (
        "needs log probabilities of withheld cells",
        "held_out_nll(log_probs, conditions)",
    ),
}


def choose_metrics(
    names: Sequence[str] | None,
    *,
    headline: Sequence[str] | None = None,
    cells: bool = False,
    counts: bool = False,
    reference: bool = False,
    layout: bool = False,
) -> list[Metric]:
    """The metrics of these names, or all that can be computed, and those of ``headline``; others
    are an error.
    """
    given = {"cells": cells, "counts": counts, "reference": reference, "layout": layout}
    possible = [name for name, is_given in given.items() if is_given]
    possible += [] if cells or counts else ["tables"]
    if names is None:
        every = [metric for metric in METRICS.values() if metric.needs in possible]
        every = [metric for metric in every if not metric.code or _can_be_used(metric.name)]
        if headline is None:
            return every
        names = [metric.name for metric in every]
    chosen = [METRICS[_named(name)] for name in dict.fromkeys([*names, *(headline or ())])]
    for metric in chosen:
        if metric.needs not in possible:
            found, fix = _EXPLAIN[metric.needs]
            raise ConfigError(f"{metric.name} {found}", cause=metric.definition, fix=fix)
    return chosen


def _named(name: object) -> str:
    """A metric by its name; an object would have to be found again where a scorecard is read."""
    if isinstance(name, str):
        return name
    if isinstance(name, Metric) and _BUILT_IN.get(name.name) is name:
        return name.name
    raise ConfigError(
        f"{name!r} is no name of a metric",
        expected="names: of a built-in metric, or module:OBJECT of your own",
        fix="put the object into a file of the working directory, mine.py: 'mine:OBJECT'",
    )


def require_kept(metric: Metric) -> None:
    """An error where a metric of somebody else breaks what it promises; all of it is in there."""
    found = list(metric_breaches(metric))
    if found:
        raise METRICS.extension(metric.name).broken("; ".join(found))


@lru_cache
def _can_be_used(name: str) -> bool:
    """Whether a metric that nobody asked for keeps its promises; one that does not is told once."""
    extension = METRICS.extension(name)
    try:
        wrong = "; ".join(metric_breaches(METRICS[name]))
    except PerturbgenError as error:
        wrong = error.what.removeprefix(f"{extension} ")
    if wrong:
        _log.warning("%s is left out: it %s", extension, wrong)
    return not wrong


def open_problems_mean_score(values: pd.Series, worst: pd.Series) -> float:
    """The mean score of Open Problems' website: five metrics, scaled by its worst control's.

    Errors are scaled as 1 − v / v_worst (their worst control is ``sample``), correlations are taken
    as they are; each is cut to 0..1.
    """
    errors = list(_OPEN_PROBLEMS[:2])
    scaled = pd.concat([1 - values[errors] / worst[errors], values[list(_OPEN_PROBLEMS[2:])]])
    return float(scaled.clip(0, 1).mean())
