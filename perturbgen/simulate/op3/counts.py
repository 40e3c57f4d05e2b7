"""Random streams, and exact negative binomial counts at a cost that follows the non-zeros."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# Mean count from which drawing every entry costs less than drawing the non-zero ones.
_DENSE_ABOVE: Final = 0.3

_Floats = NDArray[np.floating]
_Ints = NDArray[np.integer]


class Stream(IntEnum):
    """Independent random streams of a simulation; a published number keeps its meaning."""

    COMPOUNDS = 0
    LAYOUT = 1
    BASELINE = 2
    EFFECTS = 3
    CELLS = 4
    DEPTH = 5
    NOISE = 6
    COUNTS = 7
    EXCLUDED = 8
    MULTIOME = 9

    def rng(self, seed: int, *key: int) -> np.random.Generator:
        """A generator that depends on the seed, the stream and the key, not on what ran before."""
        spawn_key = (int(self), *(int(k) for k in key))
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))


def sample_nb_sparse(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats
) -> sparse.csr_array:
    """NB counts (cells, genes), CSR, of means ``outer(size, share)`` and variance m + m^2/r.

    ``size`` (cells,) are positive library sizes, ``share`` (genes,) relative expression, ``r``
    (genes,) positive NB sizes, ``inf`` being the Poisson limit. Well expressed genes are drawn as
    gamma-Poisson, the others as clusters; both are exact.
    """
    is_dense = size.sum() * share > _DENSE_ABOVE * len(size)
    dense, rare = np.flatnonzero(is_dense), np.flatnonzero(~is_dense)
    parts = [
        (*_gamma_poisson(rng, size=size, share=share[dense], r=r[dense]), dense),
        (*_clusters(rng, size=size, share=share[rare], r=r[rare]), rare),
    ]
    cell = np.concatenate([part[0] for part in parts])
    gene = np.concatenate([part[3][part[1]] for part in parts])
    count = np.concatenate([part[2] for part in parts])
    matrix = sparse.coo_array((count, (cell, gene)), shape=(len(size), len(share))).tocsr()
    matrix.sort_indices()
    return matrix


def _gamma_poisson(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats
) -> tuple[_Ints, _Ints, _Ints]:
    """Non-zero entries (cell, gene, count): k ~ Poisson(m x Gamma(r, 1/r))."""
    # infinite over infinite would be NaN
    finite = np.where(np.isinf(r), 1.0, r)
    wobble = rng.standard_gamma(finite, size=(len(size), len(share))) / finite
    wobble[:, np.isinf(r)] = 1.0
    counts = rng.poisson(wobble * np.outer(size, share)).astype(np.int32)
    cell, gene = np.nonzero(counts)
    return cell.astype(np.int32), gene.astype(np.int32), counts[cell, gene]


def _clusters(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats
) -> tuple[_Ints, _Ints, _Ints]:
    """Entries (cell, gene, count), to be added up where they repeat, whose sums are NB.

    NB(m, r) is a Poisson(r log(1 + m/r)) number of clusters of logarithmic size with p = m/(m + r)
    (Quenouille 1949). Clusters are proposed as Poisson(m), which is never fewer, and kept with
    probability log(1 + m/r) / (m/r).
    """
    total = size.sum()
    # for all cells of a gene at once: the cost follows the counts, not cells x genes
    proposals = rng.poisson(total * share)
    gene = np.repeat(np.arange(len(share), dtype=np.int32), proposals)
    cell = np.searchsorted(np.cumsum(size) / total, rng.random(len(gene)), side="right").astype(
        np.int32
    )
    # the cumulative share may round to just below one, and the last cell would be overrun
    np.minimum(cell, len(size) - 1, out=cell)
    ratio = size[cell] * (share / r)[gene]
    keep = rng.random(len(gene)) * ratio <= np.log1p(ratio)
    p = ratio[keep] / (1 + ratio[keep])
    return cell[keep], gene[keep], rng.logseries(p).astype(np.int32)
