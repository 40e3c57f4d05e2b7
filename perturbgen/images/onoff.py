"""On and off the axis from healthy to diseased (Cuccarese et al. 2020).

mu = mean(healthy),  v = mean(diseased) - mu,  L = |v|
on(x)  = <x - mu, v> / L^2                    0 for healthy, 1 for diseased on average
off(x) = sqrt(|x - mu|^2 - (on L)^2)          what else was done to the cells

Outliers in the space of the features themselves; distances on a 2-D map change with its seed and mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from perturbgen.core.errors import SchemaError


@dataclass(frozen=True)
class _Axis:
    """``origin``, the mean healthy profile, and ``direction``, from there to the mean diseased, both (features,)."""

    origin: np.ndarray
    direction: np.ndarray

    def project(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """on and off (rows,) of profiles (rows, features)."""
        return _on_off(values - self.origin, np.broadcast_to(self.direction, values.shape))


def fit_axis(healthy: np.ndarray, diseased: np.ndarray) -> _Axis:
    """The axis between two sets of control profiles (rows, features)."""
    origin = healthy.mean(axis=0)
    direction = diseased.mean(axis=0) - origin
    if not np.linalg.norm(direction) > 1e-12 * max(np.abs(diseased).max(), np.abs(healthy).max()):
        raise SchemaError(
            "healthy and diseased controls have the same mean profile: there is no axis between them",
            expected="controls that differ",
            cause="centring by the disease itself, which removes it",
            fix="centre by experiment, plate and site only",
        )
    return _Axis(origin, direction)


def _on_off(away: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """on and off of ``away`` = x - mu, each row with a ``direction`` of its own, both (rows, features)."""
    length = (direction**2).sum(axis=1)
    on = (away * direction).sum(axis=1) / length
    return on, np.sqrt(np.maximum((away**2).sum(axis=1) - on**2 * length, 0))


def project_controls(
    healthy: np.ndarray, diseased: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """on and off of the controls themselves, each on the axis of all controls *but itself*: (healthy, diseased).

    With itself in the mean a diseased control lies at 1 by construction, while a well that merely resembles it lies
    below, by |error of v|^2 / |v|^2: every inert drug would look like a rescue.
    """
    origin, far = healthy.mean(axis=0), diseased.mean(axis=0)
    own_origin = _without_each(healthy)
    own_far = _without_each(diseased)
    return (
        _on_off(healthy - own_origin, far - own_origin),
        _on_off(diseased - origin, own_far - origin),
    )


def _without_each(values: np.ndarray) -> np.ndarray:
    """For each row the mean of all the others, (rows, features)."""
    count = len(values)
    return (values.sum(axis=0) - values) / (count - 1)


def z_prime(healthy: np.ndarray, diseased: np.ndarray) -> float:
    """1 - 3 (sd + sd) / |difference of means| of the controls' on scores; at or below 0 they cannot be told apart."""
    apart = abs(diseased.mean() - healthy.mean())
    spread = healthy.std(ddof=1) + diseased.std(ddof=1)
    return float(1 - 3 * spread / apart) if apart > 0 else -np.inf


def outlier_scores(
    values: np.ndarray,
    *,
    method: Literal["knn", "mahalanobis", "lof"] = "knn",
    neighbours: int = 7,
    ridge: float = 1e-3,
) -> np.ndarray:
    """How far each row (rows, features) lies from the others, (rows,); higher is further, units differ by method.

    ``knn``: mean distance to the nearest ``neighbours`` rows. ``mahalanobis``: distance from the mean under the
    covariance plus ``ridge`` of its mean variance. ``lof``: local outlier factor, 1 for a row as dense as its
    neighbourhood.
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
    """sqrt((x - m)' (S + r I)^-1 (x - m)), solved by Cholesky; works with fewer rows than features."""
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
