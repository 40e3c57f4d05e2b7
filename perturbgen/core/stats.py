"""Statistics that several rooms need: bootstrap, folds, safe ratios, log CPM, weights.

Benjamini and Hochberg's adjustment has no home here. scipy's ``false_discovery_control`` makes it
in ``de.limma``, ``retrieval.evaluator``, ``retrieval.consistency`` and ``images.hits``. In
``evaluate``, ``duplicate._adjusted_p`` makes it of -log10 p, all rows at once, and ``_significant``
of ``values`` asks from the logarithms alone which pass a level. The first rounds in another order
than scipy: one function for both would change a third of the numbers in their last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

_T = TypeVar("_T")
Array: TypeAlias = np.ndarray[Any, Any]


def resample(
    n: int, resamples: int, rng: np.random.Generator, clusters: Sequence[object] | None = None
) -> Array:
    """How often each condition is drawn in each resample (resamples, n).

    Every method is given the same draws, so that differences between methods are paired. With
    ``clusters`` (one label a condition) whole clusters are drawn: two cell types of one compound
    are not independent.
    """
    labels = range(n) if clusters is None else clusters
    codes = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    drawn = rng.integers(len(codes), size=(resamples, len(codes)))
    counts = np.zeros((resamples, len(codes)))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
    return counts[:, [codes[label] for label in labels]]


def means(scores: Array, counts: Array) -> Array:
    """Means (resamples, series) of scores (series, conditions) drawn so often; NaN is none."""
    present = np.isfinite(scores)
    totals = counts @ np.where(present, scores, 0).T
    return divide(totals, counts @ present.T.astype(float), np.nan)


def interval(draws: Array, coverage: float = 0.95) -> tuple[Array, Array]:
    """Percentile interval of each series (series,), from (resamples, series); NaN where all are."""
    # Resamples in which a series has no value say nothing of where its value lies.
    tails = [(1 - coverage) / 2, (1 + coverage) / 2]
    low, high = np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    for series in range(draws.shape[1]):
        finite = draws[np.isfinite(draws[:, series]), series]
        if finite.size:
            low[series], high[series] = np.quantile(finite, tails)
    return low, high


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


def divide(numerator: Array, denominator: Array, otherwise: float = 0.0) -> Array:
    """The ratio, and ``otherwise`` where the denominator is 0."""
    out = np.full(np.broadcast(numerator, denominator).shape, otherwise)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def log_cpm(counts: Array, sizes: Array) -> Array:
    """log2((count + ½) / (size + 1) · 10⁶), (samples, genes), as voom defines it."""
    return np.log2((counts + 0.5) / (sizes + 1)[:, None] * 1e6)


def non_negative_weights(products: Array, answers: Array) -> Array:
    """argmin over w ≥ 0 of w'Pw − 2a'w, for P = A'A (members, members) and a = A'b (members,).

    The eigenvectors of P stand in for A (with U'U = A'A, ‖Aw − b‖² and ‖Uw − U⁻'A'b‖² differ by a
    constant), since A has a row for every gene of every condition and P only one a member.
    """
    from scipy.optimize import nnls

    squares, vectors = np.linalg.eigh(products)
    # Members that predict alike make P singular: directions without weight are dropped.
    kept = squares > 1e-12 * max(squares.max(), 1e-300)
    root = np.sqrt(squares[kept])
    if not kept.any():
        return np.zeros(len(answers))
    return nnls(root[:, None] * vectors[:, kept].T, (vectors[:, kept].T @ answers) / root)[0]
