"""The shell of the models that learn component scores from features of conditions: they differ in one function."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.baselines.base import Baseline, normal_half_width
from perturbgen.baselines.encoding import Features, fingerprint_table, tell_without_structure
from perturbgen.baselines.lowrank import LowRankTarget, Offset
from perturbgen.baselines.table import Array, Conditions, TrainTable, tell_fallback, unknown
from perturbgen.baselines.transforms import Transform
from perturbgen.config import Settings


class FeatureSettings(Settings):
    """What the models learn and from what."""

    components: int = Field(60, ge=1, description="components of the genes that are learnt")
    encoded: int = Field(30, ge=0, description="of how many of them the target encodings are features; 0 for none")
    transform: Transform = Field("t", description="t: signed log p as t values; none: the values as they are")
    offset: Offset = Field("none", description="taken off each row first: none, mean or additive cell-type effects")
    folds: int = Field(5, ge=2, description="folds of compounds for the out-of-fold encodings")
    fingerprints: int = Field(0, ge=0, description="Morgan bits of the compounds (needs SMILES); 0 for none")
    clip: bool = Field(True, description="keep predictions within the range of each gene's training values")


F = TypeVar("F", bound=FeatureSettings)


class FeatureModel(Baseline[F]):
    """Learns scores (rows, components) from features (rows, columns), and predicts values through the components.

    Labels never seen have no indicator; their encodings are those of all rows, so that an unknown compound gets what
    the model expects of the average one in that cell type.
    """

    settings_class: ClassVar[type[Settings]] = FeatureSettings
    hot: ClassVar[bool] = True

    def __init__(self, settings: F | None = None, *, smiles: pd.Series | None = None) -> None:
        super().__init__(settings)
        self._fingerprints = fingerprint_table(smiles, self.settings.fingerprints)
        self._residual_sd: Array | None = None

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        chosen = self.settings
        self._target = LowRankTarget.fit(
            table, count=chosen.components, transform=chosen.transform, offset=chosen.offset
        )
        scores = self._target.scores(table.values, table.cell_types)
        tell_without_structure(self.name, self._fingerprints, table.compounds)
        self._features = Features.fit(
            table,
            scores,
            encoded=chosen.encoded,
            folds=chosen.folds,
            fingerprints=self._fingerprints,
            hot=self.hot,
            rng=rng,
        )
        self._fit_scores(self.training_features(), scores, rng)

    def training_features(self) -> Array:
        """Features (rows, columns) of the training rows, none of which holds anything of its own row's values."""
        return self._features.matrix(Conditions(self.table.cell_types, self.table.compounds))

    def _predict(self, wanted: Conditions) -> Array:
        table = self.table
        lost = unknown(wanted.compounds, table.compounds)
        tell_fallback(self.name, wanted, lost, "what is learnt of the average compound")
        lost = unknown(wanted.cell_types, table.cell_types)
        tell_fallback(self.name, wanted, lost, "what is learnt of the average cell type")
        return self._values(self._predict_scores(self._features.matrix(wanted)), wanted)

    def _values(self, scores: Array, wanted: Conditions) -> Array:
        """Values (conditions, genes) of predicted scores."""
        return self._target.values(scores, wanted.cell_types, clip=self.settings.clip)

    def _keep_residual_sd(self, predicted: Array) -> None:
        """Remember the spread (genes,) of the training values around predictions that did not see them."""
        table = self.table
        found = self._values(predicted, Conditions(table.cell_types, table.compounds))
        self._residual_sd = np.sqrt(((table.values - found) ** 2).mean(axis=0))

    def _half_width(self, wanted: Conditions, level: float) -> Array | None:
        return None if self._residual_sd is None else normal_half_width(self._residual_sd, len(wanted), level)

    @abstractmethod
    def _fit_scores(self, features: Array, scores: Array, rng: np.random.Generator) -> None:
        """Learn scores (rows, components) from features (rows, columns)."""

    @abstractmethod
    def _predict_scores(self, features: Array) -> Array:
        """Scores (conditions, components)."""


class Standardise:
    """Columns with mean 0 and variance 1 on the training rows; constant ones become 0."""

    def __init__(self, features: Array) -> None:
        self._mean = features.mean(axis=0)
        sd = features.std(axis=0)
        self._scale = np.where(sd > 1e-12, sd, np.inf)

    def __call__(self, features: Array) -> Array:
        """The columns, standardised."""
        return (features - self._mean) / self._scale
