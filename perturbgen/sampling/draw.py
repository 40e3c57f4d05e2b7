"""Negative binomial counts drawn at the price of the counts that come out, not of the zeros.

A negative binomial count is a Poisson number of clusters, λ = r log(1 + m/r), each of a logarithmic size with
θ = m/(m + r). As λ <= m, the clusters of a cell are a Poisson process of intensity m laid over its genes one after the
other, of whose points λ/m are kept: one addition a gene, and the logarithms only where a point falls. Genes of large
means are drawn one by one as gamma mixtures of Poisson counts. Nothing is approximated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numba import njit

Array = np.ndarray[Any, Any]

HEAVY = 2.0  # mean beyond which a gamma mixture of Poisson counts is drawn, whose price does not grow with them
STRIDE = 32  # genes passed at once where none of them gets a count


def draw_counts(mean: Array, r: Array, rng: np.random.Generator) -> sp.csr_array:
    """Counts (cells, genes) int32 of means (cells, genes) and dispersions r, (1, genes) or (cells, genes)."""
    cells, genes = mean.shape
    # Pages of an empty array are taken when written: this reserves room for the worst case, and uses what is needed.
    values, columns = np.empty(cells * genes, np.int32), np.empty(cells * genes, np.int32)
    offsets = np.zeros(cells + 1, np.int64)
    _walk(mean, r, rng, values, columns, offsets)
    used = offsets[-1]
    return sp.csr_array((values[:used].copy(), columns[:used].copy(), offsets), shape=(cells, genes))


@njit(nogil=True, cache=True)
def _walk(mean: Array, r: Array, rng: np.random.Generator, values: Array, columns: Array, offsets: Array) -> None:
    """Fill the CSR arrays cell by cell; where the next point lies beyond a whole stride of genes, they are skipped."""
    used, genes = 0, mean.shape[1]
    for cell in range(mean.shape[0]):
        own = cell if r.shape[0] > 1 else 0
        reached, point = 0.0, rng.standard_exponential()
        for start in range(0, genes, STRIDE):
            stop = min(start + STRIDE, genes)
            total = _sum(mean, cell, start, stop)
            if total <= HEAVY and point >= reached + total:
                reached += total
                continue
            for gene in range(start, stop):
                m, count = np.float64(mean[cell, gene]), 0
                if m > HEAVY:
                    count = _mixed(m, r[own, gene], rng)
                else:
                    reached += m
                    if point >= reached:
                        continue
                    ratio = m / r[own, gene]
                    while point < reached:
                        if _kept(rng.random(), ratio):
                            count += _logarithmic(ratio, rng)
                        point += rng.standard_exponential()
                if count > 0:
                    values[used] = count
                    columns[used] = gene
                    used += 1
        offsets[cell + 1] = used


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _sum(mean: Array, cell: int, start: int, stop: int) -> float:
    """The sum of a cell's means of some genes, in any order of addition."""
    total = mean[cell, start]
    for gene in range(start + 1, stop):
        total += mean[cell, gene]
    return np.float64(total)


@njit(nogil=True, cache=True)
def _mixed(m: float, r: float, rng: np.random.Generator) -> int:
    """A Poisson count whose mean is gamma distributed."""
    return rng.poisson(m if np.isinf(r) else m / r * rng.standard_gamma(r))


@njit(nogil=True, cache=True)
def _kept(u: float, ratio: float) -> bool:
    """Whether u < log(1 + m/r) / (m/r), the share of the points that are kept; 2 / (2 + m/r) is below it, and cheap."""
    return u * (2 + ratio) < 2 or u * ratio < np.log1p(ratio)


@njit(nogil=True, cache=True)
def _logarithmic(ratio: float, rng: np.random.Generator) -> int:
    """A logarithmic variate, P(k) ∝ θ^k / k with θ = ratio / (1 + ratio) (Kemp 1981: geometric, random parameter)."""
    v = rng.random()
    if v * (1 + ratio) >= ratio:
        return 1
    q = -np.expm1(-np.log1p(ratio) * rng.random())
    if v >= q:
        return 1
    if v > q * q:
        return 2
    return 1 + int(np.log(max(v, 1e-300)) / np.log(q))
