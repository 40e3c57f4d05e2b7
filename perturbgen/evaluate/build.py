"""From a truth and several predictions to a scorecard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from perturbgen.errors import ConfigError, SchemaError, shorten
from perturbgen.evaluate.align import Policy, align, in_common, select, shared
from perturbgen.evaluate.records import HEADLINE, choose_metrics
from perturbgen.evaluate.scorecard import Scorecard
from perturbgen.evaluate.scoring import CELL_TYPE, compute, find_groups, find_reference, require_level
from perturbgen.evaluate.strata import effect_sizes, strata
from perturbgen.evaluate.tables import Values

ZEROS = "zeros"


def scorecard(
    truth: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    negatives: Sequence[str] = (ZEROS,),
    positive: str | None = None,
    baselines: Sequence[str] = (),
    conditions: pd.DataFrame | None = None,
    clusters: str | None = None,
    metrics: Sequence[str] | None = None,
    headline: Sequence[str] = HEADLINE,
    genes: Policy = "exact",
    rows: Policy = "exact",
    reference: pd.DataFrame | pd.Series | None = None,
    groups: str | pd.Series | None = CELL_TYPE,
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
    require_level(level)
    true, tables = align_all(truth, predictions, genes=genes, rows=rows)
    if ZEROS in negatives and ZEROS not in tables:
        tables = {ZEROS: pd.DataFrame(0.0, true.index, true.columns), **tables}
    values = Values(true.to_numpy(), level, adjust)
    told_apart, mean = find_groups(true.index, groups), find_reference(true, reference)
    scored = {}
    for name, table in tables.items():
        predicted = Values(table.to_numpy(), level, adjust)
        found = compute(chosen, values, predicted, groups=told_apart, reference=mean)
        scored[name] = pd.DataFrame(found, [metric.name for metric in chosen], true.index)
    return Scorecard(
        join_scores(scored), tuple(negatives), positive, tuple(baselines),
        strata=strata(true.index, conditions, effect_sizes(values, true.index)),
        clusters=find_clusters(true.index, conditions, clusters), headline=tuple(headline),
        resamples=resamples, seed=seed,
        info={**(info or {}), "conditions": len(true), "genes": true.shape[1], "level": level, "adjusted_p": adjust},
    )  # fmt: skip


def align_all(
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
    joined = pd.concat({name: table[first.columns] for name, table in scores.items()}, names=["method", "metric"])
    return joined.rename_axis(index=["method", "metric"])


def find_clusters(index: pd.Index, conditions: pd.DataFrame | None, name: str | None) -> pd.Series | None:
    """The cluster of each condition, from a level of the index or a column of the table of conditions."""
    if name is None:
        return None
    if name in index.names:
        return pd.Series(index.get_level_values(name), index)
    if conditions is not None and name in conditions:
        return conditions[name].reindex(index)
    columns = [] if conditions is None else list(conditions)
    raise SchemaError(f"there is no {name!r} to cluster by", expected=f"one of {shorten([*index.names, *columns], 12)}")
