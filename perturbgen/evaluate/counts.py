"""Metrics of raw counts: the six of the Virtual Cell Challenge 2026, and what they are made of.

A group's profile is log(1 + 50,000 x its share of the counts), an effect is a profile less that of
the *measured* control cells, on either side. Differential expression is a rank-sum test against the
measured control cells. A perturbation that is called as a gene is
has that gene left out of what is said of it: knocking it down is no prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
from numba import get_num_threads, njit, prange
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.core.stats import Array, divide
from perturbgen.evaluate.ranksum import WilcoxonTable, wilcoxon_table
from perturbgen.evaluate.values import Metric

_TOTAL: Final = 5e4  # counts of a profile
_PURITY: Final = 0.9  # of directions, as far as a prediction reaches
_LEAST_GENES: Final = 10  # that respond, for an error of their fold changes


@dataclass(frozen=True, eq=False)
class Groups:
    """Cells (cells, genes) in groups, each a perturbation, of raw counts."""

    counts: sparse.csr_array
    names: tuple[str, ...]
    starts: NDArray[np.int64]  # rows of group k are starts[k]:starts[k + 1]

    @classmethod
    def of(cls, counts: Any, labels: NDArray[np.str_], names: Sequence[str]) -> Groups:
        """The cells of these groups, in this order."""
        rows = pd.Series(range(len(labels))).groupby(labels.astype(object)).indices
        order = [rows[name] for name in names]
        starts = np.concatenate([[0], np.cumsum([len(one) for one in order])])
        matrix = sparse.csr_array(counts)[np.concatenate(order)].astype(np.float64)
        matrix.eliminate_zeros()
        return cls(matrix, tuple(names), starts)

    @cached_property
    def sums(self) -> Array:
        """Counts of each group (groups, genes)."""
        return np.vstack([cells.sum(axis=0) for cells in self])

    @cached_property
    def profiles(self) -> Array:
        """log(1 + 50,000 x share of the counts) of each group (groups, genes)."""
        return np.log1p(_TOTAL * divide(self.sums, self.sums.sum(axis=1, keepdims=True)))

    @cached_property
    def noise(self) -> Array:
        """How far each profile is from where infinitely many cells would put it, squared (groups,).

        By the jackknife: (n - 1)/n Σ_genes Σ_cells (v - mean v)², v the profile without one cell.
        """
        depth = np.asarray(self.counts.sum(axis=1)).ravel()
        found = np.zeros(len(self.names))
        for k, cells in enumerate(self):
            rows = slice(self.starts[k], self.starts[k + 1])
            if cells.shape[0] > 1:
                held = (cells.data, cells.indices, cells.indptr)
                about = (depth[rows], self.sums[k], self.profiles[k])
                spread = _leave_one_out(*held, *about, get_num_threads())
                found[k] = (cells.shape[0] - 1) / cells.shape[0] * spread
        return found

    def __iter__(self) -> Iterator[sparse.csr_array]:
        """The cells of each group (cells, genes)."""
        for start, stop in pairwise(self.starts):
            yield self.counts[start:stop]


@njit(parallel=True, cache=True)
def _leave_one_out(
    data: Array,
    genes: NDArray[np.int32],
    starts: NDArray[np.int32],
    depth: Array,
    sums: Array,
    profile: Array,
    parts: int,
) -> float:
    """Σ_genes Σ_cells (v - mean v)², v the group's profile without the cell."""
    n, total = len(depth), sums.sum()
    # about the profile of all cells, from which v differs little: no digits are lost
    first, second = np.zeros((parts, len(sums))), np.zeros((parts, len(sums)))
    for part in prange(parts):
        without = np.empty(len(sums))
        for cell in range(part, n, parts):
            without[:] = sums
            for at in range(starts[cell], starts[cell + 1]):
                without[genes[at]] -= data[at]
            rest = total - depth[cell]
            for gene in range(len(sums)):
                if sums[gene] > 0 and rest > 0:
                    difference = np.log1p(_TOTAL * without[gene] / rest) - profile[gene]
                elif sums[gene] > 0:  # the one cell that has counts at all
                    difference = -profile[gene]
                else:
                    difference = 0.0
                first[part, gene] += difference
                second[part, gene] += difference * difference
    spread = 0.0
    for gene in range(len(sums)):
        one, two = 0.0, 0.0
        for part in range(parts):
            one += first[part, gene]
            two += second[part, gene]
        spread += two - one * one / n
    return spread


