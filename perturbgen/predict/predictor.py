"""From a trained run to a DE prediction: generate, fit among real wells, estimate, shrink.

Then the run as one method among others: what it has seen, and a predictor that has the form of
every other one, fitted on labelled DE rows and predicting labelled DE rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pandas as pd

from perturbgen.core.console import said_once
from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError, shorten
from perturbgen.core.files import require_file, require_folder
from perturbgen.core.h5ad import open_h5ad
from perturbgen.core.runs import file_hash
from perturbgen.core.tables import CONDITION, conditions_of, reading
from perturbgen.data import complete, our_obs, read_h5ad, sampled
from perturbgen.predict.calibration import Task, trained_conditions
from perturbgen.predict.estimators import average, plug_in_t
from perturbgen.predict.experiment import PredictSettings
from perturbgen.predict.weights import Shrinkage, expression_levels
from perturbgen.predict.wells import read_wanted, vehicle_of, without
from perturbgen.train import CELLS, RunSettings, load_run

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

# What the shrunk estimators shrink.
_SOURCE: Final = {"shrunk": "anchored_t", "shrunk_mean": "mean_t", "shrunk_plug_in": "plug_in"}


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
    shrinkage: Mapping[str, Shrinkage]
    checks: pd.DataFrame
    by_replicates: Mapping[int, Mapping[str, pd.DataFrame]]
    measured: pd.DataFrame
    calibrated: Mapping[str, pd.DataFrame]


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
    cells = sampled(cells)
    _warn_of_seen(run, cells.obs, wanted)
    cells = without(run.in_genes(cells), wanted)
    options: dict[str, Any] = {"sampler": sampler, "calibration_run": calibration_run}
    # What is odd about the samples is so in every fit.
    with said_once("perturbgen.de", "perturbgen.data", "perturbgen.generate"):
        task = Task.of(run, cells, wanted, settings, **options)
        averages = average(task, settings, keep)
        raw = dict(averages.final)
        if settings.needs("plug_in", "shrunk_plug_in"):
            raw["plug_in"] = _plug_in(task)
    levels = pd.DataFrame()
    if settings.shrinks:
        # Of real samples: what a model gets wrong of a gene shall not choose its factor.
        expression = task.experiment.measured.ave_expr.groupby(level=0).mean()
        filled = expression.fillna(expression.min().min())
        levels = expression_levels(filled, levels=settings.levels)
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
        labels = pd.MultiIndex.from_frame(task.twins.plan.conditions)  # without the suffix
        measured, calibrated[name] = truth.set_axis(labels), twins.set_axis(labels)
    values, scores, checks = _of_wanted(values, wanted), averages.scores, averages.checks
    kept = {k: _of_wanted(found, wanted) for k, found in averages.kept.items()}
    return Prediction(values, scores, shrinkage, checks, kept, measured, calibrated)


def _warn_of_seen(run: TrainedRun, obs: pd.DataFrame, wanted: pd.MultiIndex) -> None:
    """A prediction of what was trained on is a memory, and a score of it says little."""
    seen = wanted[wanted.isin(trained_conditions(run, obs))]
    if len(seen):
        log.warning(
            "%s was trained on %d of the %d conditions to predict (%s): their score would be that "
            "of remembering",
            run.path,
            len(seen),
            len(wanted),
            shorten([" | ".join(key) for key in seen], 3),
        )


def _plug_in(task: Task) -> pd.DataFrame:
    """The model's noise-free log fold changes over the standard errors of real conditions."""
    experiment = task.experiment
    real = experiment.measured
    logfc = [wells.logfc(vehicle=experiment.vehicle, genes=task.genes) for wells in task.groups]
    conditions = real.conditions
    samples = conditions["n_samples"] if "n_samples" in conditions else conditions.iloc[:, 0]
    # Positive controls have many more wells than a usual compound, and smaller errors.
    usual = samples <= 2 * samples.median()
    return experiment.clipped(plug_in_t(pd.concat(logfc), real.select(conditions.index[usual])))


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


