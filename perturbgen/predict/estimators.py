"""Estimators of a condition's signed -log10 p from what a generator says, none of which averages p.

One replicate of even a perfect generator is barely better than zeros: its t is the true one plus
the noise that a real experiment has, and so is the t it is compared with. Averaging t over
replicates takes the first noise out. A mean of p is ruled by its largest one: a single weak
replicate hides an effect.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from perturbgen.core.console import progress
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.stats import divide
from perturbgen.de import DETable, log_p_t
from perturbgen.predict.calibration import Task
from perturbgen.predict.experiment import PredictSettings
from perturbgen.predict.wells import Wells

log = logging.getLogger(__name__)


def _signed_log10_p(t: pd.DataFrame, df: pd.DataFrame) -> pd.DataFrame:
    """sign(t) x -log10 p of t with df degrees of freedom, conditions x genes; NaN stays NaN."""
    if not (t.index.equals(df.index) and t.columns.equals(df.columns)):
        raise SchemaError(
            "t and df are of other conditions or genes",
            fix="join them by label: df.reindex_like(t)",
        )
    values = np.empty(t.shape)
    # Row by row: exact tails hold several arrays of the size that they are given.
    for i, (row, degrees) in enumerate(zip(t.to_numpy(float), df.to_numpy(float), strict=True)):
        values[i] = -np.sign(row) * log_p_t(row, degrees) / np.log(10)
    return pd.DataFrame(values + 0.0, t.index, t.columns)  # + 0.0: no negative zeros


class _Mean:
    """A running mean of frames, by label; memory does not grow with the replicates."""

    def __init__(self, like: pd.DataFrame) -> None:
        self._like = like
        self._sum, self._count = np.zeros(like.shape), np.zeros(like.shape, int)

    def add(self, frame: pd.DataFrame) -> None:
        """Take in a frame with the same labels, in any order."""
        values = aligned(frame, self._like).to_numpy(float)
        self._sum += np.nan_to_num(values, nan=0.0)
        self._count += ~np.isnan(values)

    def value(self) -> pd.DataFrame:
        """The mean; NaN where nothing was."""
        mean = divide(self._sum, self._count, np.nan)
        return pd.DataFrame(mean, self._like.index, self._like.columns)


def aligned(frame: pd.DataFrame, like: pd.DataFrame, name: str = "") -> pd.DataFrame:
    """The frame in the order of another; both must have the same labels, each once."""
    of = f" ({name})" if name else ""
    pairs = {"conditions": (like.index, frame.index), "genes": (like.columns, frame.columns)}
    for what, (expected, found) in pairs.items():
        absent, extra = expected.difference(found), found.difference(expected)
        if len(absent) or len(extra) or not found.is_unique:
            raise SchemaError(
                f"replicates have other {what}{of}: {shorten(absent) or 'none'} missing, "
                f"{shorten(extra) or 'none'} new",
                expected="every replicate of the same design",
            )
    return frame.loc[like.index, like.columns]


def average_t(tables: Sequence[DETable]) -> pd.DataFrame:
    """Signed -log10 p of the mean t over replicates, with their mean degrees of freedom.

    Conditions and genes are those of the first table; the others are joined by label. A replicate
    without an answer (a well that drew no cells) does not count where it has none.
    """
    if not tables:
        raise ConfigError("no replicate to average", expected="one or more DE tables")
    t, df = _Mean(tables[0].t), _Mean(tables[0].t)
    for table in tables:
        t.add(table.t)
        df.add(table.df.where(table.t.notna()))
    return _signed_log10_p(t.value(), df.value())


def plug_in_t(logfc: pd.DataFrame, measured: DETable) -> pd.DataFrame:
    """Signed -log10 p of a noise-free log fold change over the usual error of real replicates.

    ``logfc`` is conditions x genes; ``measured`` holds real replicates only, the cell type being
    the first level of their index. Where the error is unknown (NaN), so is the result. Where counts
    are below one in a well, limma estimates smaller changes than the noise-free one: shrink by
    expression level.
    """
    return _over_error(logfc, *_usual_error(measured, logfc.index))


def _over_error(logfc: pd.DataFrame, se: pd.DataFrame, df: pd.DataFrame) -> pd.DataFrame:
    """Signed -log10 p of a log fold change over its standard error, joined by label."""
    se, df = aligned(se, logfc, "se"), aligned(df, logfc, "df")
    if (se <= 0).to_numpy().any():
        raise SchemaError(
            "a standard error is zero or negative", expected="positive numbers, or NaN"
        )
    return _signed_log10_p(logfc / se, df)


def _usual_error(measured: DETable, conditions: pd.Index) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Standard errors and degrees of freedom to expect: by gene, the medians of the cell type."""
    kinds = measured.se.index.get_level_values(0)
    wanted = conditions.get_level_values(0)
    absent = wanted.unique().difference(kinds)
    if len(absent):
        raise SchemaError(
            f"no measured condition of cell type {shorten(absent)}", expected="one or more of each"
        )
    medians = (frame.groupby(kinds).median() for frame in (measured.se, measured.df))
    se, df = (median.loc[wanted].set_axis(conditions) for median in medians)
    return se, df


