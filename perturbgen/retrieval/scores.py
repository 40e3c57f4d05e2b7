"""What the ranks of a query's positives score, and what average precision is by chance.

Its mean, its whole distribution, and p-values of groups.
"""

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
from perturbgen.retrieval.ranks import Ranked

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
        if crowded:
            order = np.argpartition(rng.random((size, total), np.float32), positives - 1, axis=1)
            ranks = np.sort(order[:, :positives], axis=1) + 1
        else:
            ranks = _distinct_ranks(positives, total, size, rng)
        parts.append((hits / ranks).mean(axis=1))
    return np.concatenate(parts)


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


@njit(nogil=True, cache=True)
def _average_precision(sims: Array, above: Array, tied: Array, harmonic: Array) -> float:
    """AP: the mean over positives of the precision at their rank.

    A tie of r positives among n items, after R positives and K items in all, adds (McSherry and
    Najork 2008)

        r/n sum_{i=1..n} (R + 1 + (i-1)(r-1)/(n-1)) / (K+i)

    which harmonic numbers give in closed form.
    """
    total = 0.0
    start = 0
    while start < len(sims):
        end = start + 1
        while end < len(sims) and sims[end] == sims[start]:
            end += 1
        r, before = end - start, start + above[start]
        n = r + tied[start]
        if n == 1:
            total += (start + 1) / (before + 1)
        else:
            span = harmonic[before + n] - harmonic[before]
            total += r / n * ((start + 1) * span + (r - 1) / (n - 1) * (n - (before + 1) * span))
        start = end
    return total / len(sims)


@njit(nogil=True, cache=True)
def _hit_chance(first: int, tied_positives: int, tied_items: int, k: int) -> float:
    """The chance that a positive is among the first k, if ``first`` items precede the best tie."""
    if first >= k:
        return 0.0
    miss = 1.0
    for j in range(min(k - first, tied_items)):
        miss *= max(tied_items - tied_positives - j, 0) / (tied_items - j)
    return 1.0 - miss


@njit(nogil=True, cache=True)
def _share_above(above: int, tied: int, negatives: int, fraction: float) -> float:
    """The share of a positive's tie orders with a rank quantile under ``fraction``."""
    # Rounded, so that it is whole where it should be: .1 x 3 is a little more than .3.
    limit = round(fraction * negatives, 9)
    better = min(max(math.ceil(limit) - above, 0), tied + 1)
    if limit == math.floor(limit) and 0 <= limit - above <= tied:
        return (better + 0.5) / (tied + 1)
    return better / (tied + 1)


@njit(nogil=True, cache=True)
def _early_area(above: int, tied: int, negatives: int, alpha: float) -> float:
    """1 - W(q), where W(u) = (1 - exp(-alpha u)) / (1 - exp(-alpha)); the mean over tie orders."""
    # The mean over tie orders is a geometric sum.
    step = math.exp(-alpha / negatives)
    first = math.exp(-alpha * above / negatives)
    mean = first * (1 - step ** (tied + 1)) / ((1 - step) * (tied + 1))
    return (mean - math.exp(-alpha)) / (1 - math.exp(-alpha))


@njit(nogil=True, cache=True)
def score_queries(
    part: Ranked,
    harmonic: Array,
    fractions: Array,
    depths: Array,
    alpha: float,
    out: Array,
    histogram: Array,
) -> None:
    """Every metric of every query into ``out`` (queries, 4 + fractions + depths), or NaN stays.

    The columns are AP, mean q, median q, share of positives in each top fraction, early area, and
    hits at each depth. Every rank quantile q is counted in ``histogram``; its last place is q = 1.
    """
    sims, above, tied, last = part.sims, part.above, part.tied, len(histogram) - 1
    for i in range(len(part.positives)):
        a, n, negatives = part.offsets[i], part.positives[i], part.negatives[i]
        if n == 0 or negatives == 0:
            continue
        values, quantiles = out[i], np.empty(n)
        end = a + n
        values[0] = _average_precision(sims[a:end], above[a:end], tied[a:end], harmonic)
        values[1:] = 0
        for j in range(a, end):
            q = (above[j] + 0.5 * tied[j]) / negatives
            quantiles[j - a] = q
            histogram[int(q * last + 0.5)] += 1
            values[1] += q / n
            for f in range(len(fractions)):
                values[3 + f] += _share_above(above[j], tied[j], negatives, fractions[f]) / n
            values[3 + len(fractions)] += _early_area(above[j], tied[j], negatives, alpha) / n
        values[2] = 0.5 * (quantiles[(n - 1) // 2] + quantiles[n // 2])
        best = 1
        while best < n and sims[a + best] == sims[a]:
            best += 1
        for d in range(len(depths)):
            values[4 + len(fractions) + d] = _hit_chance(above[a], best, best + tied[a], depths[d])