# Validation cells decide which checkpoint is the best one: they were seen, too.
_SEEN: Final = ("train", "validation")


def run_fingerprint(path: Path) -> str:
    """A hash of the run's best model: the same name may hold another model tomorrow."""
    return file_hash(require_file(path / "checkpoint" / "best.pt", "checkpoint"))


@dataclass(frozen=True)
class RunFiles:
    """A run directory, the cells it predicts among, and the run that calibrates it.

    ``columns`` is the column map of the cells; the run's own cells are read by the run's.
    """

    run: Path
    cells: Path
    calibration_run: Path | None = None
    columns: Path | None = None

    @property
    def runs(self) -> list[Path]:
        """The run, and the one that calibrates it."""
        return [self.run] if self.calibration_run is None else [self.run, self.calibration_run]

    def require(self) -> RunFiles:
        """The files, if they are there."""
        for path in self.runs:
            _run_hash(require_folder(path, "run directory"))
        require_file(self.cells, "file of cells")
        return self

    def latent_note(self) -> str:
        """A sentence about a latent space that holds next to nothing, or no word."""
        return CELLS.latent_note(self.run)

    def record(self) -> Mapping[str, Any]:
        """What a prediction depends on, whatever the files are called."""
        found = {"runs": [_run_hash(path) for path in self.runs], "cells": file_hash(self.cells)}
        mapped = self._column_map()
        return found if mapped is None else {**found, "columns": file_hash(mapped)}

    def _column_map(self) -> Path | None:
        """What translates the cells' columns; None where they have our names."""
        if self.columns is not None:
            return self.columns
        return RunSettings.load(self.run / "config.toml").columns_of(self.cells)

    def seen(self) -> pd.MultiIndex:
        """The conditions of every cell that either run was trained or validated on."""
        # obs alone is read: the counts are not needed to tell what was seen.
        with reading(self.cells, "h5ad"):
            file = open_h5ad(self.cells, backed=True)
            obs = our_obs(file.obs, self._column_map(), self.cells)
            file.file.close()
        named = {name: complete(obs, name).astype(str) for name in CONDITION}
        labels = pd.Series(list(conditions_of(pd.DataFrame(named))), obs.index.astype(str))
        found = [self._seen_by(path, labels) for path in self.runs]
        return found[0].append(found[1:]).unique()

    def _seen_by(self, run: Path, labels: pd.Series) -> pd.MultiIndex:
        """Of one run; a cell without a label is an error."""
        parts = CELLS.card.read_members(run)["part"]
        names = parts.index[parts.isin(_SEEN)].astype(str)
        absent = names[~names.isin(labels.index)]
        if len(absent):
            raise SchemaError(
                f"{run} was trained on {len(absent):,} cells that {self.cells} does not hold: "
                f"{shorten(absent, 3)}",
                expected="all of its cells, to tell what it has seen",
                cause="another file of cells, or a run trained on withheld cells, too",
                fix="cells = the file that the run was trained on",
            )
        if not labels.index.is_unique:
            raise SchemaError(f"{self.cells} names cells twice", expected="unique names")
        return pd.MultiIndex.from_tuples(labels.loc[names].unique(), names=CONDITION)

    def require_unseen(
        self, name: str, seen: pd.MultiIndex, withheld: pd.MultiIndex, where: str
    ) -> None:
        """Refuse a run that was trained on what it is to predict."""
        leaked = withheld[withheld.isin(seen)]
        if len(leaked):
            names = [" | ".join(key) for key in leaked]
            raise ConfigError(
                f"{name}: {self.run} was trained on {len(leaked)} of the {len(withheld)} "
                f"conditions that {where} withholds: {shorten(names, 3)}",
                expected="a run that has not seen them: its score would be that of remembering",
                fix="train it with a split of cells that leaves them out "
                "([data] split of perturbgen train), "
                "or compare on a split that withholds what it has not seen",
            )

    def predictor(self, settings: PredictSettings, *, adapt: bool = False) -> GenerativePredictor:
        """The predictor, not fitted yet; it may ``adapt`` its estimator to what was measured."""
        run, *others = (load_run(path) for path in self.runs)
        other = others[0] if others else None
        cells = read_h5ad(self.cells, self._column_map())
        return GenerativePredictor(run, cells, settings, calibration_run=other, adapt=adapt)


