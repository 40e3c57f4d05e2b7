"""On and off the axis from healthy to diseased (Cuccarese et al. 2020).

mu = mean(healthy),  v = mean(diseased) - mu,  L = |v|
on(x)  = <x - mu, v> / L^2                    0 for healthy, 1 for diseased on average
off(x) = sqrt(|x - mu|^2 - (on L)^2)          what else was done to the cells
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perturbgen.errors import SchemaError


@dataclass(frozen=True)
class Axis:
    """``origin``, the mean healthy profile, and ``direction``, from there to the mean diseased, both (features,)."""

    origin: np.ndarray
    direction: np.ndarray

    def project(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """on and off (rows,) of profiles (rows, features)."""
        return on_off(values - self.origin, np.broadcast_to(self.direction, values.shape))


def fit_axis(healthy: np.ndarray, diseased: np.ndarray) -> Axis:
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
    return Axis(origin, direction)


def on_off(away: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    own_origin = without_each(healthy)
    own_far = without_each(diseased)
    return (
        on_off(healthy - own_origin, far - own_origin),
        on_off(diseased - origin, own_far - origin),
    )


def without_each(values: np.ndarray) -> np.ndarray:
    """For each row the mean of all the others, (rows, features)."""
    count = len(values)
    return (values.sum(axis=0) - values) / (count - 1)


def z_prime(healthy: np.ndarray, diseased: np.ndarray) -> float:
    """1 - 3 (sd + sd) / |difference of means| of the controls' on scores; at or below 0 they cannot be told apart."""
    apart = abs(diseased.mean() - healthy.mean())
    spread = healthy.std(ddof=1) + diseased.std(ddof=1)
    return float(1 - 3 * spread / apart) if apart > 0 else -np.inf
