"""``score``: a truth and a prediction as labelled tables, to a table of metrics x conditions.

From a truth and several predictions to a scorecard.

Whether intervals around predictions hold what they promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.stats import Array
from perturbgen.evaluate import metrics as de
from perturbgen.evaluate.align import (
    BLOCK_ROWS,
    Policy,
    RowMetric,
    Rows,
    Values,
    align,
    in_common,
    select,
    shared,
)
from perturbgen.evaluate.metrics import (
    Distance,
    discrimination,
    rowwise_cosine,
    rowwise_mae,
    rowwise_pearson,
    rowwise_rmse,
)
from perturbgen.evaluate.records import HEADLINE, OPEN_PROBLEMS, Metric, choose_metrics
from perturbgen.evaluate.scorecard import Scorecard
from perturbgen.evaluate.strata import effect_sizes, strata

_CELL_TYPE = "cell_type"

_ROW_WISE: dict[str, RowMetric] = {
    "mean_rowwise_rmse": lambda t: rowwise_rmse(t.truth.values, t.prediction.values),
    "mean_rowwise_mae": lambda t: rowwise_mae(t.truth.values, t.prediction.values),
    "mean_rowwise_pearson": lambda t: rowwise_cosine(t.truth.centred, t.prediction.centred),
    "mean_rowwise_spearman": lambda t: rowwise_cosine(t.truth.ranks, t.prediction.ranks),
    "mean_rowwise_cosine": lambda t: rowwise_cosine(t.truth.values, t.prediction.values),
    "top_100_overlap": lambda t: de.top_overlap(t.truth.values, t.prediction.values, k=100),
    "sign_accuracy_de": lambda t: de.sign_accuracy(t.truth.values, t.prediction.values, t.truth.de),
    "de_precision": lambda t: de.precision(t.truth.de, t.prediction.de),
    "de_recall": lambda t: de.recall(t.truth.de, t.prediction.de),
    "de_overlap": lambda t: de.de_overlap(t.truth.de, t.prediction.de, t.prediction.given),
    "weighted_mse": lambda t: de.weighted_mse(t.truth.values, t.prediction.values, t.truth.weights),
    "weighted_r2_delta_control": lambda t: de.weighted_r2(
        t.truth.values, t.prediction.values, t.truth.weights
    ),
    "weighted_r2_delta_perturbed_mean": lambda t: de.weighted_r2(*t.deviations, t.truth.weights),
    "pearson_delta_perturbed_mean": lambda t: rowwise_pearson(*t.deviations),
}
_DISCRIMINATION: dict[str, Distance] = {
    "perturbation_discrimination": "cosine",
    "discrimination_l1": "l1",
    "centroid_accuracy": "euclidean",
}


def score(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    genes: Policy = "exact",
    rows: Policy = "exact",
    reference: pd.DataFrame | pd.Series | None = None,
    groups: str | pd.Series | None = _CELL_TYPE,
    level: float = 0.05,
    adjust: bool = True,
    clip: float | None = None,
    name: str = "the prediction",
) -> pd.DataFrame:
    """Every metric for every condition: metrics x conditions; its ``mean(axis=1)`` is what is usually reported.

    ``truth`` and ``prediction`` are conditions x genes, joined by label, of signed −log10 p (or any statistic, as long
    as no DE metric is wanted). Other genes or rows are errors unless ``genes`` or ``rows`` is ``truth`` (the prediction
    may have more) or ``intersection``. ``groups``, a level of the index or a column of labels, says which conditions
    are told apart from which. ``reference`` is the mean perturbation of the training rows, a value a gene or
    conditions x genes. A gene responds where its p, Benjamini-Hochberg adjusted within the condition with ``adjust``,
    is at most ``level``; this is seen in the tables as they are, everything else within ± ``clip``. NaN where a metric
    says nothing of a condition: no gene responds, nobody to be told apart from.
    """
    chosen = choose_metrics(metrics, reference=reference is not None)
    _require_level(level)
    true, predicted = align(truth, prediction, genes=genes, rows=rows, name=name)
    values = _compute(
        chosen,
        Values(true.to_numpy(), level, adjust, clip),
        Values(predicted.to_numpy(), level, adjust, clip),
        groups=_find_groups(true.index, groups),
        reference=_find_reference(true, reference),
    )
    return pd.DataFrame(
        values, pd.Index([metric.name for metric in chosen], name="metric"), true.index
    )


def _compute(
    metrics: Sequence[Metric],
    truth: Values,
    prediction: Values,
    *,
    groups: Array,
    reference: Array | None,
) -> Array:
    """The scores (metrics, conditions) of a prediction whose rows are the truth's."""
    names = [metric.name for metric in metrics if metric.name in _ROW_WISE]
    found = (
        dict(zip(names, _compute_rows(names, truth, prediction, reference), strict=True))
        if names
        else {}
    )
    for metric in metrics:
        if metric.name in _DISCRIMINATION:
            distance = _DISCRIMINATION[metric.name]
            found[metric.name] = discrimination(
                truth.values, prediction.values, groups, distance=distance
            )
    return np.reshape([found[metric.name] for metric in metrics], (len(metrics), len(truth.values)))


