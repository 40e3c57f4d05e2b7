"""A generative model in the form of every other predictor: fit on labelled DE rows, predict labelled DE rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from perturbgen.errors import PerturbgenError, SchemaError
from perturbgen.predict.estimators import require_same
from perturbgen.predict.pipeline import predict
from perturbgen.predict.settings import PredictSettings
from perturbgen.predict.source import labels_of, vehicle_of

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.train import TrainedRun

Trainer = Callable[["AnnData", int], "TrainedRun"]


class GenerativePredictor:
    """Generates conditions, fits them among measured ones, and estimates signed -log10 p.

    ``model`` is a trained run, or a function (cells, seed) that trains one: only the latter is honest in a comparison
    that withholds rows of its own, for then the model sees the cells of the training rows alone. ``cells`` are all
    measured cells; those of conditions that are not among the training rows are never looked at, controls excepted.
    ``calibration_run`` is that of :func:`predict`.
    """

    def __init__(
        self,
        model: TrainedRun | Trainer,
        cells: AnnData,
        settings: PredictSettings | None = None,
        *,
        calibration_run: TrainedRun | None = None,
    ) -> None:
        self.model, self.cells, self.judge = model, cells, calibration_run
        self.settings = settings or PredictSettings()
        if len(self.settings.estimators) != 1:
            raise SchemaError("a predictor has one estimator", expected="settings with one name in estimators")
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
            raise PerturbgenError("GenerativePredictor has not been fitted", fix="call fit(train, rng=...) first")
        table = conditions.to_frame(index=False) if isinstance(conditions, pd.MultiIndex) else conditions
        settings = self.settings.model_copy(update={"seed": self._seed})
        found = predict(self._run, self._cells, table, settings, calibration_run=self.judge)
        return found.values[self.settings.estimators[0]].loc[:, self._genes]
