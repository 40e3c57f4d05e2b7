"""Folds: what is withheld together, and the choice of settings by what they predict of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np

_T = TypeVar("_T")


def deal(n: int, folds: int, rng: np.random.Generator) -> np.ndarray:
    """A fold for each of ``n`` things (n,): shuffled, then dealt round, of near-equal sizes."""
    return rng.permutation(n) % folds


class _Choice(NamedTuple, Generic[_T]):
    """What was chosen, its score, and the scores of all candidates in their order."""

    best: _T
    score: float
    scores: list[float]


def choose(candidates: Iterable[_T], score: Callable[[_T], float]) -> _Choice[_T]:
    """The candidate with the highest score, the first of equals; NaN is never the highest.

    ``score`` has to judge by inner folds alone: a choice that has seen what is withheld in the end
    makes every number after it too good.
    """
    tried = list(candidates)
    scores = [float(score(candidate)) for candidate in tried]
    at = max(range(len(tried)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
    return _Choice(tried[at], scores[at], scores)