@dataclass(frozen=True, eq=False)
class CountPanel:
    """Predicted and measured cells of the same perturbations, and the measured control cells.

    ``origin`` are the control cells of the prediction: the measured ones, but for a replicate.
    """

    truth: Groups
    prediction: Groups
    control: Groups  # of one group
    origin: Groups
    measured: WilcoxonTable  # of the truth, against the control
    own: NDArray[np.intp]  # the gene that each perturbation is called as, or -1

    def scores(self, metrics: Iterable[Metric]) -> pd.DataFrame:
        """Columns perturbation (empty: of the whole panel), metric, value; NaN says nothing."""
        rows = []
        for metric in metrics:
            found = metric.compute(self)
            names = self.truth.names if np.ndim(found) else ("",)
            rows += [
                (name, metric.name, float(value))
                for name, value in zip(names, np.atleast_1d(found), strict=True)
            ]
        return pd.DataFrame(rows, columns=["perturbation", "metric", "value"])

    @cached_property
    def others(self) -> NDArray[np.bool_]:
        """Genes but the perturbation's own (perturbations, genes)."""
        kept = np.ones(self.truth.profiles.shape, bool)
        named = np.flatnonzero(self.own >= 0)
        kept[named, self.own[named]] = False
        return kept

    @cached_property
    def claimed_noise(self) -> Array:
        """The noise of its own profiles that a prediction is credited with (perturbations,)."""
        # No more than the measurement has, and in all no more than its profiles differ from each
        # other: cells drawn far apart would earn what they scatter.
        noise = np.minimum(self.prediction.noise, self.truth.noise)
        claimed = (noise / self.others.sum(axis=1)).sum()
        spread = _spread(self.prediction.profiles, self.others)
        return noise * (min(1.0, spread / claimed) if claimed > 0 else 1.0)

    @cached_property
    def tables(self) -> tuple[WilcoxonTable, WilcoxonTable]:
        """Differential expression, measured and predicted."""
        return self.measured, wilcoxon_table(list(self.prediction), self.origin.counts)

    @cached_property
    def responds(self) -> NDArray[np.bool_]:
        """Genes that are significant where measured, but the perturbation's own."""
        return self.tables[0].significant & self.others

    @cached_property
    def called(self) -> NDArray[np.bool_]:
        """Genes that are significant where predicted, but the perturbation's own."""
        return self.tables[1].significant & self.others

    @cached_property
    def directed(self) -> NDArray[np.bool_]:
        """Genes whose measured fold change has a direction."""
        fold = self.tables[0].log_fold_change
        return ~np.isnan(fold) & (fold != 0)

    @cached_property
    def agree(self) -> NDArray[np.bool_]:
        """Genes that go the same way on both sides."""
        true, predicted = (np.sign(table.log_fold_change) for table in self.tables)
        return true == predicted


def _spread(profiles: Array, kept: NDArray[np.bool_]) -> float:
    """Σ_genes Σ_perturbations w (profile - weighted mean)², w one over the genes that are kept."""
    weights = kept / kept.sum(axis=1, keepdims=True)
    mean = divide((weights * profiles).sum(axis=0), weights.sum(axis=0))
    several = kept.sum(axis=0) > 1
    return float((weights * np.square(profiles - mean))[:, several].sum())


