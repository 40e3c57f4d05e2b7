"""How good a drawn distribution is: CRPS, coverage of its intervals, PIT. Arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def crps(draws: NDArray[np.generic], observed: NDArray[np.generic]) -> Floats:
    """Continuous ranked probability score (rows,) of draws (rows, n) for what was observed (rows,); lower is better.

    E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007), in the fair form for a finite number of draws: pairs of a draw
    with itself do not count. A single draw is a point forecast, whose CRPS is the absolute error.
    """
    ordered = np.sort(np.asarray(draws, float), axis=1)
    n = ordered.shape[1]
    error = np.abs(ordered - np.asarray(observed, float)[:, None]).mean(axis=1)
    if n == 1:
        return error
    rank = 2 * np.arange(n) - n + 1
    return error - (ordered @ rank) / (n * (n - 1))


def pit(draws: NDArray[np.generic], observed: NDArray[np.generic], *, rng: np.random.Generator) -> Floats:
    """Probability integral transform (rows,), randomised between P(X < y) and P(X <= y), uniform where calibrated."""
    y = np.asarray(observed)[:, None]
    below, equal = (draws < y).sum(axis=1), (draws == y).sum(axis=1)
    return (below + rng.random(len(y)) * (equal + 1)) / (draws.shape[1] + 1)


def coverage(values: Floats, level: float) -> float:
    """Share of PIT values (rows,) inside the central interval of this probability."""
    return float((np.abs(values - 0.5) <= level / 2).mean())