def _compute_rows(
    names: Sequence[str], truth: Values, prediction: Values, reference: Array | None
) -> Array:
    """The row-wise scores (metrics, conditions), a block of rows at a time."""
    parts = [np.empty((len(names), 0))]
    for number, (true, predicted) in enumerate(zip(truth.blocks, prediction.blocks, strict=True)):
        at = slice(number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS)
        rows = Rows(true, predicted, None if reference is None else reference[at])
        parts.append(
            np.reshape([_ROW_WISE[name](rows) for name in names], (len(names), len(true.values)))
        )
    return np.concatenate(parts, axis=1)


def _require_level(level: float) -> None:
    """A level of significance lies between 0 and 1."""
    if not 0 < level < 1:
        raise ConfigError(
            f"level={level} is no level of significance", expected="a number between 0 and 1"
        )


def _find_groups(conditions: pd.Index, groups: str | pd.Series | None) -> Array:
    """The group of each condition (conditions,): a level of the index, a column joined by label, or one for all."""
    if isinstance(groups, pd.Series):
        absent = conditions[~conditions.isin(groups.index)]
        if len(absent):
            raise SchemaError(
                f"groups say nothing of {len(absent)} conditions: {shorten(absent, 3)}"
            )
        return groups.reindex(conditions).astype(str).to_numpy()
    if groups in conditions.names and groups is not None:
        return conditions.get_level_values(groups).astype(str).to_numpy()
    if groups not in (None, _CELL_TYPE):
        raise SchemaError(
            f"the conditions have no level {groups!r}",
            expected=f"one of {shorten(conditions.names)}",
        )
    return np.full(len(conditions), "all")


def _find_reference(
    truth: pd.DataFrame, reference: pd.DataFrame | pd.Series | None
) -> Array | None:
    """The reference of each condition (conditions, genes), joined by label."""
    if reference is None:
        return None
    if isinstance(reference, pd.DataFrame):
        _, table = align(truth, reference, genes="truth", rows="truth", name="the reference")
        return table.to_numpy()
    absent = truth.columns[~truth.columns.isin(reference.index)]
    if len(absent):
        raise SchemaError(f"the reference has no value for {len(absent)} genes: {shorten(absent)}")
    values = reference.reindex(truth.columns).astype(float)
    return np.broadcast_to(values.to_numpy(), truth.shape)


def open_problems_mean_score(values: pd.Series, worst: pd.Series) -> float:
    """The mean score of Open Problems' website, from mean values of its five metrics and those of its worst control.

    Errors are scaled as 1 − v / v_worst (their worst control is ``sample``), correlations are taken as they are; each
    is cut to 0..1.
    """
    errors = list(OPEN_PROBLEMS[:2])
    scaled = pd.concat([1 - values[errors] / worst[errors], values[list(OPEN_PROBLEMS[2:])]])
    return float(scaled.clip(0, 1).mean())


_ZEROS = "zeros"


def scorecard(
    truth: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    negatives: Sequence[str] = (_ZEROS,),
    positive: str | None = None,
    baselines: Sequence[str] = (),
    conditions: pd.DataFrame | None = None,
    clusters: str | None = None,
    metrics: Sequence[str] | None = None,
    headline: Sequence[str] = HEADLINE,
    genes: Policy = "exact",
    rows: Policy = "exact",
    reference: pd.DataFrame | pd.Series | None = None,
    groups: str | pd.Series | None = _CELL_TYPE,
    level: float = 0.05,
    adjust: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
) -> Scorecard:
    """Score every prediction on the same conditions and genes, and set each score between its controls.

    ``zeros`` is added where it is among ``negatives`` and not among ``predictions``. With ``rows`` or ``genes`` as
    ``intersection``, all predictions are scored on what all of them have. ``conditions``, labelled as the truth, gives
    strata (``n_cells``, ``compound_seen``, ...) beside effect size and the levels of the index; ``clusters`` names a
    level of the index or a column of it whose conditions are resampled together. See :func:`score` for the rest.
    """
    chosen = choose_metrics(metrics, reference=reference is not None)
    _require_level(level)
    true, tables = _align_all(truth, predictions, genes=genes, rows=rows)
    if _ZEROS in negatives and _ZEROS not in tables:
        tables = {_ZEROS: pd.DataFrame(0.0, true.index, true.columns), **tables}
    values = Values(true.to_numpy(), level, adjust)
    told_apart, mean = _find_groups(true.index, groups), _find_reference(true, reference)
    scored = {}
    for name, table in tables.items():
        predicted = Values(table.to_numpy(), level, adjust)
        found = _compute(chosen, values, predicted, groups=told_apart, reference=mean)
        scored[name] = pd.DataFrame(found, [metric.name for metric in chosen], true.index)
    return Scorecard(
        join_scores(scored),
        tuple(negatives),
        positive,
        tuple(baselines),
        strata=strata(true.index, conditions, effect_sizes(values, true.index)),
        clusters=find_clusters(true.index, conditions, clusters),
        headline=tuple(headline),
        resamples=resamples,
        seed=seed,
        info={
            **(info or {}),
            "conditions": len(true),
            "genes": true.shape[1],
            "level": level,
            "adjusted_p": adjust,
        },
    )


