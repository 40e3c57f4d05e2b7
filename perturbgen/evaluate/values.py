"""A measured and a predicted DE table as arrays, with what several metrics need of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from perturbgen.core.stats import Array, divide

_BLOCK_ROWS: Final = 8  # fit into a processor's cache: row-wise metrics are several times faster


@dataclass(frozen=True, eq=False)
class Values:
    """A table of signed −log10 p, with what several metrics need of it computed once.

    A gene responds where its p, Benjamini-Hochberg adjusted within the row with ``adjust``, is at
    most ``level``; errors and correlations see the table within ± ``clip``.
    """

    given: Array
    level: float = 0.05
    adjust: bool = True
    clip: float | None = None

    @cached_property
    def values(self) -> Array:
        """The table within ± ``clip``."""
        return self.given if self.clip is None else np.clip(self.given, -self.clip, self.clip)

    @cached_property
    def blocks(self) -> list[Values]:
        """A few rows each."""
        starts = range(0, len(self.given), _BLOCK_ROWS)
        rows = [self.given[start : start + _BLOCK_ROWS] for start in starts]
        return [Values(block, self.level, self.adjust, self.clip) for block in rows]

    @cached_property
    def centred(self) -> Array:
        """Rows less their mean."""
        return _centre(self.values)

    @cached_property
    def ranks(self) -> Array:
        """Centred average ranks within rows."""
        return _centred_ranks(self.values)

    @cached_property
    def de(self) -> Array:
        """Which genes respond."""
        # Found before clipping: of p that end at 1e-4, a few out of thousands of genes would not
        # pass the adjustment, however strong they are.
        return _significant(self.given, level=self.level, adjust=self.adjust)

    @cached_property
    def weights(self) -> Array:
        """Weights by evidence, of a truth."""
        return _evidence_weights(self.values)


@dataclass(frozen=True, eq=False)
class Pair:
    """A truth and a prediction that has the truth's rows.

    ``groups`` (conditions,) says which conditions are told apart from which; ``reference``
    (conditions, genes) is the mean perturbation of the training rows.
    """

    truth: Values
    prediction: Values
    groups: Array
    reference: Array | None = None

    def blocks(self) -> list[Pair]:
        """A few rows each."""
        found = []
        for i, (true, predicted) in enumerate(
            zip(self.truth.blocks, self.prediction.blocks, strict=True)
        ):
            rows = slice(i * _BLOCK_ROWS, (i + 1) * _BLOCK_ROWS)
            reference = None if self.reference is None else self.reference[rows]
            found.append(Pair(true, predicted, self.groups[rows], reference))
        return found

    @property
    def deviations(self) -> tuple[Array, Array]:
        """Truth and prediction less the reference, or as they are where there is none."""
        reference = 0.0 if self.reference is None else self.reference
        return self.truth.values - reference, self.prediction.values - reference


def _centre(values: Array) -> Array:
    """Rows less their mean (conditions, genes)."""
    centred = values - values.mean(axis=1, keepdims=True)
    # Rounding would leave dust in a constant row, and its correlation would be that of the dust.
    centred[values.max(axis=1) == values.min(axis=1)] = 0
    return centred


def _centred_ranks(values: Array) -> Array:
    """Ranks within each row less their mean, ties at their average (conditions, genes)."""
    rows, genes = values.shape
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    first = np.ones((rows, genes), bool)  # whether a value begins a run of equal ones
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=rows * genes)
    # The mean position of the run, less (genes − 1) / 2.
    middles = starts % genes + (lengths - genes) / 2
    ranks = np.empty((rows, genes))
    np.put_along_axis(ranks, order, np.repeat(middles, lengths).reshape(rows, genes), axis=1)
    return ranks


def _significant(values: Array, *, level: float = 0.05, adjust: bool = True) -> Array:
    """Which genes respond (conditions, genes); ``adjust`` is over all genes of the row."""
    strength = np.abs(values)
    if not adjust:
        return strength >= -np.log10(level)
    # The largest k with p_(k) ≤ k·level/genes decides (Benjamini and Hochberg). Compared as −log10
    # p, since p itself may be too small for a float.
    genes = strength.shape[1]
    descending = -np.sort(-strength, axis=1)
    passes = descending >= -np.log10(np.arange(1, genes + 1) * (level / genes))
    last = genes - 1 - np.argmax(passes[:, ::-1], axis=1)
    cut = np.where(passes.any(axis=1), descending[np.arange(len(strength)), last], np.inf)
    return strength >= cut[:, None]


def _evidence_weights(truth: Array) -> Array:
    """|truth| scaled to 0..1 in each row, squared, summing to 1 (Mejia et al. 2025).

    Uniform where all absolute values of a row are equal.
    """
    strength = np.abs(truth)
    low = strength.min(axis=1, keepdims=True)
    spread = strength.max(axis=1, keepdims=True) - low
    squared = np.square(divide(strength - low, spread, 1.0))
    return squared / squared.sum(axis=1, keepdims=True)