def _run_hash(path: Path) -> str:
    """A hash of the best parameters and of what they mean."""
    # The same parameters mean something else with other genes or categories, or other code.
    about = require_file(path / "model.json", "description of a trained model")
    meaning = f"{run_fingerprint(path)} {file_hash(about)}{_foreign_code(about)}"
    return hashlib.sha256(meaning.encode()).hexdigest()


def _foreign_code(about: Path) -> str:
    """A hash of the code of a model of another package, nothing for one of ours."""
    from perturbgen.models import MODELS

    kind = str(CELLS.card.read(about.parent).kind)
    return "" if kind in MODELS.built_in else MODELS.extension(kind).code


class GenerativePredictor:
    """Generates conditions, fits them among measured ones, and estimates signed -log10 p.

    ``model`` is a trained run, or a function (cells, seed) that trains one: only the latter is
    honest in a comparison that withholds rows of its own, for then the model sees the cells of the
    training rows alone. ``cells`` are all measured cells; those of conditions that are not among
    the training rows are never looked at, controls excepted. ``calibration_run`` is that of
    :func:`perturbgen.predict.predict`. With ``adapt`` the estimator is one that needs no measured
    compound of a cell type, where there is none.
    """

    def __init__(
        self,
        model: TrainedRun | Callable[[AnnData, int], TrainedRun],
        cells: AnnData,
        settings: PredictSettings | None = None,
        *,
        calibration_run: TrainedRun | None = None,
        adapt: bool = False,
    ) -> None:
        self.model, self.cells, self.calibration_run = model, cells, calibration_run
        self.adapt = adapt
        self.settings = settings or PredictSettings()
        if len(self.settings.estimators) != 1:
            raise SchemaError(
                "a predictor has one estimator", expected="settings with one name in estimators"
            )
        self._genes: pd.Index | None = None

    def __repr__(self) -> str:
        run = getattr(self.model, "path", "a model that it trains")
        [estimator] = self.settings.estimators
        return f"GenerativePredictor({run}, {estimator}, among {self.cells.n_obs:,} cells)"

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Take the cells of the training rows (conditions x genes); train, if that is asked."""
        known = pd.MultiIndex.from_tuples([tuple(map(str, key)) for key in train.index])
        labels = conditions_of(self.cells.obs)
        # Controls belong to no condition that could be withheld.
        keep = labels.isin(known) | (labels.get_level_values(1) == vehicle_of(self.cells))
        self._cells = self.cells[keep].copy()
        self._seed = int(rng.integers(2**31))
        self._run = self.model(self._cells, self._seed) if callable(self.model) else self.model
        other = train.columns.difference(pd.Index(self._run.card.genes))
        if len(other):
            raise SchemaError(
                f"the training table has genes that the run does not know: {shorten(other)}",
                expected="genes of the run, in any order; a table may have lost some to a filter",
            )
        self._genes = train.columns
        return self

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """A row for every condition, in the order asked for, with the training table's genes."""
        if self._genes is None:
            raise PerturbgenError(
                "GenerativePredictor has not been fitted", fix="call fit(train, rng=...) first"
            )
        if isinstance(conditions, pd.MultiIndex):
            conditions = conditions.to_frame(index=False)
        settings = self.settings.model_copy(update={"seed": self._seed})
        if self.adapt:
            asked, vehicle = read_wanted(conditions), vehicle_of(self._cells)
            settings = settings.feasible(self._cells.obs, asked, vehicle=vehicle)
        found = predict(
            self._run, self._cells, conditions, settings, calibration_run=self.calibration_run
        )
        return found.values[settings.estimators[0]].loc[:, self._genes]