def _discrimination(panel: CountPanel) -> Array:
    # without all perturbed genes: else knocking down another's gene would set two apart
    kept = np.setdiff1d(np.arange(panel.truth.profiles.shape[1]), panel.own)
    true = (panel.truth.profiles - panel.control.profiles)[:, kept]
    predicted = (panel.prediction.profiles - panel.origin.profiles)[:, kept]
    lengths = np.outer(np.linalg.norm(predicted, axis=1), np.linalg.norm(true, axis=1))
    distance = 1 - divide(predicted @ true.T, lengths)
    own = np.diag(distance)[:, None]
    # of several as near as its own, half come before it
    before = (distance < own).sum(axis=1) + ((distance == own).sum(axis=1) - 1) / 2
    return 1 - divide(before, np.full(len(own), len(own) - 1.0), np.nan)


def _per_gene(panel: CountPanel, from_profiles: Array, noise: Array) -> Array:
    """Mean squared distance of measured profiles from others, less what noise adds to it."""
    distance = np.square(panel.truth.profiles - from_profiles) * panel.others
    return (distance.sum(axis=1) - noise) / panel.others.sum(axis=1)


def _error(panel: CountPanel) -> Array:
    noise = panel.prediction.noise + panel.truth.noise
    return _per_gene(panel, panel.prediction.profiles, noise)


def _capped_error(panel: CountPanel) -> Array:
    return _per_gene(panel, panel.prediction.profiles, panel.claimed_noise + panel.truth.noise)


def _effect_size(panel: CountPanel) -> Array:
    return _per_gene(panel, panel.control.profiles, panel.truth.noise + panel.control.noise)


def _error_ratio(panel: CountPanel) -> float:
    effect = float(_effect_size(panel).sum())
    return float(_capped_error(panel).sum()) / effect if effect else math.nan


def _mass(panel: CountPanel) -> Array:
    return np.expm1(panel.truth.profiles).sum(axis=1) / _TOTAL


def _fidelity_yield(panel: CountPanel) -> Array:
    judged = panel.called & panel.directed
    most = np.maximum(judged.sum(axis=1), panel.responds.sum(axis=1))
    return divide((judged & panel.agree).sum(axis=1), most, np.nan)


def _reach(panel: CountPanel) -> Array:
    found = np.full(len(panel.responds), np.nan)
    for k in np.flatnonzero(panel.responds.any(axis=1)):
        order = _by_confidence(panel, int(k))
        right = np.cumsum(panel.agree[k, order])
        pure = np.flatnonzero(right / np.arange(1, len(right) + 1) >= _PURITY)
        found[k] = (pure[-1] + 1 if len(pure) else 0) / panel.responds[k].sum()
    return found


def _by_confidence(panel: CountPanel, k: int) -> NDArray[np.intp]:
    """Responding genes with a direction, those first of which the prediction is surest."""
    table = panel.tables[1]
    at = np.flatnonzero(panel.responds[k] & panel.directed[k])
    size = -np.abs(table.log_fold_change[k, at])
    keys = (at, size, table.p[k, at], table.adjusted_p[k, at], ~panel.called[k, at])
    return at[np.lexsort(keys)]


def _jaccard(panel: CountPanel) -> Array:
    both = (panel.responds & panel.called).sum(axis=1)
    return divide(both, (panel.responds | panel.called).sum(axis=1), 1.0)


def _fold_change_error(panel: CountPanel) -> Array:
    return fold_change_error(panel, panel.tables[0].log_fold_change, panel.responds)


def fold_change_error(panel: CountPanel, size: Array, responds: NDArray[np.bool_]) -> Array:
    """Σ |predicted - measured| / Σ |size| of the genes that respond; NaN where under ten do."""
    true, predicted = (np.nan_to_num(t.log_fold_change, posinf=0, neginf=0) for t in panel.tables)
    gate = responds & np.isfinite(size)
    wrong, whole = (np.where(gate, np.abs(one), 0).sum(axis=1) for one in (predicted - true, size))
    return np.where(gate.sum(axis=1) >= _LEAST_GENES, divide(wrong, whole, np.nan), np.nan)


