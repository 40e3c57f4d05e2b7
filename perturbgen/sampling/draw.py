"""Negative binomial counts drawn at the price of the counts that come out, not of the zeros.

A negative binomial count is a Poisson number of clusters, λ = r log(1 + m/r), each of a logarithmic size with
θ = m/(m + r). As λ <= m, the clusters of a cell are a Poisson process of intensity m laid over its genes one after the
other, of whose points λ/m are kept: one addition a gene, and the logarithms only where a point falls. Nothing is
approximated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numba import njit

Array = np.ndarray[Any, Any]


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
    """Fill the CSR arrays cell by cell."""
    used = 0
    for cell in range(mean.shape[0]):
        own = cell if r.shape[0] > 1 else 0
        reached, point = 0.0, rng.standard_exponential()
        for gene in range(mean.shape[1]):
            m = mean[cell, gene]
            reached += m
            if point >= reached:
                continue
            ratio = np.float64(m) / r[own, gene]
            spread = np.log1p(ratio)  # −log(1 − θ)
            count = 0
            while point < reached:
                if rng.random() * ratio < spread:
                    count += _logarithmic(spread, rng)
                point += rng.standard_exponential()
            if count > 0:
                values[used] = count
                columns[used] = gene
                used += 1
        offsets[cell + 1] = used


@njit(nogil=True, cache=True)
def _logarithmic(spread: float, rng: np.random.Generator) -> int:
    """A logarithmic variate, P(k) ∝ θ^k / k with θ = 1 − e^−spread (Kemp 1981: geometric with a random parameter)."""
    v = rng.random()
    if v >= -np.expm1(-spread):
        return 1
    q = -np.expm1(-spread * rng.random())
    if v >= q:
        return 1
    if v > q * q:
        return 2
    return 1 + int(np.log(max(v, 1e-300)) / np.log(q))
