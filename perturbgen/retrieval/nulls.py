"""What average precision is by chance: its mean, its whole distribution, and p-values of groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numba import njit
from scipy.special import digamma

from perturbgen.core.stats import Array

_PLACES = 4096  # of the grid on which the distribution of AP is kept
_WORK = 50_000_000  # steps beyond which random rankings are drawn instead of all being counted


def expected_ap(positives: Array | int, total: Array | int) -> Array:
    """E[AP] of random ranks, ((M-1)/(L-1) (L - H_L) + H_L) / L, with M positives among L."""
    m, n = np.asarray(positives, float), np.asarray(total, float)
    harmonic = harmonic_number(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(n > 1, (m - 1) / (n - 1), 0.0)
        return (share * (n - harmonic) + harmonic) / n


def harmonic_number(n: Array) -> Array:
    """H_n = 1 + 1/2 + ... + 1/n."""
    return digamma(n + 1.0) + np.euler_gamma


@dataclass(frozen=True)
class _NullOfAp:
    """P(AP is about v / (len - 1)) on a grid; ``draws`` is None where every ranking was counted."""

    mass: Array
    draws: int | None

    def tail(self, value: float) -> float:
        """P(AP >= value); with drawn rankings (hits + 1) / (draws + 1)."""
        size = len(self.mass) - 1
        chance = min(1.0, float(self.mass[math.floor(value * size + 1e-6) :].sum()))
        return chance if self.draws is None else (chance * self.draws + 1) / (self.draws + 1)


@lru_cache(maxsize=512)
def _ap_null(positives: int, total: int, *, draws: int = 20_000, seed: int = 0) -> _NullOfAp:
    """The distribution of AP when the ranks of M positives among L are random.

    Exact means that all C(L, M) rankings are counted, to 1/4096 in AP, however small the tail.
    """
    # A multiple of M: a hit with no miss before it adds 1/M, which then lies on the grid.
    size = positives * math.ceil(_PLACES / positives)
    if positives == total:
        return _NullOfAp(np.eye(1, size + 1, size)[0], None)
    if positives * total * size <= _WORK:
        return _NullOfAp(_ap_distribution(positives, total, size), None)
    # Seeded by its shape: a null does not depend on which other groups were tested before.
    values = _random_ap(positives, total, draws, np.random.default_rng([seed, positives, total]))
    return _NullOfAp(
        np.bincount(np.floor(values * size + 1e-6).astype(int), minlength=size + 1) / draws, draws
    )


@njit(nogil=True, cache=True)
def _ap_distribution(positives: int, total: int, size: int) -> Array:
    """(size + 1,) the exact null of AP: the probability that it is about v / size.

    Ranks 1..total are visited in turn; a state is (positives met, AP so far). A hit at rank r as
    the k-th positive adds k / (r positives), shared between the two nearest grid places so that the
    mean stays exact.
    """
    state = np.zeros((positives + 1, size + 2))
    state[0, 0] = 1
    for r in range(1, total + 1):
        # Downwards, so that a rank is not used twice: state[k - 1] is still that before it.
        for k in range(min(positives, r), -1, -1):
            state[k] *= 1 - (positives - k) / (total - r + 1)
            if k == 0:
                continue
            chance = (positives - k + 1) / (total - r + 1)
            added = size * k / (r * positives)
            shift = int(added)
            up = (added - shift) * chance
            down = chance - up
            # After k - 1 hits AP is at most (k - 1) / positives: beyond that there is no mass.
            for v in range(min(size * (k - 1) // positives + k, size - shift) + 1):
                mass = state[k - 1, v]
                state[k, v + shift] += down * mass
                state[k, v + shift + 1] += up * mass
    state[positives, size] += state[positives, size + 1]
    return state[positives, : size + 1]


def _random_ap(positives: int, total: int, draws: int, rng: np.random.Generator) -> Array:
    """(draws,) AP of random rankings."""
    # Where ranks drawn one by one would often collide, whole rankings are drawn instead.
    crowded = positives**2 > 2 * total
    block = max(1, 4_000_000 // (total if crowded else positives))
    hits, parts = np.arange(1, positives + 1), []
    for start in range(0, draws, block):
        size = min(block, draws - start)
        ranks = (_ranking if crowded else _distinct_ranks)(positives, total, size, rng)
        parts.append((hits / ranks).mean(axis=1))
    return np.concatenate(parts)


def _ranking(positives: int, total: int, draws: int, rng: np.random.Generator) -> Array:
    """(draws, positives) sorted ranks from 1 to total, from a random order of all."""
    keys = rng.random((draws, total), np.float32)
    return np.sort(np.argpartition(keys, positives - 1, axis=1)[:, :positives], axis=1) + 1


def _distinct_ranks(positives: int, total: int, draws: int, rng: np.random.Generator) -> Array:
    """(draws, positives) sorted ranks from 1 to total; rows with two equal are drawn again."""
    ranks = np.sort(rng.integers(1, total + 1, (draws, positives)), axis=1)
    again = (np.diff(ranks, axis=1) == 0).any(axis=1)
    while again.any():
        ranks[again] = np.sort(rng.integers(1, total + 1, (again.sum(), positives)), axis=1)
        again = (np.diff(ranks, axis=1) == 0).any(axis=1)
    return ranks


def group_p_values(queries: pd.DataFrame, group: Array, *, draws: int, seed: int) -> pd.Series:
    """P of each group's mean AP, from queries with their AP and numbers of candidates."""
    # As in copairs, the queries of one group that have the same numbers of positives and negatives
    # share one random ranking, and different numbers are independent. Queries of a group are far
    # from independent (pair i-j counts for both), and a shared ranking is the widest null that
    # their mean can have.
    table = pd.DataFrame({"group": group, "ap": queries["ap"], "m": queries["positives"]})
    table["total"] = table["m"] + queries["negatives"]
    observed = table.groupby("group", sort=True)["ap"].mean()
    counts = table.groupby(["group", "m", "total"], sort=True).size()
    shapes: dict[int, list[tuple[tuple[int, int], int]]] = {}
    for code, m, total, n in counts.rename("n").reset_index().itertuples(index=False):
        shapes.setdefault(code, []).append(((int(m), int(total)), int(n)))
    nulls: dict[tuple[tuple[tuple[int, int], int], ...], _NullOfAp] = {}
    p = {}
    for code, shape in shapes.items():
        key = tuple(shape)
        # Most groups share a few shapes, and a mixture of nulls is slow to make.
        if key not in nulls:
            nulls[key] = _mixed_null(dict(shape), draws=draws, seed=seed)
        p[code] = nulls[key].tail(observed[code])
    return pd.Series(p, dtype=float).reindex(observed.index)


