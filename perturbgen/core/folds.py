"""Folds: what is withheld together, drawn the same way wherever something is judged out of sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def deal(n: int, folds: int, rng: np.random.Generator) -> np.ndarray:
    """A fold for each of ``n`` things (n,): shuffled, then dealt round, so that sizes differ by at most one."""
    return rng.permutation(n) % folds