def mrrmse(prediction: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Mean over conditions of the root mean square error over genes, joined by label."""
    difference = prediction.loc[truth.index, truth.columns].to_numpy() - truth.to_numpy()
    return float(np.sqrt((difference**2).mean(axis=1)).mean())


@dataclass(frozen=True)
class _Averages:
    """Averages by estimator after all replicates and at some of them, and what was seen on the way.

    The estimators are ``mean_t`` and, where asked for, ``anchored_t``; frames are signed -log10 p,
    conditions x genes. ``checks`` are those of the first replicate.
    """

    final: Mapping[str, pd.DataFrame]
    kept: Mapping[int, Mapping[str, pd.DataFrame]]
    scores: pd.Series
    checks: pd.DataFrame


def average(task: Task, settings: PredictSettings, keep: tuple[int, ...]) -> _Averages:
    """Averages of t over the replicates asked for, or until calibration gains no more."""
    if not settings.draws:
        return _Averages({}, {}, pd.Series(dtype=float), pd.DataFrame())
    experiment, vehicle = task.experiment, task.experiment.vehicle
    names = ("mean_t", "anchored_t") if settings.anchors else ("mean_t",)
    vehicle_wells = [group.untreated(vehicle) for group in task.groups] if len(names) == 2 else []
    generated = [*task.groups, *vehicle_wells]
    like = pd.DataFrame(np.nan, task.conditions, task.genes)
    mean, df = {name: _Mean(like) for name in names}, _Mean(like)

    def value(name: str, conditions: pd.Index) -> pd.DataFrame:
        t = mean[name].value().loc[conditions]
        return experiment.clipped(_signed_log10_p(t, df.value().loc[conditions]))

    scores: dict[int, float] = {}
    kept: dict[int, Mapping[str, pd.DataFrame]] = {}
    checks = pd.DataFrame()
    most = settings.replicates or settings.most
    with progress("replicates", most) as tick:
        for k in range(1, most + 1):
            samples = [experiment.draw(wells, replicate=k) for wells in generated]
            if k == 1:
                checks = experiment.check(samples[0])
            table = experiment.fit(*samples)
            if k == 1:
                experiment.require_estimable(table, samples[0])
            t = table.t.reindex_like(like)
            mean["mean_t"].add(t)
            if vehicle_wells:
                anchored = _anchored_t(table, task.groups, vehicle=vehicle)
                mean["anchored_t"].add(anchored.reindex_like(like))
            # Degrees of freedom count where there was an answer, as t does.
            df.add(table.df.reindex_like(like).where(t.notna()))
            tick()
            if k in keep:
                kept[k] = {name: value(name, like.index) for name in names}
            if task.twins is not None:
                # Of the calibration conditions alone: exact p-values of all took a third of the
                # time.
                found = value(names[-1], task.twins.conditions)
                scores[k] = mrrmse(found.fillna(0.0), task.truth)
            if settings.replicates is None and _has_converged(list(scores.values())):
                log.info(
                    "the score of calibration conditions no longer falls after %d replicates", k
                )
                break
    final = {name: value(name, like.index) for name in names}
    by_replicates = pd.Series(scores, name="MRRMSE").rename_axis("replicates")
    return _Averages(final, kept, by_replicates, checks)


def _has_converged(scores: Sequence[float], *, tolerance: float = 0.005, patience: int = 2) -> bool:
    """Whether more replicates are in vain: the last ones bettered the best score by too little.

    ``scores`` (lower is better) are of growing numbers of replicates, on withheld conditions that
    were measured; too little is less than ``tolerance`` of the best score.
    """
    if patience < 1 or tolerance < 0:
        raise ConfigError(
            f"tolerance {tolerance}, patience {patience}", expected="0 or more, 1 or more"
        )
    if not np.isfinite(list(scores)).all():
        raise ConfigError(f"a score is no number: {list(scores)}", expected="finite scores")
    if len(scores) <= patience:
        return False
    # Against the best before, not the last: one lucky replicate stops nothing.
    before = min(scores[:-patience])
    return min(scores[-patience:]) > before - tolerance * abs(before)


def _anchored_t(table: DETable, groups: list[Wells], *, vehicle: str) -> pd.DataFrame:
    """t of generated conditions against vehicle wells generated for their cell type.

    Real controls are known so well that limma sees each small misfit of a model in the genes of
    many counts, the same one in every condition of a cell type. Wells generated with the vehicle in
    them have it, too.
    """
    parts = []
    for group in groups:
        rows = group.conditions[group.conditions.isin(table.logfc.index)]
        base = group.untreated_conditions(vehicle, rows)
        # Where no vehicle well of a cell type drew a cell, none is anchored.
        known = base.isin(table.logfc.index)
        rows, base = rows[known], base[known]
        difference = table.logfc.loc[rows].to_numpy() - table.logfc.loc[base].to_numpy()
        parts.append(pd.DataFrame(difference / table.se.loc[rows].to_numpy(), rows, table.genes))
    return pd.concat(parts)
