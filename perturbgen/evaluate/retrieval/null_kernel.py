"""The exact null distribution of average precision, compiled by numba. Import where used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


@njit(nogil=True, cache=True)
def ap_distribution(positives: int, total: int, size: int) -> Array:
    """(size + 1,) the exact null of AP on a grid: probability that AP is about v / size for random ranks.

    Ranks 1..total are visited in turn; a state is (positives met, AP so far). A hit at rank r as the k-th positive adds
    k / (r positives), shared between the two nearest grid places so that the mean stays exact.
    """
    state = np.zeros((positives + 1, size + 2))
    state[0, 0] = 1
    for r in range(1, total + 1):
        for k in range(min(positives, r), -1, -1):
            state[k] *= 1 - (positives - k) / (total - r + 1)
            if k == 0:
                continue
            chance = (positives - k + 1) / (total - r + 1)
            added = size * k / (r * positives)
            shift = int(added)
            up = (added - shift) * chance
            down = chance - up
            for v in range(min(size * (k - 1) // positives + k, size - shift) + 1):
                mass = state[k - 1, v]
                state[k, v + shift] += down * mass
                state[k, v + shift + 1] += up * mass
    state[positives, size] += state[positives, size + 1]
    return state[positives, : size + 1]
