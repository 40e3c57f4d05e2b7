"""Linear and kernel models: cell type plus compound, and regressions of component scores."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.baselines.base import Baseline, ConditionList, LinearSmoother, TrainTable, one_hot
from perturbgen.baselines.features import (
    FeatureModel,
    FeatureSettings,
    LowRankTarget,
    Offset,
    TargetEncoding,
    Transform,
)
from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError


class _Additive(LinearSmoother[Settings]):
    """y = cell type + compound, by least squares over the unbalanced table.

    An unknown compound gets the average compound's effect, an unknown cell type the average's.
    """

    def weights(self, wanted: ConditionList) -> np.ndarray:
        """x X⁺ with x the indicators of the condition."""
        self._tell_unknown(
            wanted,
            cell_type="the average cell type's effect",
            compound="the average compound's effect",
        )
        return self.table.additive_weights(wanted.cell_types, wanted.compounds)


class _ShrunkenAdditive(LinearSmoother[Settings]):
    """y = mean + cell type + compound with random effects, predicted without bias (BLUP).

    The three variances are moments of the training rows: products of two rows, averaged over genes,
    are regressed on whether they share the cell type or the compound (Haseman & Elston 1972); what
    is left on the diagonal is noise. An unknown compound or cell type has the effect zero, which is
    what the model expects of it.
    """

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        self.variances = _variance_components(table)
        cell, compound, noise = self.variances
        kernel = self._kernel(table)
        # Without noise the kernel of a table with repeated labels is singular.
        diagonal = noise if noise > 0 else 1e-9 * (cell + compound) + 1e-300
        kernel[np.diag_indices_from(kernel)] += diagonal
        inverse = np.linalg.inv(kernel)
        self._mean = inverse.sum(axis=0) / inverse.sum()
        self._gain = inverse - np.outer(inverse.sum(axis=1), self._mean)

    def _kernel(self, wanted: ConditionList) -> np.ndarray:
        cell, compound, _ = self.variances
        same_cell = wanted.cell_types[:, None] == self.table.cell_types
        same_compound = wanted.compounds[:, None] == self.table.compounds
        return cell * same_cell + compound * same_compound

    def weights(self, wanted: ConditionList) -> np.ndarray:
        """w₀ + k C⁻¹ (I − 1 w₀), w₀ the weights of the generalised least squares mean."""
        self._tell_unknown(
            wanted, cell_type="no effect of the cell type", compound="no effect of the compound"
        )
        return self._mean + self._kernel(wanted) @ self._gain


def _variance_components(table: TrainTable) -> tuple[float, float, float]:
    """Variances of cell-type and compound effects and of noise, averaged over genes, or 0.

    E[(yᵢ − μ)(yⱼ − μ)] = floor + σ²_cell [same cell type] + σ²_compound [same compound]
    + σ²_noise [i = j]; the floor is there because μ is estimated. No pair of different rows shares
    both labels, so the regression is three means: of pairs of one cell type, of pairs of one
    compound, and of pairs that share neither.
    """
    values, (rows, genes) = table.values, table.values.shape
    mean = values.mean(axis=0)
    squares = float(np.einsum("rg,rg->", values, values) - rows * mean @ mean)
    totals, pairs = [], []
    for labels in (table.cell_types, table.compounds):
        # Σ over pairs that share a label is Σ over labels of ‖Σ (y − μ)‖², less Σ ‖y − μ‖².
        hot = one_hot(labels, np.unique(labels))
        sizes = hot.sum(axis=0)
        sums = hot.T @ values - np.outer(sizes, mean)
        totals.append(float(np.vdot(sums, sums)) - squares)
        pairs.append(int((sizes * (sizes - 1)).sum()))
    strangers = rows * (rows - 1) - pairs[0] - pairs[1]
    between = (-squares - totals[0] - totals[1]) / strangers / genes if strangers else 0.0
    # A moment may come out below zero, which no variance is.
    cell, compound = (
        max(total / count / genes - between, 0.0) if count else 0.0
        for total, count in zip(totals, pairs, strict=True)
    )
    noise = squares / rows / genes - between - (cell + compound)
    return cell, compound, max(noise, 0.0)


def bilinear_ridge(
    values: np.ndarray, left: np.ndarray, right: np.ndarray, *, ridge: float
) -> np.ndarray:
    """The map W (k, l) between two embeddings, Y ≈ P W G, as in Ahlmann-Eltze et al. 2025.

    W = (PᵀP + λI)⁻¹ Pᵀ Y Gᵀ (GGᵀ)⁻¹ with Y (rows, genes), P = ``left`` (rows, k) and G = ``right``
    (l, genes). They have genes as rows, Y ≈ G W Pᵀ, and the penalty on both sides; the genes are so
    many that theirs needs none.
    """
    # lstsq, not an inverse: without a penalty the columns of an embedding may depend on each other.
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
    offset: Offset = "additive"
    transform: Transform = "none"


class _BilinearRidge(Baseline[_BilinearSettings]):
    """Ridge between PCA embeddings of the genes and of the conditions (Ahlmann-Eltze et al. 2025).

    A condition is embedded as the component scores of its compound's mean profile over the *other*
    cell types, its cell type as indicators, and with ``interaction`` their products, which the
    penalty shrinks towards the map that all cell types share. An unknown compound is embedded as
    the average one, an unknown cell type has the shared map.
    """

    settings_class: ClassVar[type[Settings]] = _BilinearSettings

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        chosen = self.settings
        self._target = LowRankTarget.fit(
            table, count=chosen.components, transform=chosen.transform, offset=chosen.offset
        )
        scores = self._target.scores(table.values, table.cell_types)
        # Only the encodings of compounds are used, which need no folds.
        self._encoding = TargetEncoding(scores, table, {}, ("mean",))
        self._names = np.unique(table.cell_types)
        # In units of its spread, so that one penalty means the same for every table.
        self._scale = float(np.sqrt((self._encoding.by_compound(table) ** 2).mean())) or 1.0
        # In coordinates of the components the embedding of the genes is the identity.
        genes, left = np.eye(scores.shape[1]), self._embed(table)
        self._map = bilinear_ridge(scores, left, genes, ridge=chosen.ridge * len(left))

    def _embed(self, wanted: ConditionList) -> np.ndarray:
        """The embedding (conditions, columns): one, cell type, compound, and their products."""
        cells = one_hot(wanted.cell_types, self._names)
        compound = self._encoding.by_compound(wanted) / self._scale
        parts = [np.ones((len(wanted), 1)), cells, compound]
        if self.settings.interaction:
            parts.append((cells[:, :, None] * compound[:, None, :]).reshape(len(wanted), -1))
        return np.hstack(parts)

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        self._tell_unknown(
            wanted, cell_type="the map of all cell types", compound="the average compound"
        )
        return self._target.values(self._embed(wanted) @ self._map, wanted.cell_types, clip=False)


class _PLSSettings(FeatureSettings):
    """Partial least squares."""

    latent: int = Field(10, ge=1, description="latent variables")


class _PartialLeastSquares(FeatureModel[_PLSSettings]):
    """Partial least squares from one-hot labels and target encodings to component scores."""

    settings_class: ClassVar[type[Settings]] = _PLSSettings
    standardised: ClassVar[bool] = True

    def _fit_scores(
        self, features: np.ndarray, scores: np.ndarray, rng: np.random.Generator
    ) -> None:
        from sklearn.cross_decomposition import PLSRegression

        # scikit-learn refuses more latent variables than there are rows or columns.
        latent = min(self.settings.latent, len(features) - 1, features.shape[1], scores.shape[1])
        self._model = PLSRegression(n_components=latent, scale=False).fit(features, scores)

    def _predict_scores(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict(features)).reshape(len(features), -1)


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


class _KernelRidge(FeatureModel[_KernelSettings]):
    """Kernel ridge with a Gaussian kernel on target encodings (no one-hot: similar is similar).

    Prediction = mean + k (K + λI)⁻¹ (Z − mean). As a Gaussian process it has a variance for free:
    its residuals with each row withheld are rᵢ / (1 − hᵢ), and their spread gives the intervals.
    """

    settings_class: ClassVar[type[Settings]] = _KernelSettings
    hot: ClassVar[bool] = False
    standardised: ClassVar[bool] = True

    def __init__(
        self, settings: _KernelSettings | None = None, *, smiles: pd.Series | None = None
    ) -> None:
        super().__init__(settings, smiles=smiles)
        if not (self.settings.encoded or self.settings.fingerprints):
            raise ConfigError(
                "kernel ridge without any feature", fix="encoded of 1 or more, or fingerprints"
            )

    def _fit_scores(
        self, features: np.ndarray, scores: np.ndarray, rng: np.random.Generator
    ) -> None:
        self._rows = features
        squares = _squares_between(features, features)
        # Of pairs of rows: the distance of a row to itself is no distance.
        typical = float(np.median(squares[~np.eye(len(squares), dtype=bool)]))
        # All distances may be 0, where the training rows have one compound only.
        self._gamma = 1 / (2 * self.settings.width**2 * max(typical, 1e-12))
        self._mean = scores.mean(axis=0)
        kernel = np.exp(-self._gamma * squares)
        inverse = np.linalg.inv(kernel + self.settings.ridge * np.eye(len(kernel)))
        self._dual = inverse @ (scores - self._mean)
        # Each row predicted from the others, in closed form.
        self._keep_residual_sd(scores - self._dual / np.diag(inverse)[:, None])

    def _predict_scores(self, features: np.ndarray) -> np.ndarray:
        kernel = np.exp(-self._gamma * _squares_between(features, self._rows))
        return self._mean + kernel @ self._dual


def _squares_between(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """‖a − b‖² (left rows, right rows)."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.maximum(squares, 0)