def _mixed_null(shape: Mapping[tuple[int, int], int], *, draws: int, seed: int) -> _NullOfAp:
    """The null of a mean over queries, ``shape[(M, L)]`` of them sharing a ranking."""
    nulls = {key: _ap_null(*key, draws=draws, seed=seed) for key in shape}
    if len(nulls) == 1:
        return next(iter(nulls.values()))
    queries = sum(shape.values())
    mass = np.ones(1)
    for key, n in shape.items():
        mass = np.convolve(mass, _scaled(nulls[key].mass, n / queries, _PLACES))
    mass = np.pad(mass, (0, max(0, _PLACES + 1 - len(mass))))
    mass[_PLACES] += mass[_PLACES + 1 :].sum()
    # A p cannot be smaller than the coarsest of the nulls in it allows.
    drawn = [null.draws for null in nulls.values() if null.draws is not None]
    return _NullOfAp(mass[: _PLACES + 1], min(drawn, default=None))


def _scaled(mass: Array, weight: float, size: int) -> Array:
    """A distribution of AP as one of weight x AP on a grid of ``size`` places, its mean kept."""
    place = np.arange(len(mass)) / (len(mass) - 1) * weight * size
    low = np.floor(place + 1e-9).astype(int)
    # Shared between the two nearest places, so that the mean stays exact.
    up = np.clip(place - low, 0, 1) * mass
    out = np.bincount(low, mass - up, minlength=low[-1] + 2)
    out[1:] += np.bincount(low, up, minlength=low[-1] + 2)[:-1]
    return out


def benjamini_hochberg(p: Array) -> Array:
    """Adjusted p-values; NaN stays NaN."""
    from scipy.stats import false_discovery_control

    out = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        out[known] = false_discovery_control(p[known])
    return out
