"""From a trained run to a DE prediction: generate, fit among real wells, estimate, shrink."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pandas as pd

from perturbgen.core.errors import shorten
from perturbgen.predict.calibration import Task
from perturbgen.predict.estimators import average, plug_in_t
from perturbgen.predict.experiment import PredictSettings
from perturbgen.predict.shrinkage import Shrinkage, expression_levels
from perturbgen.predict.wells import read_wanted, without

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

# What the shrunk estimators shrink.
_SOURCE: Final = {"shrunk": "anchored_t", "shrunk_plug_in": "plug_in"}


@dataclass(frozen=True)
class Prediction:
    """Predicted signed -log10 p, conditions x genes, by estimator; and how it came about.

    ``scores`` has the MRRMSE of calibration conditions by number of replicates, ``shrinkage`` how
    the shrunk estimators were shrunk, ``checks`` the ratios of generated to real samples,
    ``by_replicates`` the averages of t, by estimator, after the numbers of replicates that were
    asked for. ``measured`` and ``calibrated`` are the calibration conditions as they were measured
    and as each estimator predicts them, shrunk by what the other compounds call for.
    """

    values: Mapping[str, pd.DataFrame]
    scores: pd.Series
    shrinkage: Mapping[str, Shrinkage] = field(default_factory=dict)
    checks: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_replicates: Mapping[int, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    measured: pd.DataFrame = field(default_factory=pd.DataFrame)
    calibrated: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def predict(
    run: TrainedRun,
    cells: AnnData,
    conditions: pd.DataFrame,
    settings: PredictSettings,
    *,
    sampler: CellSampler | None = None,
    calibration_run: TrainedRun | None = None,
    keep: tuple[int, ...] = (),
) -> Prediction:
    """Predict conditions (cell_type, compound) by every estimator of the settings.

    ``cells`` are the measured ones; cells of the wanted conditions are taken out first, so that
    measured conditions can be predicted as if they were not. ``calibration_run`` is a run that
    withheld measured conditions of the target cell types, on which replicates are counted and
    factors are fitted. ``keep`` are numbers of replicates to note.
    """
    wanted = read_wanted(conditions)
    cells = without(run.in_genes(cells), wanted)
    task = Task.of(run, cells, wanted, settings, sampler=sampler, calibration_run=calibration_run)
    averages = average(task, settings, keep) if settings.draws else None
    raw = dict(averages.final) if averages else {}
    if settings.needs("plug_in", "shrunk_plug_in"):
        raw["plug_in"] = _plug_in(task)
    levels = _levels_of(task, settings.levels) if settings.shrinks else pd.DataFrame()
    values: dict[str, pd.DataFrame] = {}
    shrinkage: dict[str, Shrinkage] = {}
    measured, calibrated = pd.DataFrame(), dict[str, pd.DataFrame]()
    for name in settings.estimators:
        values[name] = raw[_SOURCE.get(name, name)]
        if task.twins is None:
            continue
        truth = task.truth
        twins = values[name].loc[task.twins.conditions].fillna(0.0)
        if name in _SOURCE:
            shrinkage[name] = Shrinkage.fit(twins, truth, levels)
            values[name] = shrinkage[name].apply(values[name], levels)
            # By the others: a condition shrunk by its own answer would look too good to an
            # ensemble.
            twins = Shrinkage.by_others(twins, truth, levels)
        known = pd.MultiIndex.from_frame(task.twins.plan.conditions)
        measured, calibrated[name] = truth.set_axis(known), twins.set_axis(known)
    kept = averages.kept if averages else {}
    return Prediction(
        _of_wanted(values, wanted),
        averages.scores if averages else pd.Series(dtype=float),
        shrinkage,
        averages.checks if averages else pd.DataFrame(),
        {k: _of_wanted(found, wanted) for k, found in kept.items()},
        measured,
        calibrated,
    )


def _plug_in(task: Task) -> pd.DataFrame:
    """The model's noise-free log fold changes over the standard errors of real conditions."""
    experiment = task.experiment
    real = experiment.measured
    logfc = [wells.logfc(vehicle=experiment.control, genes=task.genes) for wells in task.groups]
    conditions = real.conditions
    samples = conditions["n_samples"] if "n_samples" in conditions else conditions.iloc[:, 0]
    # Positive controls have many more wells than a usual compound, and smaller errors.
    usual = samples <= 2 * samples.median()
    return experiment.clipped(plug_in_t(pd.concat(logfc), real.select(conditions.index[usual])))


def _levels_of(task: Task, levels: int) -> pd.DataFrame:
    """The level of expression of each gene in each cell type."""
    # Of real samples: what a model gets wrong of a gene shall not choose its factor.
    expression = task.experiment.measured.ave_expr.groupby(level=0).mean()
    return expression_levels(expression.fillna(expression.min().min()), levels=levels)


def _of_wanted(
    values: Mapping[str, pd.DataFrame], wanted: pd.MultiIndex
) -> dict[str, pd.DataFrame]:
    """The wanted conditions of each estimator, without a hole.

    A condition for which no cell was ever drawn, or a gene that was not tested, is predicted as 0.
    """
    found = {}
    for name, frame in values.items():
        own = frame.loc[wanted]
        empty = own.index[own.isna().all(axis=1)]
        if len(empty):
            log.warning(
                "%s: no cell was drawn for %d conditions, which are predicted as 0: %s",
                name,
                len(empty),
                shorten([" | ".join(key) for key in empty]),
            )
        found[name] = own.fillna(0.0)
    return found