def _align_all(
    truth: pd.DataFrame, predictions: Mapping[str, pd.DataFrame], *, genes: Policy, rows: Policy
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Truth and predictions with the same labels: with ``intersection``, what all of them have."""
    if not predictions:
        raise ConfigError("there is no prediction to score", expected="{name: conditions x genes}")
    kept = {}
    for name, table in predictions.items():
        truth, kept[name] = in_common(truth, table, genes=genes, rows=rows, name=name)
    true, aligned = truth, {}
    for name, table in kept.items():
        true, aligned[name] = align(truth, select(table, truth.index, truth.columns), name=name)
    return true, aligned


def join_scores(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of metrics x conditions, by method, as one with rows (method, metric); their conditions must agree.

    What :func:`score` and :func:`score_cells` return can be joined here, and given to :class:`Scorecard`.
    """
    if not scores:
        raise ConfigError("there are no scores to join")
    first = next(iter(scores.values()))
    for name, table in scores.items():
        shared(first.columns, table.columns, "exact", "conditions", "rows", name)
    joined = pd.concat(
        {name: table[first.columns] for name, table in scores.items()}, names=["method", "metric"]
    )
    return joined.rename_axis(index=["method", "metric"])


def find_clusters(
    index: pd.Index, conditions: pd.DataFrame | None, name: str | None
) -> pd.Series | None:
    """The cluster of each condition, from a level of the index or a column of the table of conditions."""
    if name is None:
        return None
    if name in index.names:
        return pd.Series(index.get_level_values(name), index)
    if conditions is not None and name in conditions:
        return conditions[name].reindex(index)
    columns = [] if conditions is None else list(conditions)
    raise SchemaError(
        f"there is no {name!r} to cluster by",
        expected=f"one of {shorten([*index.names, *columns], 12)}",
    )


Intervals = Mapping[float, tuple[pd.DataFrame, pd.DataFrame]]


def _coverage(truth: Array, lower: Array, upper: Array) -> Array:
    """Share of a row's true values within their intervals, ends included (conditions,)."""
    return ((truth >= lower) & (truth <= upper)).mean(axis=1)


def calibration(truth: pd.DataFrame, intervals: Intervals) -> pd.DataFrame:
    """Coverage and mean width of a method's intervals: rows (nominal level, condition).

    ``intervals`` gives for every nominal level, say 0.9, a lower and an upper table, labelled as the truth (both may
    have more conditions and genes).
    """
    parts = []
    for level, (lower, upper) in sorted(intervals.items()):
        if not 0 < level < 1:
            raise SchemaError(
                f"an interval of level {level}", expected="a nominal coverage between 0 and 1"
            )
        true, low = align(
            truth, lower, genes="truth", rows="truth", name=f"the lower ends at {level:g}"
        )
        _, high = align(
            truth, upper, genes="truth", rows="truth", name=f"the upper ends at {level:g}"
        )
        crossed = (low > high).to_numpy()
        if crossed.any():
            raise SchemaError(
                f"{int(crossed.sum())} lower ends at {level:g} are above their upper ends"
            )
        found = _coverage(true.to_numpy(), low.to_numpy(), high.to_numpy())
        width = (high - low).to_numpy().mean(axis=1)
        parts.append(pd.DataFrame({"coverage": found, "width": width}, index=true.index))
    if not parts:
        raise SchemaError("no intervals were given", expected="{0.9: (lower, upper)}")
    return pd.concat(dict(zip(sorted(intervals), parts, strict=True)), names=["nominal"])
