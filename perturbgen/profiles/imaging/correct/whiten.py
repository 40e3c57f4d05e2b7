"""Whitening on controls, aligning the controls of batches, and the two in the order that has a name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.profiles.imaging.correct.base import Correction, Pipeline, check_rows
from perturbgen.profiles.imaging.correct.scale import ControlScaler
from perturbgen.profiles.imaging.groups import Key, Rows, group_covariances, grouping, reference_rows

log = logging.getLogger(__name__)


class Sphering(Correction):
    """Make the controls' covariance C = V s V' the identity: (x - mean) V (s + ridge)^(-1/2), times V' for ZCA.

    The ridge (in units of the features' variance) is what lets 330 controls whiten 516 features: a direction in which
    the controls do not vary is scaled by ridge^(-1/2), not by infinity. PCA and ZCA give the same distances.
    """

    def __init__(self, *, ridge: float = 1.0, method: Literal["pca", "zca"] = "pca") -> None:
        if ridge < 0:
            raise SchemaError(f"ridge is {ridge}", expected="0 or more")
        self.ridge, self.method = ridge, method
        self.mean = self.rotation = np.empty(0)

    def fit(self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None) -> Self:
        """The eigenvectors of the controls' covariance."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        _, mean, covariance = group_covariances(X, rows, np.zeros(len(meta), np.int64), 1, ddof=0)
        values, vectors = np.linalg.eigh(covariance[0])
        scale = np.maximum(values, 0) + self.ridge
        if scale.min() <= 1e-12 * scale.max():
            raise SchemaError(
                f"the covariance of {len(rows)} controls in {X.shape[1]} features is singular",
                expected="more controls than features, or a ridge above 0",
                fix="Sphering(ridge=1.0)",
            )
        self.mean, self.rotation = mean[0], vectors / np.sqrt(scale)
        if self.method == "zca":
            self.rotation = self.rotation @ vectors.T
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row in the controls' own coordinates."""
        return (values - self.mean) @ self.rotation


class Coral(Correction):
    """Give each batch's controls the covariance of all: x (S_b + eta I)^(-1/2) (S + eta I)^(1/2), Sun et al. 2016.

    With ``target="identity"`` the second factor is left out. The mean is not touched (centre before). A batch with
    fewer than ``min_reference`` controls, or one never seen, is left as it is.
    """

    def __init__(
        self, by: Sequence[str], *, eta: float = 1.0, target: Literal["controls", "identity"] = "controls", min_reference: int = 2
    ) -> None:
        if eta <= 0:
            raise SchemaError(f"eta is {eta}", expected="above 0, since a batch has fewer controls than features")
        self.by, self.eta, self.target, self.min_reference = tuple(by), eta, target, max(min_reference, 2)
        self.maps: dict[Key, np.ndarray] = {}

    def fit(self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None) -> Self:
        """One matrix a batch, from one pass over the controls."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        keys, codes = grouping(meta, self.by)
        count, mean, covariance = group_covariances(X, rows, codes, len(keys), ddof=1)
        colour = power(self._target(count, mean, covariance), 0.5, self.eta) if self.target == "controls" else None
        self.maps = {}
        for key, n, own in zip(keys, count, covariance, strict=True):
            if n >= self.min_reference:
                whitening = power(own, -0.5, self.eta)
                self.maps[key] = whitening if colour is None else whitening @ colour
        if len(self.maps) < len(keys):
            log.warning("%d of %d batches have fewer than %d controls and are not aligned",
                        len(keys) - len(self.maps), len(keys), self.min_reference)  # fmt: skip
        return self

    @staticmethod
    def _target(count: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """The covariance (ddof 1) of the controls of all batches together, pooled from the batches' own."""
        within = np.tensordot(np.maximum(count - 1, 0), covariance, axes=1)
        away = mean - (count @ mean) / count.sum()
        return (within + (away * count[:, None]).T @ away) / max(count.sum() - 1, 1)

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row through its batch's matrix."""
        keys, codes = grouping(meta, self.by)
        result = values.copy()
        for number, key in enumerate(keys):
            if key in self.maps:
                rows = codes == number
                result[rows] = values[rows] @ self.maps[key]
        return result


class PrincipalComponents(Correction):
    """Scores on the leading eigenvectors of the covariance of all rows: PCA-CS learns them from treated rows as well."""

    def __init__(self, components: int) -> None:
        self.components = components
        self.mean = self.rotation = np.empty(0)

    def fit(self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None) -> Self:
        """One pass over every row, whatever ``control`` says; each eigenvector has its largest loading positive."""
        check_rows(X, meta)
        everything = np.arange(len(meta))
        _, mean, covariance = group_covariances(X, everything, np.zeros(len(meta), np.int64), 1, ddof=0)
        vectors = np.linalg.eigh(covariance[0])[1][:, ::-1][:, : self.components]
        largest = np.abs(vectors).argmax(axis=0)
        self.mean, self.rotation = mean[0], vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Scores (rows, components)."""
        return (values - self.mean) @ self.rotation


def power(matrix: np.ndarray, exponent: float, ridge: float) -> np.ndarray:
    """(matrix + ridge I)^exponent of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * (np.maximum(values, 0) + ridge) ** exponent) @ vectors.T


def tvn(batch: Sequence[str] = (), *, ridge: float = 1.0, eta: float = 1.0) -> Pipeline:
    """Typical variation normalisation (Ando et al. 2017): z-score and whiten on controls, then CORAL for each batch."""
    return Pipeline(ControlScaler(), Sphering(ridge=ridge), *([Coral(batch, eta=eta)] if batch else []))


def pca_cs(batch: Sequence[str], *, components: int = 128) -> Pipeline:
    """PCA on all rows, then centre and scale by the controls of each batch (the EFAAR trunk's PCA-CS)."""
    return Pipeline(PrincipalComponents(components), ControlScaler(batch))
