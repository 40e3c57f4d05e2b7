"""From labelled tables to scores: of one prediction, of cells, of several methods.

Also whether intervals around predictions hold what they promise (``calibration``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.stats import Array
from perturbgen.evaluate.card import Scorecard
from perturbgen.evaluate.catalogue import HEADLINE, choose_metrics
from perturbgen.evaluate.cells import cell_pair
from perturbgen.evaluate.labels import (
    Missing,
    Policy,
    align,
    align_all,
    effect_sizes,
    find_labels,
    shared,
    strata,
)
from perturbgen.evaluate.values import Metric, Pair, Values

_CELL_TYPE = "cell_type"
_COMPOUND = "compound"
_ZEROS = "zeros"


def score(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    genes: Policy = "exact",
    rows: Policy = "exact",
    reference: pd.DataFrame | pd.Series | None = None,
    groups: str | pd.Series | None = _CELL_TYPE,
    layout: pd.Series | None = None,
    level: float = 0.05,
    adjust: bool = True,
    clip: float | None = None,
    missing: Missing = "refuse",
    name: str = "the prediction",
) -> pd.DataFrame:
    """Every metric for every condition: metrics x conditions; usually ``mean(axis=1)`` is reported.

    ``truth`` and ``prediction`` are conditions x genes, joined by label, of signed −log10 p (or any
    statistic, as long as no DE metric is wanted). Other genes or rows are errors unless ``genes``
    or ``rows`` is ``truth`` (the prediction may have more) or ``intersection``; so are missing
    predictions, unless ``missing`` is ``zeros``, as which they then count. ``groups``, a level
    of the index or a column of labels, says which conditions are told apart from which, ``layout``
    which of them were measured in the same places. ``reference`` is the mean perturbation of the
    training rows, a value a gene or conditions x genes. A gene responds where its p,
    Benjamini-Hochberg adjusted within the condition with ``adjust``, is at most ``level``; this is
    seen in the tables as they are, everything else within ± ``clip``. NaN where a metric says
    nothing of a condition: no gene responds, or there is no other condition to be told apart from.
    """
    chosen = choose_metrics(metrics, reference=reference is not None, layout=layout is not None)
    _require_level(level)
    true, predicted = align(truth, prediction, genes=genes, rows=rows, missing=missing, name=name)
    pair = Pair(
        Values(true.to_numpy(), level, adjust, clip),
        Values(predicted.to_numpy(), level, adjust, clip),
        _find_groups(true.index, groups),
        _find_reference(true, reference),
        None if layout is None else _find_groups(true.index, layout),
    )
    return pd.DataFrame(pair.scores(chosen), _names(chosen), true.index)


def _names(metrics: Sequence[Metric]) -> pd.Index:
    return pd.Index([metric.name for metric in metrics], name="metric")


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(
            f"level={level} is no level of significance", expected="a number between 0 and 1"
        )


def _find_groups(conditions: pd.Index, groups: str | pd.Series | None) -> Array:
    """The group of each condition (conditions,): of an index level, a column, or one for all."""
    if isinstance(groups, pd.Series):
        absent = conditions[~conditions.isin(groups.index)]
        if len(absent):
            raise SchemaError(
                f"groups say nothing of {len(absent)} conditions: {shorten(absent, 3)}"
            )
        return groups.reindex(conditions).astype(str).to_numpy()
    if groups in conditions.names and groups is not None:
        return conditions.get_level_values(groups).astype(str).to_numpy()
    # The default asks for a level that tables of one cell type need not have.
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


def score_points(
    truth: Mapping[Hashable, pd.DataFrame | Array],
    prediction: Mapping[Hashable, pd.DataFrame | Array],
    *,
    metrics: Sequence[str] | None = None,
    rows: Policy = "exact",
) -> pd.DataFrame:
    """Every metric of cells for every condition: metrics x conditions.

    Labelled frames are joined by feature; arrays must have the same features in the same order.
    ``rows`` says what happens to conditions that only one side has, as in
    :func:`perturbgen.evaluate.score`.
    """
    chosen = choose_metrics(metrics, cells=True)
    if not len(truth) or not len(prediction):
        raise SchemaError("no cells were given", expected="{condition: cells x features}")
    known, found = pd.Index(list(truth)), pd.Index(list(prediction))
    labels = shared(known, found, rows, "conditions", "rows", "the prediction")
    columns = []
    for label in labels:
        pair = cell_pair(truth[label], prediction[label], label)
        columns.append([metric.compute(pair) for metric in chosen])
    return pd.DataFrame(np.column_stack(columns), _names(chosen), labels)


def scorecard(
    truth: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    negatives: Sequence[str] = (_ZEROS,),
    positive: str | None = None,
    baselines: Sequence[str] = (),
    conditions: pd.DataFrame | None = None,
    clusters: str | None = _COMPOUND,
    metrics: Sequence[str] | None = None,
    headline: Sequence[str] | None = None,
    genes: Policy = "exact",
    rows: Policy = "exact",
    reference: pd.DataFrame | pd.Series | None = None,
    groups: str | pd.Series | None = _CELL_TYPE,
    layout: str | None = None,
    level: float = 0.05,
    adjust: bool = True,
    missing: Missing = "refuse",
    resamples: int = 1000,
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
) -> Scorecard:
    """Score every prediction on the same conditions and genes, each score between its controls.

    ``zeros`` is added where it is among ``negatives`` and not among ``predictions``. With ``rows``
    or ``genes`` as ``intersection``, all predictions are scored on what all of them have.
    ``conditions``, labelled as the truth, gives strata (``n_cells``, ``compound_seen``, ...) beside
    effect size and the levels of the index; ``clusters`` names a level of the index or a column of
    it: conditions that are resampled together, by default those of one compound, None for each
    alone; ``layout`` one that says where they were measured. What ``headline`` names is computed,
    too. See :func:`score` for the rest.
    """
    given: dict[str, Any] = {"reference": reference is not None, "layout": layout is not None}
    chosen = choose_metrics(metrics, headline=headline, **given)
    _require_level(level)
    true, tables = align_all(truth, predictions, genes=genes, rows=rows, missing=missing)
    # A published generative approach to OP3 scored worse than zeros: they are there by default.
    if _ZEROS in negatives and _ZEROS not in tables:
        tables = {_ZEROS: pd.DataFrame(0.0, true.index, true.columns), **tables}
    # One for all methods: ranks and responding genes of the truth are found once.
    values = Values(true.to_numpy(), level, adjust)
    told_apart, mean = _find_groups(true.index, groups), _find_reference(true, reference)
    where = find_labels(true.index, conditions, layout)
    places = None if where is None else where.astype(str).to_numpy()
    scored = {}
    for name, table in tables.items():
        pair = Pair(values, Values(table.to_numpy(), level, adjust), told_apart, mean, places)
        scored[name] = pd.DataFrame(pair.scores(chosen), _names(chosen), true.index)
    about = {"conditions": len(true), "genes": true.shape[1], "level": level, "adjusted_p": adjust}
    return Scorecard(
        join_scores(scored),
        tuple(negatives),
        positive,
        tuple(baselines),
        strata=strata(true.index, conditions, effect_sizes(values, true.index)),
        clusters=_find_clusters(true.index, conditions, clusters),
        headline=tuple(m.name for m in choose_metrics(headline or HEADLINE, **given)),
        resamples=resamples,
        seed=seed,
        info={**(info or {}), **about},
    )


def _find_clusters(
    index: pd.Index, conditions: pd.DataFrame | None, name: str | None
) -> pd.Series | None:
    """What is resampled together; tables of one compound alone need not name it."""
    told = [*index.names, *([] if conditions is None else conditions)]
    if name == _COMPOUND and name not in told:
        return None
    return find_labels(index, conditions, name)


def join_scores(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of metrics x conditions, by method, as one with rows (method, metric).

    What :func:`score` and :func:`score_points` return can be joined here, and given to
    :class:`Scorecard`.
    """
    if not scores:
        raise ConfigError("there are no scores to join")
    # Exactly the same conditions: means over different ones cannot be compared.
    first = next(iter(scores.values())).columns
    for name, table in scores.items():
        shared(first, table.columns, "exact", "conditions", "rows", name)
    levels = ["method", "metric"]
    joined = pd.concat({name: table[first] for name, table in scores.items()}, names=levels)
    return joined.rename_axis(index=levels)


