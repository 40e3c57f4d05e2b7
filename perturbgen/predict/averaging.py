"""Averages of t over replicates of the generated experiment, as drawn and anchored at generated vehicle wells."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.console import progress
from perturbgen.predict.calibration import mrrmse
from perturbgen.predict.checks import check_generated
from perturbgen.predict.estimators import Mean, has_converged, signed_log10_p
from perturbgen.predict.settings import ANCHORED, PredictSettings

if TYPE_CHECKING:
    from perturbgen.de import DETable
    from perturbgen.predict.bench import Wells
    from perturbgen.predict.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Averages:
    """Averages by estimator after all replicates and at some of them, the scores on the way, the checks of the first.

    The estimators are ``mean_t`` and, where asked for, ``anchored_t``; frames are signed -log10 p, conditions x genes.
    """

    final: Mapping[str, pd.DataFrame]
    kept: Mapping[int, Mapping[str, pd.DataFrame]]
    scores: pd.Series
    checks: pd.DataFrame


class Running:
    """Running means of t and of its degrees of freedom, by estimator."""

    def __init__(self, task: Task, names: tuple[str, ...]) -> None:
        self._task, like = task, pd.DataFrame(np.nan, task.conditions, task.genes)
        self._like = like
        self._t, self._df = {name: Mean(like) for name in names}, Mean(like)

    def add(self, table: DETable) -> None:
        """Take in the fit of a replicate."""
        for name, mean in self._t.items():
            t = table.t if name == "mean_t" else anchored_t(table, self._task.groups, vehicle=self._task.bench.control)
            mean.add(t.reindex_like(self._like))
        answered = table.t.reindex_like(self._like).notna()
        self._df.add(table.df.reindex_like(self._like).where(answered))

    def values(self) -> dict[str, pd.DataFrame]:
        """Signed -log10 p of the means."""
        return {name: self.value(name, self._like.index) for name in self._t}

    def value(self, name: str, conditions: pd.Index) -> pd.DataFrame:
        """The same of one estimator and some conditions."""
        values = signed_log10_p(self._t[name].value().loc[conditions], self._df.value().loc[conditions])
        return self._task.bench.clipped(values)


def average(task: Task, settings: PredictSettings, keep: tuple[int, ...]) -> Averages:
    """Averages of t over replicates: as many as were asked for, or until calibration conditions gain no more."""
    names = ("mean_t", "anchored_t") if settings.needs(ANCHORED) else ("mean_t",)
    running, most = Running(task, names), settings.replicates or settings.most
    drawn = [*task.groups, *(group.untreated(task.bench.control) for group in task.groups if len(names) == 2)]
    scores: dict[int, float] = {}
    kept: dict[int, Mapping[str, pd.DataFrame]] = {}
    checks = pd.DataFrame()
    with progress("replicates", most) as tick:
        for k in range(1, most + 1):
            samples = [task.bench.draw(group, replicate=k) for group in drawn]
            if k == 1:
                checks = check_generated(samples[0], task.bench.real, control=task.bench.control)
            running.add(task.bench.fit(*samples))
            tick()
            if k in keep:
                kept[k] = running.values()
            if task.twins is not None:
                scores[k] = mrrmse(running.value(names[-1], task.twins.conditions).fillna(0.0), task.truth)
            if settings.replicates is None and has_converged(list(scores.values())):
                log.info("the score of calibration conditions no longer falls after %d replicates", k)
                break
    return Averages(running.values(), kept, pd.Series(scores, name="MRRMSE").rename_axis("replicates"), checks)


def anchored_t(table: DETable, groups: list[Wells], *, vehicle: str) -> pd.DataFrame:
    """t of generated conditions against generated vehicle wells of their cell type, on the errors of the fit.

    Real controls are known so well that limma sees each small misfit of a model in the genes of many counts, the same
    one in every condition of a cell type. Wells generated with the vehicle in them have it, too.
    """
    parts = []
    for group in groups:
        rows = group.conditions[group.conditions.isin(table.logfc.index)]
        base = group.untreated_conditions(vehicle, rows)
        known = base.isin(table.logfc.index)  # where no vehicle well of a cell type drew a cell, none is anchored
        rows, base = rows[known], base[known]
        difference = table.logfc.loc[rows].to_numpy() - table.logfc.loc[base].to_numpy()
        parts.append(pd.DataFrame(difference / table.se.loc[rows].to_numpy(), rows, table.genes))
    return pd.concat(parts)
