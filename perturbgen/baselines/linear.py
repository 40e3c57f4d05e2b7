"""Linear and kernel models on component scores: the bilinear ridge, partial least squares, kernel ridge."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.baselines.base import (
    Array,
    Baseline,
    Conditions,
    TrainTable,
    Transform,
    levels,
    one_hot,
    tell_fallback,
    unknown,
)
from perturbgen.baselines.features import FeatureModel, FeatureSettings, Standardise, TargetEncoding
from perturbgen.baselines.lowrank import LowRankTarget, Offset
from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError


def bilinear_ridge(values: Array, left: Array, right: Array, *, ridge: float) -> Array:
    """The map W (k, l) between two embeddings, Y ≈ P W G, in the closed form of Ahlmann-Eltze et al. 2025.

    W = (PᵀP + λI)⁻¹ Pᵀ Y Gᵀ (GGᵀ)⁻¹ with Y (rows, genes), P = ``left`` (rows, k) and G = ``right`` (l, genes). They
    have genes as rows, Y ≈ G W Pᵀ, and the penalty on both sides; the genes are so many that theirs needs none.
    """
    inner = np.linalg.lstsq(right @ right.T, right @ values.T @ left, rcond=None)[0].T
    return np.linalg.lstsq(left.T @ left + ridge * np.eye(left.shape[1]), inner, rcond=None)[0]


class _BilinearSettings(Settings):
    """The embeddings and the penalty."""

    components: int = Field(
        10, ge=1, description="components of the genes, and of a compound's profile"
    )
    ridge: float = Field(
        0.1, ge=0, description="the penalty, per row and gene-averaged variance of the embedding"
    )
    interaction: bool = Field(
        True, description="let each cell type answer to the compound's components its own way"
    )
    offset: Offset = Field(
        "additive", description="taken off each row first: none, mean or additive"
    )
    transform: Transform = Field(
        "none", description="t: signed log p as t values; none: the values as they are"
    )


class BilinearRidge(Baseline[_BilinearSettings]):
    """Ridge between PCA embeddings of the genes and of the conditions (Ahlmann-Eltze et al. 2025).

    A condition is embedded as the component scores of its compound's mean profile over the *other* cell types, its cell
    type as indicators, and with ``interaction`` their products, which the penalty shrinks towards the map that all cell
    types share. An unknown compound is embedded as the average one, an unknown cell type has the shared map.
    """

    settings_class: ClassVar[type[Settings]] = _BilinearSettings

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        chosen = self.settings
        self._target = LowRankTarget.fit(
            table, count=chosen.components, transform=chosen.transform, offset=chosen.offset
        )
        scores = self._target.scores(table.values, table.cell_types)
        folds = dict.fromkeys(
            table.compounds, 0
        )  # only the compounds' encodings are used, and they need no folds
        self._encoding = TargetEncoding(scores, table.cell_types, table.compounds, folds, ("mean",))
        self._names = levels(table.cell_types)
        trained = Conditions(table.cell_types, table.compounds)
        self._scale = 1.0
        self._scale = float(np.sqrt((self._embed_compound(trained) ** 2).mean())) or 1.0
        left, genes = (
            self._embed(trained),
            np.eye(scores.shape[1]),
        )  # in coordinates of the components, G is I
        self._map = bilinear_ridge(scores, left, genes, ridge=self.settings.ridge * len(left))

    def _embed_compound(self, wanted: Conditions) -> Array:
        """Mean scores (conditions, components) of the compound's rows in other cell types, in units of their spread."""
        return self._encoding.by_compound(wanted) / self._scale

    def _embed(self, wanted: Conditions) -> Array:
        """The embedding (conditions, columns): one, cell type, compound, and their products."""
        cells, compound = one_hot(wanted.cell_types, self._names), self._embed_compound(wanted)
        parts = [np.ones((len(wanted), 1)), cells, compound]
        if self.settings.interaction:
            parts.append((cells[:, :, None] * compound[:, None, :]).reshape(len(wanted), -1))
        return np.hstack(parts)

    def _predict(self, wanted: Conditions) -> Array:
        table = self.table
        tell_fallback(
            self.name, wanted, unknown(wanted.compounds, table.compounds), "the average compound"
        )
        tell_fallback(
            self.name,
            wanted,
            unknown(wanted.cell_types, table.cell_types),
            "the map of all cell types",
        )
        return self._target.values(self._embed(wanted) @ self._map, wanted.cell_types, clip=False)


class _PLSSettings(FeatureSettings):
    """Partial least squares."""

    latent: int = Field(10, ge=1, description="latent variables")


class PartialLeastSquares(FeatureModel[_PLSSettings]):
    """Partial least squares from one-hot labels and out-of-fold target encodings to component scores."""

    settings_class: ClassVar[type[Settings]] = _PLSSettings

    def _fit_scores(self, features: Array, scores: Array, rng: np.random.Generator) -> None:
        from sklearn.cross_decomposition import PLSRegression

        self._standardise = Standardise(features)
        latent = min(self.settings.latent, len(features) - 1, features.shape[1], scores.shape[1])
        self._model = PLSRegression(n_components=latent, scale=False).fit(
            self._standardise(features), scores
        )

    def _predict_scores(self, features: Array) -> Array:
        return np.asarray(self._model.predict(self._standardise(features))).reshape(
            len(features), -1
        )


class _KernelSettings(FeatureSettings):
    """The kernel and the penalty."""

    width: float = Field(
        1.0, gt=0, description="kernel width in units of the median distance of training rows"
    )
    ridge: float = Field(
        0.3,
        gt=0,
        description="penalty: the share of noise beside a kernel with ones on its diagonal",
    )


class KernelRidge(FeatureModel[_KernelSettings]):
    """Kernel ridge with a Gaussian kernel on out-of-fold target encodings (no one-hot: similar is similar).

    Prediction = mean + k (K + λI)⁻¹ (Z − mean). As a Gaussian process it has a variance for free: its residuals with
    each row left out are rᵢ / (1 − hᵢ), and their spread gives the intervals.
    """

    settings_class: ClassVar[type[Settings]] = _KernelSettings
    hot: ClassVar[bool] = False

    def __init__(
        self, settings: _KernelSettings | None = None, *, smiles: pd.Series | None = None
    ) -> None:
        super().__init__(settings, smiles=smiles)
        if not (self.settings.encoded or self.settings.fingerprints):
            raise ConfigError(
                "kernel ridge without any feature", fix="encoded of 1 or more, or fingerprints"
            )

    def _fit_scores(self, features: Array, scores: Array, rng: np.random.Generator) -> None:
        self._standardise = Standardise(features)
        self._rows = self._standardise(features)
        squares = _squared_distances(self._rows, self._rows)
        typical = float(np.median(squares[~np.eye(len(squares), dtype=bool)]))
        self._gamma = 1 / (2 * self.settings.width**2 * max(typical, 1e-12))
        self._mean = scores.mean(axis=0)
        kernel = np.exp(-self._gamma * squares)
        inverse = np.linalg.inv(kernel + self.settings.ridge * np.eye(len(kernel)))
        self._dual = inverse @ (scores - self._mean)
        self._keep_residual_sd(
            scores - self._dual / np.diag(inverse)[:, None]
        )  # leave-one-out in closed form

    def _predict_scores(self, features: Array) -> Array:
        kernel = np.exp(-self._gamma * _squared_distances(self._standardise(features), self._rows))
        return self._mean + kernel @ self._dual


def _squared_distances(left: Array, right: Array) -> Array:
    """‖a − b‖² (left rows, right rows)."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.maximum(squares, 0)