_of_counts = partial(
    Metric,
    negative_control="the mean response of all perturbations, given to each",
    needs="counts",
    tolerance=1e-8,
)
COUNT_METRICS: Final = (
    _of_counts(
        "pds_cosine",
        "Telling perturbations apart (profiles)",
        "1 − (measured effects nearer to the predicted one than its own, ties half) / (n − 1), by "
        "cosine distance of profiles less that of the control, without all perturbed genes.",
        _discrimination,
        higher_is_better=True,
        high=1,
        zeros=0.5,
        scale_free=True,
        across=True,
        meaning="How often a predicted effect is nearest to the measured effect that it is of.",
    ),
    _of_counts(
        "expr_mse_unbiased_capped_norm",
        "Error of profiles, as a share of the effects",
        "Σ expr_mse_unbiased_capped / Σ expr_distance_unbiased over all perturbations: 0 is "
        "perfect, 1 what control cells get.",
        _error_ratio,
        low=-math.inf,
        zeros=1,
        across=True,
        meaning="How much of the effects a prediction leaves unexplained, sampling noise aside.",
    ),
    _of_counts(
        "de_wilcoxon_direction_fidelity_yield_raw",
        "Right directions of the genes called",
        "Genes called significant that go the measured way / the larger number of those called and "
        "of those that respond; NaN where there are neither.",
        _fidelity_yield,
        higher_is_better=True,
        high=1,
        zeros=0,
        meaning="How often a gene that is said to respond goes the way that is said.",
    ),
    _of_counts(
        "de_wilcoxon_direction_reach_raw",
        "How far directions stay right",
        "Of the genes that respond, in the order of the prediction's confidence, the share down to "
        "the last place where nine tenths go the right way.",
        _reach,
        higher_is_better=True,
        high=1,
        meaning="How far down its own list a prediction's directions can be trusted.",
    ),
    _of_counts(
        "de_wilcoxon_sig_jaccard",
        "Agreement of the responding genes",
        "Genes significant on both sides / on either side; 1 where there is none.",
        _jaccard,
        higher_is_better=True,
        high=1,
        meaning="How well the genes that respond are found, misses and inventions alike.",
    ),
    _of_counts(
        "de_wilcoxon_lfc_nmae",
        "Error of fold changes",
        "Σ |predicted − measured log2 fold change| / Σ |measured| over the genes that respond, "
        "where at least ten do.",
        _fold_change_error,
        zeros=1,
        meaning="How wrong the sizes of responses are, as a share of them.",
    ),
    _of_counts(
        "expr_mse_unbiased",
        "Error of profiles",
        "Mean over genes of (predicted − measured profile)², less the jackknife's noise of both.",
        _error,
        low=-math.inf,
        meaning="How wrong profiles are, sampling noise aside; a prediction can earn noise.",
    ),
    _of_counts(
        "expr_mse_unbiased_capped",
        "Error of profiles (noise capped)",
        "As expr_mse_unbiased, with no more noise of the prediction than the measurement has, and "
        "in all no more than the predicted profiles differ from each other.",
        _capped_error,
        low=-math.inf,
        meaning="How wrong profiles are, sampling noise aside.",
    ),
    _of_counts(
        "expr_distance_unbiased",
        "Size of the effects",
        "Mean over genes of (measured − control profile)², less the jackknife's noise of both. It "
        "does not depend on the prediction.",
        _effect_size,
        low=-math.inf,
        meaning="How large the measured effect is, sampling noise aside.",
    ),
    _of_counts(
        "expr_real_mass_ratio",
        "Counts of a profile",
        "Σ (exp profile − 1) / 50,000 of the measured cells: 1, and 0 for cells without counts.",
        _mass,
        meaning="Whether a measured profile holds all of its counts.",
    ),
)
VCC2026: Final = tuple(metric.name for metric in COUNT_METRICS[:6])
