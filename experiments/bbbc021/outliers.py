"""Outliers in the space of the features themselves; distances on a 2-D map change with its seed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from perturbgen.core.errors import SchemaError


def outlier_scores(
    values: np.ndarray,
    *,
    method: Literal["knn", "mahalanobis", "lof"] = "knn",
    neighbours: int = 7,
    ridge: float = 1e-3,
) -> np.ndarray:
    """How far each row (rows, features) lies from the others, (rows,); higher is further.

    * ``knn``: mean distance to the nearest ``neighbours`` rows;
    * ``mahalanobis``: distance from the mean under the covariance plus ``ridge`` of its mean
      variance;
    * ``lof``: local outlier factor, 1 for a row as dense as its neighbourhood.

    Units differ by method.
    """
    values = np.asarray(values, np.float64)
    if method == "mahalanobis":
        return _mahalanobis(values, ridge)
    if not 1 <= neighbours < len(values):
        raise SchemaError(
            f"{neighbours} neighbours of {len(values)} rows", expected=f"1 to {len(values) - 1}"
        )
    if method == "knn":
        from sklearn.neighbors import NearestNeighbors

        distance, _ = NearestNeighbors(n_neighbors=neighbours).fit(values).kneighbors()
        return distance.mean(axis=1)
    if method == "lof":
        from sklearn.neighbors import LocalOutlierFactor

        return -LocalOutlierFactor(n_neighbors=neighbours).fit(values).negative_outlier_factor_
    raise SchemaError(f"no outlier method {method!r}", expected="knn, mahalanobis or lof")


def _mahalanobis(values: np.ndarray, ridge: float) -> np.ndarray:
    """sqrt((x - m)' (S + r I)^-1 (x - m)), by Cholesky; works with fewer rows than features."""
    from scipy.linalg import cho_factor, cho_solve

    away = values - values.mean(axis=0)
    covariance = away.T @ away / max(len(values) - 1, 1)
    level = ridge * np.trace(covariance) / len(covariance)
    if level <= 0:
        raise SchemaError(
            "all rows are equal: nothing is an outlier", expected="features that vary"
        )
    solved = cho_solve(cho_factor(covariance + level * np.eye(len(covariance))), away.T)
    return np.sqrt(np.maximum((away * solved.T).sum(axis=1), 0))
