"""Averages of t over replicates of the generated experiment, as drawn and anchored; and noise-free.

The noise-free average is what a model itself says of a compound: its log fold change, as limma
would see it on average.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from scipy.stats import poisson

from perturbgen.core.console import progress
from perturbgen.core.labels import CONDITION, conditions_of
from perturbgen.predict.diagnostics import check_generated
from perturbgen.predict.estimators import (
    ANCHORED,
    Mean,
    PredictSettings,
    has_converged,
    mrrmse,
    signed_log10_p,
)
from perturbgen.predict.experiment import Task, Wells, require_compound

if TYPE_CHECKING:
    from perturbgen.de import DETable

log = logging.getLogger(__name__)

_DRAWS: Final = 3  # replicates of latent points and depths that noise-free means are averaged over
_LARGE: Final = 1000.0


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
    """Averages of t over as many replicates as are asked for, or until calibration gains no more."""
    experiment, vehicle = task.experiment, task.experiment.control
    names = ("mean_t", "anchored_t") if settings.needs(ANCHORED) else ("mean_t",)
    mocks = [group.untreated(vehicle) for group in task.groups] if len(names) == 2 else []
    like = pd.DataFrame(np.nan, task.conditions, task.genes)
    mean, df = {name: Mean(like) for name in names}, Mean(like)

    def value(name: str, conditions: pd.Index) -> pd.DataFrame:
        t = mean[name].value().loc[conditions]
        return experiment.clipped(signed_log10_p(t, df.value().loc[conditions]))

    scores: dict[int, float] = {}
    kept: dict[int, Mapping[str, pd.DataFrame]] = {}
    checks = pd.DataFrame()
    most = settings.replicates or settings.most
    with progress("replicates", most) as tick:
        for k in range(1, most + 1):
            samples = [experiment.draw(wells, replicate=k) for wells in (*task.groups, *mocks)]
            if k == 1:
                checks = check_generated(samples[0], experiment.real, control=vehicle)
            table = experiment.fit(*samples)
            t = {"mean_t": table.t.reindex_like(like)}
            if mocks:
                anchored = _anchored_t(table, task.groups, vehicle=vehicle)
                t["anchored_t"] = anchored.reindex_like(like)
            for name, running in mean.items():
                running.add(t[name])
            df.add(table.df.reindex_like(like).where(t["mean_t"].notna()))
            tick()
            if k in keep:
                kept[k] = {name: value(name, like.index) for name in names}
            if task.twins is not None:
                # Of the calibration conditions alone: exact p-values of all took a third of the time.
                found = value(names[-1], task.twins.conditions)
                scores[k] = mrrmse(found.fillna(0.0), task.truth)
            if settings.replicates is None and has_converged(list(scores.values())):
                log.info(
                    "the score of calibration conditions no longer falls after %d replicates", k
                )
                break
    final = {name: value(name, like.index) for name in names}
    by_replicates = pd.Series(scores, name="MRRMSE").rename_axis("replicates")
    return _Averages(final, kept, by_replicates, checks)


def _anchored_t(table: DETable, groups: list[Wells], *, vehicle: str) -> pd.DataFrame:
    """t of generated conditions against generated vehicle wells of their cell type, with the fit's errors.

    Real controls are known so well that limma sees each small misfit of a model in the genes of many
    counts, the same one in every condition of a cell type. Wells generated with the vehicle in them
    have it, too.
    """
    parts = []
    for group in groups:
        rows = group.conditions[group.conditions.isin(table.logfc.index)]
        base = group.untreated_conditions(vehicle, rows)
        known = base.isin(table.logfc.index)  # a cell type whose vehicle wells drew no cell has none
        rows, base = rows[known], base[known]
        difference = table.logfc.loc[rows].to_numpy() - table.logfc.loc[base].to_numpy()
        parts.append(pd.DataFrame(difference / table.se.loc[rows].to_numpy(), rows, table.genes))
    return pd.concat(parts)


def model_logfc(
    group: Wells, *, vehicle: str, genes: pd.Index, draws: int = _DRAWS
) -> pd.DataFrame:
    """Log2 fold change against the vehicle, conditions x genes: the mean over the condition's wells.

    The same latent points, depths and covariates are decoded twice, with the compound and with the
    vehicle in its place, so that whatever the decoder gets wrong about a well in general cancels.
    Voom sees log2(count + ½), which a rare gene hardly moves: so do we, in expectation over Poisson
    counts around the model's means.
    """
    require_compound(group)
    generator, plan = group.generator, group.plan
    total = np.zeros((len(group.wells), len(generator.genes)))
    count = np.zeros(len(group.wells))
    for replicate in range(1, draws + 1):
        treated, untreated = (
            generator.expected_sums(plan, group.wells, replicate=replicate, **replaced)
            for replaced in ({}, {"compound": vehicle})
        )
        drawn = treated.sum(axis=1) > 0
        total[drawn] += (_expected_log2(treated) - _expected_log2(untreated))[drawn]
        count += drawn
    unknown = np.full(total.shape, np.nan)
    mean = np.divide(total, count[:, None], out=unknown, where=count[:, None] > 0)
    by_well = pd.DataFrame(mean, conditions_of(group.wells), generator.genes)
    wanted = pd.MultiIndex.from_frame(plan.conditions[list(CONDITION)])
    by_condition = by_well[genes].groupby(level=[0, 1]).mean()
    return by_condition.reindex(wanted).set_axis(group.conditions)


def _expected_log2(mean: np.ndarray) -> np.ndarray:
    """E log2(X + ½) of Poisson counts X with these means, any shape."""
    grid, values = _poisson_table()
    with np.errstate(divide="ignore"):
        large = np.log2(mean + 0.5) - 0.5 / np.log(2) / mean  # to second order about the mean
        return np.where(mean < _LARGE, np.interp(mean, grid, values), large)


@cache
def _poisson_table() -> tuple[np.ndarray, np.ndarray]:
    """Means, dense near zero, and E log2(X + ½) there."""
    grid = np.expm1(np.linspace(0, np.log1p(_LARGE), 1500))
    counts = np.arange(int(_LARGE + 12 * np.sqrt(_LARGE)))
    return grid, poisson.pmf(counts, grid[:, None]) @ np.log2(counts + 0.5)
