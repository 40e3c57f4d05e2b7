"""What a metric is; a measured and a predicted DE table as the arrays that metrics see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from perturbgen.core.stats import Array, divide

_BLOCK_ROWS: Final = 8  # fit into a processor's cache: row-wise metrics are several times faster
# What scorecard.json says of a metric, in the order in which other programs have read it.
_RECORDED: Final = (
    "name title definition higher_is_better low high zeros negative_control needs scale_free"
)


@dataclass(frozen=True)
class Metric:
    """What there is to know of a metric, and the function that computes it.

    ``best`` is the value of a perfect prediction; ``zeros`` what a prediction of zeros gets, None
    where that depends on the data; ``scale_free`` metrics do not change when a prediction is
    multiplied by a positive number. ``meaning`` is a sentence for a reader who wants to know what a
    value tells, ``definition`` one for who wants to compute it. ``across`` metrics compare
    conditions with each other. ``version`` rises when a metric's values change; any order of genes,
    conditions or cells gives the same value to the relative ``tolerance``.
    """

    name: str
    title: str
    definition: str
    compute: Callable[..., Any]
    negative_control: str
    higher_is_better: bool = False
    low: float = 0
    high: float = math.inf
    zeros: float | None = None
    needs: str = "tables"  # or reference, layout, cells, counts, log_probs
    scale_free: bool = False
    across: bool = False
    version: int = 1
    tolerance: float = 1e-9
    code: str = ""  # of an extension: a hash of its sources
    meaning: str = ""

    def __repr__(self) -> str:
        arrow = "more" if self.higher_is_better else "less"
        return f"Metric({self.name!r}, {arrow} is better: {self.definition})"

    @property
    def best(self) -> float:
        """The value of a perfect prediction."""
        return self.high if self.higher_is_better else self.low

    @property
    def sign(self) -> int:
        """+1 where more is better, else −1."""
        return 1 if self.higher_is_better else -1

    def record(self) -> dict[str, Any]:
        """The record in scorecard.json, infinities as None, which JSON can hold."""
        values = {name: getattr(self, name) for name in _RECORDED.split()}
        infinite = [name for name, value in values.items() if value in (math.inf, -math.inf)]
        return values | dict.fromkeys(infinite)


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
        """Rows less their mean (conditions, genes)."""
        centred = self.values - self.values.mean(axis=1, keepdims=True)
        # Rounding would leave dust in a constant row, and its correlation would be the dust's.
        centred[self.values.max(axis=1) == self.values.min(axis=1)] = 0
        return centred

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

    ``groups`` (conditions,) says which conditions are told apart from which, ``layout`` which of
    them were measured in the same places; ``reference`` (conditions, genes) is the mean
    perturbation of the training rows.
    """

    truth: Values
    prediction: Values
    groups: Array
    reference: Array | None = None
    layout: Array | None = None

    def scores(self, metrics: Sequence[Metric]) -> Array:
        """The scores (metrics, conditions), a few rows at a time where rows stand alone."""
        # Whole tables are only needed where conditions are compared; a few rows stay in the cache.
        alone = [metric for metric in metrics if not metric.across]
        parts = [
            np.reshape([metric.compute(block) for metric in alone], (len(alone), -1))
            for block in (self.blocks() if alone else [])
        ]
        found = dict(zip(alone, np.concatenate(parts, axis=1), strict=True)) if parts else {}
        found |= {metric: metric.compute(self) for metric in metrics if metric.across}
        shape = len(metrics), len(self.truth.given)
        return np.reshape([found[metric] for metric in metrics], shape)

    def blocks(self) -> Iterator[Pair]:
        """The same, a few rows each."""
        starts = range(0, len(self.truth.given), _BLOCK_ROWS)
        sides = zip(starts, self.truth.blocks, self.prediction.blocks, strict=True)
        for start, true, predicted in sides:
            rows = slice(start, start + _BLOCK_ROWS)
            reference = None if self.reference is None else self.reference[rows]
            yield Pair(true, predicted, self.groups[rows], reference)

    @property
    def places(self) -> Array:
        """Groups and layout in one label (conditions,)."""
        layout = np.zeros(len(self.groups)) if self.layout is None else self.layout
        return np.char.add(np.char.add(self.groups.astype(str), "|"), layout.astype(str))

    @cached_property
    def deviations(self) -> Pair:
        """Truth and prediction less the reference, or as they are where there is none."""
        reference = 0.0 if self.reference is None else self.reference
        truth, prediction = (side.values - reference for side in (self.truth, self.prediction))
        return Pair(Values(truth), Values(prediction), self.groups)


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
