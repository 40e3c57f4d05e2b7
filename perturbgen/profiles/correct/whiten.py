"""Whitening on controls, aligning the controls of batches, and the two in the order that has a name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles.correct.base import Correction, Pipeline, check_rows
from perturbgen.profiles.correct.centre import ControlScaler
from perturbgen.profiles.groups import Key, Rows, covariance_of, grouping, reference_rows

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

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """The eigenvectors of the controls' covariance."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        mean, covariance = covariance_of(X, rows)
        values, vectors = np.linalg.eigh(covariance)
        scale = np.maximum(values, 0) + self.ridge
        if scale.min() <= 1e-12 * scale.max():
            raise SchemaError(
                f"the covariance of {len(rows)} controls in {X.shape[1]} features is singular",
                expected="more controls than features, or a ridge above 0",
                fix="Sphering(ridge=1.0)",
            )
        self.mean = mean
        self.rotation = (
            (vectors / np.sqrt(scale)) @ vectors.T
            if self.method == "zca"
            else _canonical(values, vectors) / np.sqrt(scale)
        )
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row in the controls' own coordinates."""
        return (values - self.mean) @ self.rotation


class Coral(Correction):
    """Give each batch's controls the covariance of all: x (S_b + eta I)^(-1/2) (S + eta I)^(1/2), Sun et al. 2016.

    With ``target="identity"`` the second factor is left out. The mean is not touched (centre before). A batch with
    fewer than ``min_reference`` controls, or one never seen, is left as it is. A batch of n controls is kept as its
    n - 1 directions at most, so that neither time nor memory is spent on the rest, where S_b + eta I = eta I.
    """

    def __init__(
        self,
        by: Sequence[str],
        *,
        eta: float = 1.0,
        target: Literal["controls", "identity"] = "controls",
        min_reference: int = 2,
    ) -> None:
        if eta <= 0:
            raise SchemaError(
                f"eta is {eta}", expected="above 0, since a batch has fewer controls than features"
            )
        self.by, self.eta, self.target, self.min_reference = (
            tuple(by),
            eta,
            target,
            max(min_reference, 2),
        )
        self.batches: dict[Key, tuple[np.ndarray, np.ndarray]] = {}
        self.colour: np.ndarray | None = None

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """The directions of each batch's controls and the covariance of all, each control read once."""
        check_rows(X, meta)
        rows = reference_rows(len(meta), control)
        keys, codes = grouping(meta, self.by)
        scatter, means, counts = (
            np.zeros((X.shape[1], X.shape[1])),
            np.zeros((len(keys), X.shape[1])),
            np.zeros(len(keys)),
        )
        self.batches = {}
        for number in np.unique(codes[rows]):
            values = np.asarray(X[rows[codes[rows] == number]], np.float64)
            counts[number], means[number] = len(values), values.mean(axis=0)
            away = values - means[number]
            scatter += away.T @ away
            if len(values) >= self.min_reference:
                self.batches[keys[number]] = self._directions(away)
        away = (means - counts @ means / counts.sum()) * np.sqrt(counts)[:, None]
        covariance = (scatter + away.T @ away) / max(counts.sum() - 1, 1)
        self.colour = _power(covariance, 0.5, self.eta) if self.target == "controls" else None
        if len(self.batches) < len(keys):
            log.warning(
                "%d of %d batches have fewer than %d controls and are not aligned",
                len(keys) - len(self.batches),
                len(keys),
                self.min_reference,
            )
        return self

    def _directions(self, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Directions V (features, r) of centred controls, and how much (s + eta)^(-1/2) differs along each from
        eta^(-1/2).
        """
        _, singular, vectors = np.linalg.svd(away, full_matrices=False)
        return vectors.T, (singular**2 / (len(away) - 1) + self.eta) ** -0.5 - self.eta**-0.5

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row whitened by its batch and given the colour of all."""
        keys, codes = grouping(meta, self.by)
        result = values.copy()
        for number, key in enumerate(keys):
            if key in self.batches:
                rows, (vectors, gain) = codes == number, self.batches[key]
                white = (
                    values[rows] * self.eta**-0.5 + ((values[rows] @ vectors) * gain) @ vectors.T
                )
                result[rows] = white if self.colour is None else white @ self.colour
        return result


class PrincipalComponents(Correction):
    """Scores on the leading eigenvectors of the covariance of all rows; PCA-CS learns them from treated rows, too."""

    def __init__(self, components: int) -> None:
        self.components = components
        self.mean = self.rotation = np.empty(0)

    def fit(
        self, X: Rows, meta: pd.DataFrame, *, control: np.ndarray | pd.Series | None = None
    ) -> Self:
        """One pass over every row, whatever ``control`` says; each eigenvector has its largest loading positive."""
        check_rows(X, meta)
        mean, covariance = covariance_of(X, np.arange(len(meta)))
        vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, : self.components]
        largest = np.abs(vectors).argmax(axis=0)
        self.mean, self.rotation = (
            mean,
            vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])]),
        )
        return self

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Scores (rows, components)."""
        return (values - self.mean) @ self.rotation


def _canonical(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The eigenvectors with one fixed basis of the null space, where any basis is as good; LAPACK's hangs on rounding.

    Distances do not care, but whatever is done coordinate by coordinate afterwards does (a median over wells).
    """
    empty = values <= 1e-9 * max(values.max(), 0.0)
    if not empty.any():
        return vectors
    projector = vectors[:, empty] @ vectors[:, empty].T
    fixed = vectors.copy()
    fixed[:, empty] = np.linalg.qr(projector[:, : int(empty.sum())])[0]
    return fixed


def _power(matrix: np.ndarray, exponent: float, ridge: float) -> np.ndarray:
    """(matrix + ridge I)^exponent of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * (np.maximum(values, 0) + ridge) ** exponent) @ vectors.T


def tvn(batch: Sequence[str] = (), *, ridge: float = 1.0, eta: float = 1.0) -> Pipeline:
    """Typical variation normalisation (Ando et al. 2017): z-score and whiten on controls, then CORAL for each batch."""
    return Pipeline(
        ControlScaler(), Sphering(ridge=ridge), *([Coral(batch, eta=eta)] if batch else [])
    )


def pca_cs(batch: Sequence[str], *, components: int = 128) -> Pipeline:
    """PCA on all rows, then centre and scale by the controls of each batch (the EFAAR trunk's PCA-CS)."""
    return Pipeline(PrincipalComponents(components), ControlScaler(batch))