_Intervals = Mapping[float, tuple[pd.DataFrame, pd.DataFrame]]
_ENDLESS: Final = 1e300


def calibration(truth: pd.DataFrame, intervals: _Intervals) -> pd.DataFrame:
    """Coverage and mean width of a method's intervals: rows (nominal level, condition).

    ``intervals`` gives for every nominal level, say 0.9, a lower and an upper table, labelled as
    the truth (both may have more conditions and genes). A value at an end of its interval is
    covered. An infinite end says that nothing is known, as of a fit without a residual.
    """
    parts = {}
    for level, (lower, upper) in sorted(intervals.items()):
        if not 0 < level < 1:
            raise SchemaError(
                f"an interval of level {level}", expected="a nominal coverage between 0 and 1"
            )
        labels: dict[str, Any] = {"genes": "truth", "rows": "truth"}
        # a table to be scored may not be infinite, an end may
        lower = lower.astype(float).clip(lower=-_ENDLESS)
        upper = upper.astype(float).clip(upper=_ENDLESS)
        true, low = align(truth, lower, name=f"the lower ends at {level:g}", **labels)
        _, high = align(truth, upper, name=f"the upper ends at {level:g}", **labels)
        crossed = (low > high).to_numpy()
        if crossed.any():
            raise SchemaError(
                f"{int(crossed.sum())} lower ends at {level:g} are above their upper ends"
            )
        # Ends included: an interval of no width covers what it says exactly.
        inside = ((true >= low) & (true <= high)).to_numpy().mean(axis=1)
        endless = ((low <= -_ENDLESS) | (high >= _ENDLESS)).to_numpy().any(axis=1)
        width = np.where(endless, np.inf, (high - low).to_numpy().mean(axis=1))
        parts[level] = pd.DataFrame({"coverage": inside, "width": width}, index=true.index)
    if not parts:
        raise SchemaError("no intervals were given", expected="{0.9: (lower, upper)}")
    return pd.concat(parts, names=["nominal"])
