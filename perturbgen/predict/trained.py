"""A trained run as one method among others: what it is, which conditions it has seen, and the predictor made of it.

A generative model in the form of every other predictor: fit on labelled DE rows, predict labelled DE rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError, shorten
from perturbgen.core.files import require_file, require_folder
from perturbgen.core.runs import file_hash
from perturbgen.data.covariates import complete
from perturbgen.data.h5ad import read_h5ad
from perturbgen.predict.conditions import CONDITION, labels_of, run_fingerprint, vehicle_of
from perturbgen.predict.estimators import PredictSettings, require_same
from perturbgen.predict.pipeline import predict
from perturbgen.train import read_parts

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.train import TrainedRun

_SEEN = ("train", "validation")  # validation cells decide which checkpoint is the best one


@dataclass(frozen=True)
class RunFiles:
    """A run directory, the file of measured cells it predicts among, and the run that calibrates it, if another."""

    run: Path
    cells: Path
    calibration_run: Path | None = None

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

    def record(self) -> Mapping[str, Any]:
        """What a prediction depends on, whatever the files are called."""
        return {"runs": [_run_hash(path) for path in self.runs], "cells": file_hash(self.cells)}

    def seen(self) -> pd.MultiIndex:
        """The conditions (cell_type, compound) of every cell that either run was trained or validated on."""
        labels = _cell_labels(self.cells)
        found = [_seen_conditions(path, labels, self.cells) for path in self.runs]
        return found[0].append(found[1:]).unique()

    def predictor(self, settings: PredictSettings) -> _GenerativePredictor:
        """The predictor, not fitted yet."""
        from perturbgen.train import load_run

        run, *judges = (load_run(path) for path in self.runs)
        judge = judges[0] if judges else None
        return _GenerativePredictor(run, read_h5ad(self.cells), settings, calibration_run=judge)


def _run_hash(path: Path) -> str:
    """A hash of the best parameters and of what they mean."""
    meaning = file_hash(require_file(path / "model.json", "description of a trained model"))
    return hashlib.sha256(f"{run_fingerprint(path)} {meaning}".encode()).hexdigest()


def _cell_labels(path: Path) -> pd.Series:
    """The condition (cell_type, compound) of every cell of a file, by the cell's name."""
    import anndata

    from perturbgen.data.h5ad import h5ad_errors

    with h5ad_errors(path):
        file = anndata.read_h5ad(path, backed="r")
        obs = file.obs
        file.file.close()
    labels = labels_of(pd.DataFrame({name: complete(obs, name).astype(str) for name in CONDITION}))
    return pd.Series(list(labels), obs.index.astype(str))


def _seen_conditions(run: Path, labels: pd.Series, cells: Path) -> pd.MultiIndex:
    """The conditions of the cells that a run was trained or validated on; a cell without a label is an error."""
    parts = read_parts(run)
    names = parts.index[parts.isin(_SEEN)].astype(str)
    absent = names[~names.isin(labels.index)]
    if len(absent):
        raise SchemaError(
            f"{run} was trained on {len(absent):,} cells that {cells} does not hold: {shorten(absent, 3)}",
            expected="all of its cells, to tell what it has seen",
            cause="another file of cells, or a run trained on withheld cells, too",
            fix="cells = the file that the run was trained on",
        )
    if not labels.index.is_unique:
        raise SchemaError(f"{cells} names cells twice", expected="unique names")
    return pd.MultiIndex.from_tuples(labels.loc[names].unique(), names=CONDITION)


def require_unseen(
    name: str, files: RunFiles, seen: pd.MultiIndex, withheld: pd.MultiIndex, where: str
) -> None:
    """Refuse a run that was trained on what it is to predict."""
    leaked = withheld[withheld.isin(seen)]
    if len(leaked):
        raise ConfigError(
            f"{name}: {files.run} was trained on {len(leaked)} of the {len(withheld)} conditions that {where} "
            f"withholds: {shorten([' | '.join(key) for key in leaked], 3)}",
            expected="a run that has not seen them: its score would be that of remembering",
            fix="train it with a split of cells that leaves them out ([data] split of perturbgen train), "
            "or compare on a split that withholds what it has not seen",
        )


_Trainer = Callable[["AnnData", int], "TrainedRun"]


class _GenerativePredictor:
    """Generates conditions, fits them among measured ones, and estimates signed -log10 p.

    ``model`` is a trained run, or a function (cells, seed) that trains one: only the latter is honest in a comparison
    that withholds rows of its own, for then the model sees the cells of the training rows alone. ``cells`` are all
    measured cells; those of conditions that are not among the training rows are never looked at, controls excepted.
    ``calibration_run`` is that of :func:`predict`.
    """

    def __init__(
        self,
        model: TrainedRun | _Trainer,
        cells: AnnData,
        settings: PredictSettings | None = None,
        *,
        calibration_run: TrainedRun | None = None,
    ) -> None:
        self.model, self.cells, self.judge = model, cells, calibration_run
        self.settings = settings or PredictSettings()
        if len(self.settings.estimators) != 1:
            raise SchemaError(
                "a predictor has one estimator", expected="settings with one name in estimators"
            )
        self._genes: pd.Index | None = None

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Take the cells of the training rows (cell_type, compound) x genes; train, if there is something to train."""
        known = pd.MultiIndex.from_tuples([tuple(map(str, key)) for key in train.index])
        labels = labels_of(self.cells.obs)
        keep = labels.isin(known) | (labels.get_level_values(1) == vehicle_of(self.cells))
        self._cells = self.cells[keep].copy()
        self._seed = int(rng.integers(2**31))
        self._run = self.model(self._cells, self._seed) if callable(self.model) else self.model
        require_same(train.columns, pd.Index(self._run.card.genes), "genes")
        self._genes = train.columns
        return self

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """A row for every condition, in the order asked for, with the genes of the training table."""
        if self._genes is None:
            raise PerturbgenError(
                "GenerativePredictor has not been fitted", fix="call fit(train, rng=...) first"
            )
        table = (
            conditions.to_frame(index=False)
            if isinstance(conditions, pd.MultiIndex)
            else conditions
        )
        settings = self.settings.model_copy(update={"seed": self._seed})
        found = predict(self._run, self._cells, table, settings, calibration_run=self.judge)
        return found.values[self.settings.estimators[0]].loc[:, self._genes]
