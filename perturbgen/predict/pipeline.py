"""From a trained run to a DE prediction: generate wells, fit them among real ones, estimate, shrink."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.config import Settings
from perturbgen.console import progress
from perturbgen.errors import SchemaError, shorten
from perturbgen.predict.bench import TWIN, Bench, Wells
from perturbgen.predict.calibration import calibration_conditions, mrrmse, nothing_measured
from perturbgen.predict.checks import check_generated
from perturbgen.predict.estimators import Mean, has_converged, plug_in_t, signed_log10_p, usual_error
from perturbgen.predict.plugin import model_logfc
from perturbgen.predict.shrinkage import expression_levels, fit_factors, shrink
from perturbgen.predict.source import (
    in_run_genes,
    make_generator,
    make_plan,
    make_sampler,
    read_wanted,
    vehicle_of,
    without,
)  # fmt: skip
from perturbgen.sampling.latents import Route

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.sampling import CellSampler
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

Estimator = Literal["mean_t", "plug_in", "shrunk", "shrunk_plug_in"]
NEEDS_REPLICATES = ("mean_t", "shrunk")
NEEDS_CALIBRATION = ("shrunk", "shrunk_plug_in")


class PredictSettings(Settings):
    """How a prediction is made."""

    estimators: tuple[Estimator, ...] = ("shrunk",)
    replicates: Annotated[int, Field(ge=1)] | None = None  # None: until the calibration conditions gain no more
    most: Annotated[int, Field(ge=1)] = 20  # replicates, where their number is not given
    latent: Route = "control"
    flavour: Literal["kaggle", "op3"] = "kaggle"
    levels: Annotated[int, Field(ge=1)] = 5  # of expression, each with a factor of its own
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def calibrates(self) -> bool:
        """Whether measured conditions are generated beside the wanted ones."""
        auto = self.replicates is None and any(name in NEEDS_REPLICATES for name in self.estimators)
        return auto or any(name in NEEDS_CALIBRATION for name in self.estimators)

    @property
    def needs_measured(self) -> bool:
        """Whether measured compounds of the same cell types are needed, for standard errors or to calibrate on."""
        return self.calibrates or "plug_in" in self.estimators


@dataclass(frozen=True)
class Prediction:
    """Predicted signed -log10 p, conditions x genes, by estimator; and how it came about.

    ``scores`` has the MRRMSE of calibration conditions by number of replicates, ``factors`` what the shrunk estimators
    were multiplied by, ``checks`` the ratios of generated to real samples, ``by_replicates`` the average of t after
    the numbers of replicates that were asked for.
    """

    values: Mapping[str, pd.DataFrame]
    scores: pd.Series
    factors: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    checks: pd.DataFrame = field(default_factory=pd.DataFrame)
    calibration: pd.MultiIndex | None = None
    by_replicates: Mapping[int, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Averages:
    """Averages of t after all replicates, at some of them, the scores on the way and the checks of the first."""

    final: pd.DataFrame
    kept: Mapping[int, pd.DataFrame]
    scores: pd.Series
    checks: pd.DataFrame


@dataclass(frozen=True)
class Task:
    """What is generated among what: the wanted wells, and twins of measured ones for calibration."""

    bench: Bench
    wanted: Wells
    twins: Wells | None

    @property
    def real(self) -> DETable:
        """The fit of what was measured."""
        return self.bench.measured

    @property
    def genes(self) -> pd.Index:
        """All genes."""
        return self.bench.real.var_names

    @property
    def groups(self) -> list[Wells]:
        """All that is generated."""
        return [self.wanted] if self.twins is None else [self.wanted, self.twins]

    @property
    def conditions(self) -> pd.MultiIndex:
        """Their labels, those of twins with a suffix."""
        first, *rest = (group.conditions for group in self.groups)
        return first.append(rest) if rest else first

    @property
    def truth(self) -> pd.DataFrame:
        """The measured signed -log10 p of the twins' conditions, under the twins' labels."""
        assert self.twins is not None
        known = pd.MultiIndex.from_frame(self.twins.plan.conditions)
        return self.real.signed_log10_p.loc[known].set_axis(self.twins.conditions).fillna(0.0)


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

    ``cells`` are the measured ones; cells of the wanted conditions are taken out first, so that measured conditions can
    be predicted as if they were not. ``calibration_run`` is a run that withheld measured conditions of the target cell
    types, on which replicates are counted and factors are fitted. ``keep`` are numbers of replicates to note.
    """
    wanted = read_wanted(conditions)
    cells = without(in_run_genes(run, cells), wanted)
    task = make_task(run, cells, wanted, settings, sampler=sampler, calibration_run=calibration_run)
    raw: dict[str, pd.DataFrame] = {}
    averages = None
    if any(name in NEEDS_REPLICATES for name in settings.estimators):
        averages = average(task, settings, keep)
        raw["mean_t"] = averages.final
    if any(name.endswith("plug_in") for name in settings.estimators):
        raw["plug_in"] = plug_in(task)
    values: dict[str, pd.DataFrame] = {}
    factors: dict[str, pd.DataFrame] = {}
    for name in settings.estimators:
        source = raw["plug_in" if name.endswith("plug_in") else "mean_t"]
        if name in NEEDS_CALIBRATION:
            source, factors[name] = shrunk(task, source, settings.levels)
        values[name] = complete(source.loc[task.wanted.conditions], name)
    return Prediction(
        values,
        averages.scores if averages else pd.Series(dtype=float),
        factors,
        averages.checks if averages else pd.DataFrame(),
        None if task.twins is None else pd.MultiIndex.from_frame(task.twins.plan.conditions),
        {} if averages is None else {k: complete(v.loc[wanted], "mean_t") for k, v in averages.kept.items()},
    )


