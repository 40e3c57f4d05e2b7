"""Linear embeddings that any network must beat: PCA, WCCN, and a metric learned from replicates.

Each is fitted on training rows only and turns (rows, features) into (rows, components), to be compared by cosine.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from perturbgen.errors import ConfigError, SchemaError

Array = np.ndarray[Any, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PCA:
    """Principal components; ``scale`` standardises features first, ``whiten`` gives every component variance one.

    Asking for more components than the data have keeps all they have.
    """

    components: int
    scale: bool = True
    whiten: bool = False
    mean: Array | None = None
    matrix: Array | None = None  # (features, components)

    def fit(self, x: Array, labels: Array | None = None) -> Self:
        """Of (rows, features); labels are not used."""
        x = check(x, self.components)
        mean = x.mean(axis=0)
        spread = x.std(axis=0) if self.scale else np.ones(x.shape[1])
        weight = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)  # a constant feature says nothing
        _, singular, axes = np.linalg.svd((x - mean) * weight, full_matrices=False)
        rank = int((singular > singular[:1].max(initial=0) * 1e-10).sum())
        kept = min(self.components, rank)
        if kept < self.components:
            log.warning("%d components were asked for; %d rows have %d", self.components, len(x), kept)
        matrix = weight[:, None] * axes[:kept].T
        if self.whiten:
            matrix = matrix / singular[:kept] * np.sqrt(len(x))
        return replace(self, mean=mean, matrix=matrix)

    def transform(self, x: Array) -> Array:
        """(rows, components)."""
        return project(x, self.mean, self.matrix)


@dataclass(frozen=True)
class WCCN:
    """Within-class covariance normalisation: PCA, then the inverse Cholesky factor of the within-class covariance.

    The pooled covariance W of rows about their class mean is shrunk to (1 - a) W + a tr(W)/k I; the product of the
    transformed rows is x' W^-1 y, so directions that vary among replicates count less.
    """

    components: int = 64
    shrink: float = 0.1
    scale: bool = True
    mean: Array | None = None
    matrix: Array | None = None

    def fit(self, x: Array, labels: Array) -> Self:
        """Of (rows, features) and (rows,) class labels."""
        if not 0 <= self.shrink <= 1:
            raise ConfigError(f"shrink is {self.shrink}", expected="a number from 0 to 1")
        pca = PCA(self.components, scale=self.scale).fit(x)
        scores = pca.transform(x)
        within = within_covariance(scores, labels)
        k = len(within)
        within = (1 - self.shrink) * within + self.shrink * np.trace(within) / k * np.eye(k)
        factor = np.linalg.cholesky(np.linalg.inv(within))  # W^-1 = F F'
        return replace(self, mean=pca.mean, matrix=pca.matrix @ factor)

    def transform(self, x: Array) -> Array:
        """(rows, components)."""
        return project(x, self.mean, self.matrix)


@dataclass(frozen=True)
class ReplicateMetric:
    """A linear metric from replicates alone, in the spirit of PeML (Smith and Haibe-Kains 2023).

    Directions v solve B v = r T v, with T the covariance of rows and B that of pairs of replicates (of class means,
    without the share that noise has in them); r is the correlation of replicates along v. Components come by falling r
    and are weighted by sqrt(r), so that the product of two rows expects what their true parts share.
    """

    components: int = 32
    before: int = 64  # principal components in which directions are sought
    shrink: float = 0.1
    scale: bool = True
    mean: Array | None = None
    matrix: Array | None = None
    correlation: Array | None = None  # (components,) r

    def fit(self, x: Array, labels: Array) -> Self:
        """Of (rows, features) and (rows,) class labels."""
        from scipy.linalg import eigh

        pca = PCA(self.before, scale=self.scale).fit(x)
        scores = pca.transform(x)
        within, total = within_covariance(scores, labels), np.cov(scores, rowvar=False, bias=True)
        k = len(total)
        total = np.atleast_2d(total)
        ridge = self.shrink * np.trace(total) / k * np.eye(k)
        r, axes = eigh(total - within, (1 - self.shrink) * total + ridge)
        best = np.argsort(-r)[: self.components]
        best = best[r[best] > 0]
        if not len(best):
            raise SchemaError(
                "no direction has replicates more alike than others", expected="replicates with something in common"
            )
        return replace(self, mean=pca.mean, matrix=pca.matrix @ (axes[:, best] * np.sqrt(r[best])), correlation=r[best])

    def transform(self, x: Array) -> Array:
        """(rows, components)."""
        return project(x, self.mean, self.matrix)


def within_covariance(scores: Array, labels: Array) -> Array:
    """(components, components) pooled covariance about class means, over rows - classes; groups of one add nothing."""
    labels = np.asarray(labels)
    if len(labels) != len(scores):
        raise SchemaError(f"{len(labels)} labels for {len(scores)} rows", expected="one a row")
    _, code = np.unique(labels.astype(str), return_inverse=True)
    size = np.bincount(code)
    free = len(scores) - len(size)
    if free < 1:
        raise SchemaError(
            "every class has one row only", expected="classes of at least two rows", fix="label by perturbation"
        )
    sums = np.zeros((len(size), scores.shape[1]))
    np.add.at(sums, code, scores)
    residual = scores - (sums / size[:, None])[code]
    return residual.T @ residual / free


def check(x: Array, components: int) -> Array:
    """Rows fit to be fitted, in float64."""
    x = np.asarray(x, float)
    if x.ndim != 2 or min(x.shape) < 2:
        raise SchemaError(f"data of shape {x.shape}", expected="at least two rows and two features")
    if components < 1:
        raise ConfigError(f"{components} components", expected="at least one")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise SchemaError(f"{bad.sum()} rows hold NaN or infinity", expected="finite numbers", fix="fill or drop them")
    return x


def project(x: Array, mean: Array | None, matrix: Array | None) -> Array:
    """(x - mean) @ matrix, once fitted."""
    if mean is None or matrix is None:
        raise ConfigError("transform before fit", expected="a fitted embedding", fix="embedding = embedding.fit(x, labels)")
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != len(mean):
        raise SchemaError(f"data of shape {x.shape}", expected=f"(rows, {len(mean)}), as the training rows")
    return (x - mean) @ matrix
