"""Where a decoder of counts begins: at each gene's share of the counts, and at its dispersion.

Both are read off the training cells. A network that starts there learns differences only; a
dispersion that starts elsewhere is hardly moved by a short training, and everything drawn from it
varies too much or too little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from scipy import sparse

from perturbgen.core.stats import divide

if TYPE_CHECKING:
    import torch

    from perturbgen.data import CountStore

_MOST_CELLS: Final = 20_000  # that dispersions are read off: more say the same
_USUAL: Final = 0.5  # 1 / r where the counts say nothing
_WEIGHT: Final = 10.0  # of what genes have in common, as a sum of squared means
_PASSES: Final = 3
_LIMITS: Final = (0.01, 10.0)  # of 1 / r: from there training finds the way


def gene_shares(store: CountStore) -> torch.Tensor:
    """Each gene's part of all counts, (genes,); half a count more, so that none is 0."""
    import torch

    from perturbgen.train.feeds import CellFeed

    total = torch.full((store.n_genes,), 0.5, dtype=torch.float64)
    for batch in CellFeed(store, 4096).once():
        total.index_add_(0, batch.counts.columns.cpu(), batch.counts.values.cpu().double())
    return total / total.sum()


def gene_dispersions(store: CountStore, conditions: list[str]) -> torch.Tensor:
    """Each gene's r, (genes,), from cells of the same ``conditions`` (columns of obs)."""
    import torch

    obs = store.obs
    if conditions:
        group = obs.groupby(conditions, observed=True, sort=True, dropna=False).ngroup().to_numpy()
    else:
        group = np.zeros(len(obs), np.int64)
    chosen = _whole_groups(group)
    return torch.from_numpy(1 / moments(store.subset(chosen).counts(), group[chosen]))


def _whole_groups(group: np.ndarray) -> np.ndarray:
    """Positions of the cells of some groups, all of each but for the first, up to a limit."""
    # Some cells of every group would leave one or two of each, which say nothing of a variance.
    order = np.random.default_rng(0).permutation(group.max() + 1)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.sort(np.argsort(rank[group], kind="stable")[:_MOST_CELLS])


def moments(counts: sparse.csr_matrix, group: np.ndarray) -> np.ndarray:
    """1 / r of each gene, (genes,), of counts (cells, genes) around the means of their groups.

    Within a group the mean is m = size x p; the variance is m + m²/r, so that

        1 / r = Σ ((k - m)² n/(n-1) - m) / Σ m²

    over all cells, where p² is freed of its own noise. Genes of small means borrow from
    what all have in common.
    """
    x = sparse.csr_matrix(counts, dtype=np.float64)
    x.eliminate_zeros()
    size = np.asarray(x.sum(axis=1)).ravel()
    codes, names = pd.factorize(group)
    member = sparse.csr_matrix(
        (np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(names), len(codes))
    )
    per_cell = (np.ones(len(codes)), size, size**2)
    n, total, squares = (np.asarray(member @ part) for part in per_cell)
    # The same places are filled in all three: those of genes that a group has counts of.
    sums = (x, sparse.diags_array(size) @ x, x.multiply(x))
    first, weighted, second = (_ordered(member @ part) for part in sums)
    row = np.repeat(np.arange(len(names)), np.diff(first.indptr))
    p = first.data / total[row]
    around = second.data - 2 * p * weighted.data + p**2 * squares[row]
    several = n[row] > 1
    excess = around * n[row] / np.maximum(n[row] - 1, 1) - first.data
    mean_squares = (p**2 - p / total[row]) * squares[row]

    def over_groups(values: np.ndarray) -> np.ndarray:
        return np.bincount(first.indices, values * several, minlength=x.shape[1])

    above, found = over_groups(excess), np.zeros(x.shape[1])
    for _ in range(_PASSES):
        # p² is too large by the variance of p, which the dispersion itself is a part of.
        spread = 1 + found[first.indices] * squares[row] / total[row] ** 2
        below = np.maximum(over_groups(mean_squares / spread), 0.0)
        own = divide(above, below, np.nan)[below > _WEIGHT]
        common = float(np.median(own)) if len(own) else _USUAL
        found = np.clip((above + _WEIGHT * common) / (below + _WEIGHT), *_LIMITS)
    return found


def _ordered(matrix: sparse.csr_array) -> sparse.csr_array:
    found = sparse.csr_array(matrix)
    found.sort_indices()
    return found
