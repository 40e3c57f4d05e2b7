"""Rank-sum tests of every gene, of sparse counts: each group of cells against control cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import sparse, special, stats

from perturbgen.core.stats import Array

_CPM: Final = 1e6  # counts of a cell
_LEAST_CPM: Final = 5.0  # a gene is tested whose control mean is above it
_TINY: Final = 1e-9  # added to both means of a fold change
_LEVEL: Final = 0.05


@dataclass(frozen=True, eq=False)
class WilcoxonTable:
    """Groups of cells against control cells: (groups, genes), NaN where a gene was not tested."""

    log_fold_change: Array
    p: Array
    adjusted_p: Array

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Genes whose adjusted p is below .05."""
        return self.adjusted_p < _LEVEL


def wilcoxon_table(groups: Sequence[sparse.csr_array], control: sparse.csr_array) -> WilcoxonTable:
    """Two-sided rank-sum tests of counts per million: normal approximation, ties, continuity.

    Genes are tested whose mean among control cells is above 5 per million; p is Benjamini-Hochberg
    adjusted over them within a group.
    """
    scaled = _per_million(control)
    control_mean = np.asarray(scaled.mean(axis=0)).ravel()
    genes = np.flatnonzero(control_mean > _LEAST_CPM)
    reference = _sorted_columns(scaled[:, genes])
    fold, p, adjusted = np.full((3, len(groups), len(control_mean)), np.nan)
    for k, counts in enumerate(groups):
        cells = _per_million(counts)[:, genes]
        mean = np.asarray(cells.mean(axis=0)).ravel()
        fold[k, genes] = np.log2((mean + _TINY) / (control_mean[genes] + _TINY))
        columns = _sorted_columns(cells)
        z = _rank_sums(
            *(columns.data, columns.indptr, cells.shape[0]),
            *(reference.data, reference.indptr, control.shape[0]),
        )
        p[k, genes] = np.minimum(2 * special.ndtr(-z), 1)
        adjusted[k, genes] = stats.false_discovery_control(p[k, genes])
    return WilcoxonTable(fold, p, adjusted)


def _per_million(cells: sparse.csr_array) -> sparse.csr_array:
    """Counts per million of each cell; a cell without counts stays empty."""
    depth = np.asarray(cells.sum(axis=1)).ravel() / _CPM
    data = cells.data / np.repeat(depth, np.diff(cells.indptr))
    return sparse.csr_array((data, cells.indices, cells.indptr), shape=cells.shape)


def _sorted_columns(cells: sparse.csr_array) -> sparse.csc_array:
    """By gene, values rising. Logarithms: what others rank, whose rounding makes the same ties."""
    columns = sparse.csc_array(cells)
    columns.data = np.log1p(columns.data)
    _sort_parts(columns.data, columns.indptr)
    return columns


@njit(parallel=True, cache=True)
def _sort_parts(data: Array, starts: NDArray[np.int32]) -> None:
    for gene in prange(len(starts) - 1):
        data[starts[gene] : starts[gene + 1]].sort()


@njit(parallel=True, cache=True)
def _rank_sums(
    data: Array,
    starts: NDArray[np.int32],
    n: int,
    other: Array,
    other_starts: NDArray[np.int32],
    m: int,
) -> Array:
    """|z| of the rank sum of each gene (genes,), of sorted values above 0; the rest are zeros."""
    z = np.zeros(len(starts) - 1)
    both = float(n + m)
    for gene in prange(len(z)):
        x = data[starts[gene] : starts[gene + 1]]
        y = other[other_starts[gene] : other_starts[gene + 1]]
        zeros = float(n - len(x) + m - len(y))
        ranks = (n - len(x)) * (zeros + 1) / 2
        ties = zeros**3 - zeros
        i, j = 0, 0
        while i < len(x) or j < len(y):
            value = x[i] if j == len(y) or (i < len(x) and x[i] <= y[j]) else y[j]
            before, own = i + j, i
            while i < len(x) and x[i] == value:
                i += 1
            while j < len(y) and y[j] == value:
                j += 1
            equal = float(i + j - before)
            ranks += (i - own) * (zeros + before + (equal + 1) / 2)
            ties += equal**3 - equal
        spread = n * m / 12 * (both + 1 - ties / (both * (both - 1)))
        if spread > 0:
            # half a rank nearer: a sum of ranks moves in steps
            z[gene] = (abs(ranks - n * (both + 1) / 2) - 0.5) / np.sqrt(spread)
    return z
