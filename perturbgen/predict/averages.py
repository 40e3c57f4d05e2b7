"""Averages of t over replicates of the generated experiment, as drawn and anchored at generated vehicle wells.

What a model says of a compound without noise: its own log fold change, as limma would see it on average.
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
from perturbgen.core.errors import ConfigError
from perturbgen.predict.calibration import mrrmse
from perturbgen.predict.diagnostics import check_generated
from perturbgen.predict.estimators import (
    ANCHORED,
    Mean,
    PredictSettings,
    has_converged,
    signed_log10_p,
)

if TYPE_CHECKING:
    from perturbgen.de import DETable
    from perturbgen.predict.experiment import Task, Wells

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Averages:
    """Averages by estimator after all replicates and at some of them, the scores on the way, the checks of the first.

    The estimators are ``mean_t`` and, where asked for, ``anchored_t``; frames are signed -log10 p, conditions x genes.
    """

    final: Mapping[str, pd.DataFrame]
    kept: Mapping[int, Mapping[str, pd.DataFrame]]
    scores: pd.Series
    checks: pd.DataFrame


class _Running:
    """Running means of t and of its degrees of freedom, by estimator."""

    def __init__(self, task: Task, names: tuple[str, ...]) -> None:
        self._task, like = task, pd.DataFrame(np.nan, task.conditions, task.genes)
        self._like = like
        self._t, self._df = {name: Mean(like) for name in names}, Mean(like)

    def add(self, table: DETable) -> None:
        """Take in the fit of a replicate."""
        for name, mean in self._t.items():
            t = (
                table.t
                if name == "mean_t"
                else _anchored_t(table, self._task.groups, vehicle=self._task.bench.control)
            )
            mean.add(t.reindex_like(self._like))
        answered = table.t.reindex_like(self._like).notna()
        self._df.add(table.df.reindex_like(self._like).where(answered))

    def values(self) -> dict[str, pd.DataFrame]:
        """Signed -log10 p of the means."""
        return {name: self.value(name, self._like.index) for name in self._t}

    def value(self, name: str, conditions: pd.Index) -> pd.DataFrame:
        """The same of one estimator and some conditions."""
        values = signed_log10_p(
            self._t[name].value().loc[conditions], self._df.value().loc[conditions]
        )
        return self._task.bench.clipped(values)


def average(task: Task, settings: PredictSettings, keep: tuple[int, ...]) -> _Averages:
    """Averages of t over replicates: as many as were asked for, or until calibration conditions gain no more."""
    names = ("mean_t", "anchored_t") if settings.needs(ANCHORED) else ("mean_t",)
    running, most = _Running(task, names), settings.replicates or settings.most
    drawn = [
        *task.groups,
        *(group.untreated(task.bench.control) for group in task.groups if len(names) == 2),
    ]
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
                scores[k] = mrrmse(
                    running.value(names[-1], task.twins.conditions).fillna(0.0), task.truth
                )
            if settings.replicates is None and has_converged(list(scores.values())):
                log.info(
                    "the score of calibration conditions no longer falls after %d replicates", k
                )
                break
    return _Averages(
        running.values(), kept, pd.Series(scores, name="MRRMSE").rename_axis("replicates"), checks
    )


def _anchored_t(table: DETable, groups: list[Wells], *, vehicle: str) -> pd.DataFrame:
    """t of generated conditions against generated vehicle wells of their cell type, on the errors of the fit.

    Real controls are known so well that limma sees each small misfit of a model in the genes of many counts, the same
    one in every condition of a cell type. Wells generated with the vehicle in them have it, too.
    """
    parts = []
    for group in groups:
        rows = group.conditions[group.conditions.isin(table.logfc.index)]
        base = group.untreated_conditions(vehicle, rows)
        known = base.isin(
            table.logfc.index
        )  # where no vehicle well of a cell type drew a cell, none is anchored
        rows, base = rows[known], base[known]
        difference = table.logfc.loc[rows].to_numpy() - table.logfc.loc[base].to_numpy()
        parts.append(pd.DataFrame(difference / table.se.loc[rows].to_numpy(), rows, table.genes))
    return pd.concat(parts)


_DRAWS: Final = 3  # replicates of latent points and depths that the means are averaged over
_LARGE: Final = 1000.0


def model_logfc(
    group: Wells, *, vehicle: str, genes: pd.Index, draws: int = _DRAWS
) -> pd.DataFrame:
    """Log2 fold change against the vehicle, conditions x genes: the mean over the condition's wells.

    The same latent points, depths and covariates are decoded twice, with the compound and with the vehicle in its
    place, so that whatever the decoder gets wrong about a well in general cancels. Voom sees log2(count + ½), which a
    rare gene hardly moves: so do we, in expectation over Poisson counts around the model's means.
    """
    require_compound(group)
    total = np.zeros((len(group.wells), len(group.generator.genes)))
    count = np.zeros(len(group.wells))
    for replicate in range(1, draws + 1):
        treated, untreated = (
            group.generator.expected_sums(group.plan, group.wells, replicate=replicate, **replaced)
            for replaced in ({}, {"compound": vehicle})
        )
        drawn = treated.sum(axis=1) > 0
        total[drawn] += (_expected_log2(treated) - _expected_log2(untreated))[drawn]
        count += drawn
    labels = pd.MultiIndex.from_frame(group.wells[["cell_type", "compound"]].astype(str))
    mean = np.divide(
        total, count[:, None], out=np.full(total.shape, np.nan), where=count[:, None] > 0
    )
    by_condition = (
        pd.DataFrame(mean, labels, group.generator.genes)[genes].groupby(level=[0, 1]).mean()
    )
    wanted = pd.MultiIndex.from_frame(group.plan.conditions[["cell_type", "compound"]])
    return by_condition.reindex(wanted).set_axis(group.conditions)


def require_compound(group: Wells) -> None:
    """The model knows what a compound is."""
    if "compound" not in group.generator.encoder.categories:
        raise ConfigError(
            "the estimator compares a compound with the vehicle, and the run is not conditioned on compound",
            fix="use the estimator mean_t, or train with [conditions.compound]",
        )


def _expected_log2(mean: np.ndarray) -> np.ndarray:
    """E log2(X + ½) of Poisson counts X with these means, any shape."""
    grid, values = _poisson_table()
    with np.errstate(divide="ignore"):
        return np.where(
            mean < _LARGE,
            np.interp(mean, grid, values),
            np.log2(mean + 0.5) - 0.5 / np.log(2) / mean,
        )


@cache
def _poisson_table() -> tuple[np.ndarray, np.ndarray]:
    """Means, dense near zero, and E log2(X + ½) there."""
    grid = np.expm1(np.linspace(0, np.log1p(_LARGE), 1500))
    counts = np.arange(int(_LARGE + 12 * np.sqrt(_LARGE)))
    return grid, poisson.pmf(counts, grid[:, None]) @ np.log2(counts + 0.5)