def make_task(
    run: TrainedRun,
    cells: AnnData,
    wanted: pd.MultiIndex,
    settings: PredictSettings,
    *,
    sampler: CellSampler | None,
    calibration_run: TrainedRun | None,
) -> Task:
    """Everything that the estimators need, all bad input found on the way."""
    sampler = sampler or make_sampler(cells, seed=settings.seed)
    control = vehicle_of(cells)
    ours = make_wells(run, cells, sampler, wanted, settings)
    kinds = sorted(wanted.get_level_values("cell_type").unique())
    bench = Bench.of(cells, kinds, control=control, flavour=settings.flavour)
    require_controls(bench, kinds)
    twins = None
    if settings.needs_measured:
        require_compounds(bench, kinds)
    if settings.calibrates:
        judge = calibration_run or run
        known = calibration_conditions(judge, cells.obs, bench.measured, kinds, control=control)
        # A latent point of a twin's own cell would tell of its compound.
        others = without(in_run_genes(judge, cells), known) if settings.latent == "posterior" else cells
        twins = make_wells(judge, in_run_genes(judge, others), sampler, known, settings, suffix=TWIN)
    return Task(bench, ours, twins)


def make_wells(
    run: TrainedRun, cells: AnnData, sampler: CellSampler, wanted: pd.MultiIndex, settings: PredictSettings,
    *, suffix: str = "",
) -> Wells:  # fmt: skip
    """Plan and generator of conditions."""
    plan, wells = make_plan(run, cells, sampler, wanted, seed=settings.seed)
    generator = make_generator(run, cells, wells, latent=settings.latent, seed=settings.seed)
    return Wells(plan, wells, generator, suffix)


def require_controls(bench: Bench, kinds: list[str]) -> None:
    """Every cell type has real control samples to compare with."""
    found = bench.real.obs.loc[bench.real.obs["compound"] == bench.control, "cell_type"]
    absent = [kind for kind in kinds if kind not in set(found)]
    if absent:
        raise SchemaError(
            f"no well of the vehicle {bench.control!r} has cells of type {shorten(absent)}",
            expected="real controls of every cell type to predict, which the DE compares with",
        )


def require_compounds(bench: Bench, kinds: list[str]) -> None:
    """Every cell type has a measured compound."""
    treated = bench.real.obs.loc[bench.real.obs["compound"] != bench.control, "cell_type"]
    absent = [kind for kind in kinds if kind not in set(treated)]
    if absent:
        raise nothing_measured(absent)


def average(task: Task, settings: PredictSettings, keep: tuple[int, ...]) -> Averages:
    """Averages of t over replicates: as many as were asked for, or until calibration conditions gain no more."""
    like = pd.DataFrame(np.nan, task.conditions, task.genes)
    t, df = Mean(like), Mean(like)
    most = settings.replicates or settings.most
    scores: dict[int, float] = {}
    kept: dict[int, pd.DataFrame] = {}
    checks = pd.DataFrame()
    with progress("replicates", most) as tick:
        for k in range(1, most + 1):
            samples = [task.bench.draw(group, replicate=k) for group in task.groups]
            if k == 1:
                checks = check_generated(samples[0], task.bench.real, control=task.bench.control)
            table = task.bench.fit(*samples)
            answered = table.t.reindex_like(like)
            t.add(answered)
            df.add(table.df.reindex_like(like).where(answered.notna()))
            tick()
            if k not in keep and task.twins is None and k < most:
                continue
            now = signed_log10_p(t.value(), df.value())
            if k in keep:
                kept[k] = now
            if task.twins is not None:
                scores[k] = mrrmse(now.loc[task.twins.conditions].fillna(0.0), task.truth)
            if settings.replicates is None and has_converged(list(scores.values())):
                log.info("the score of calibration conditions no longer falls after %d replicates", k)
                break
    return Averages(now, kept, pd.Series(scores, name="MRRMSE").rename_axis("replicates"), checks)


def plug_in(task: Task) -> pd.DataFrame:
    """The model's noise-free log fold changes over the standard errors that real conditions have."""
    genes = task.genes
    logfc = pd.concat([model_logfc(group, vehicle=task.bench.control, genes=genes) for group in task.groups])
    measured = task.real.select(condition for condition in task.real.conditions.index if is_usual(task.real, condition))
    error = usual_error(measured, task.conditions)
    return plug_in_t(logfc, error.se, error.df)


def is_usual(table: DETable, condition: Any) -> bool:
    """Whether a condition has the wells of a usual compound: positive controls have many more."""
    samples = table.conditions["n_samples"] if "n_samples" in table.conditions else table.conditions.iloc[:, 0]
    return bool(samples.loc[condition] <= 2 * samples.median())


def shrunk(task: Task, values: pd.DataFrame, levels: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values times the factors that the calibration conditions call for, and those factors."""
    assert task.twins is not None
    expression = task.real.ave_expr.groupby(level=0).mean()
    level = expression_levels(expression.fillna(expression.min().min()), levels=levels)
    factors = fit_factors(values.loc[task.twins.conditions].fillna(0.0), task.truth, level)
    return shrink(values.loc[task.wanted.conditions], factors, level), factors


def complete(values: pd.DataFrame, name: str) -> pd.DataFrame:
    """Values without a hole: a condition for which no cell was ever drawn, or a gene not tested, is predicted as 0."""
    empty = values.index[values.isna().all(axis=1)]
    if len(empty):
        log.warning("%s: no cell was drawn for %d conditions, which are predicted as 0: %s", name, len(empty), shorten(
            [" | ".join(key) for key in empty]))  # fmt: skip
    return values.fillna(0.0)
