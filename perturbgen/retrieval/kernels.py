"""The inner loops of retrieval, compiled by numba; they release the interpreter lock."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from perturbgen.core.stats import Array


class Queries(NamedTuple):
    """Labels of queries as integer codes, -1 where unknown."""

    itself: Array  # (queries,) the query's own number among the candidates, -1 if it is none
    group: Array
    stratum: Array
    differ: Array  # (queries, columns in which positives differ)
    opposed: Array  # (queries, columns in which negatives differ)


class Candidates(NamedTuple):
    """Labels of candidates, and lists of them.

    Group ``g``'s members are ``members[member_starts[g]:member_starts[g + 1]]``, and the possible
    negatives of stratum ``s`` are ``negatives[negative_starts[s]:negative_starts[s + 1]]``.
    """

    group: Array
    differ: Array
    opposed: Array
    members: Array
    member_starts: Array
    negatives: Array
    negative_starts: Array


class Ranked(NamedTuple):
    """A block's positives, from the best to the worst: query i's at ``offsets[i]`` and after it."""

    offsets: Array
    positives: Array  # (queries,) how many each query has
    sims: Array
    above: Array  # negatives more similar than this positive
    tied: Array  # negatives exactly as similar
    negatives: Array  # (queries,) how many each query has


@njit(nogil=True, cache=True)
def _differs(one: Array, other: Array) -> bool:
    """Both know every column, and they differ in each."""
    for d in range(len(one)):  # noqa: SIM110  (numba has no generators)
        if one[d] == other[d] or one[d] < 0 or other[d] < 0:
            return False
    return True


@njit(nogil=True, cache=True)
def find_positives(
    queries: Queries, among: Candidates, offsets: Array, found: Array, count: Array
) -> None:
    """Write the numbers of each query's positives: members of its group that differ everywhere."""
    starts = among.member_starts
    for i in range(len(queries.group)):
        at = offsets[i]
        for m in range(starts[queries.group[i]], starts[queries.group[i] + 1]):
            c = among.members[m]
            if c != queries.itself[i] and _differs(queries.differ[i], among.differ[c]):
                found[at] = c
                at += 1
        count[i] = at - offsets[i]


@njit(nogil=True, cache=True)
def _sort_positives(block: Array, column: Array, found: Array, part: Ranked) -> None:
    """Write the positives' similarities, the best first."""
    sims = part.sims
    for i in range(len(part.positives)):
        start, end = part.offsets[i], part.offsets[i] + part.positives[i]
        for j in range(start, end):
            sims[j] = block[i, column[found[j]]]
        # Numba's sort only rises.
        sims[start:end] = -np.sort(-sims[start:end])


@njit(nogil=True, cache=True)
def _count_negatives(
    block: Array, column: Array, queries: Queries, among: Candidates, part: Ranked
) -> None:
    """Fill ``above`` and ``tied``, and each query's number of negatives, in one pass."""
    sims, starts = part.sims, among.negative_starts
    restricted = queries.opposed.shape[1] > 0
    for i in range(len(queries.group)):
        here, n, group = part.offsets[i], part.positives[i], queries.group[i]
        itself, stratum = queries.itself[i], queries.stratum[i]
        part.negatives[i] = 0
        if stratum < 0 or n == 0:
            continue
        over, level = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
        best, worst = sims[here], sims[here + n - 1]
        # Bins say within a few places where a similarity stands among the positives, which a
        # binary search over all of them would look up once for each candidate.
        bins = min(4 * n, 4096)
        scale = _bin_scale(best, worst, bins)
        better = _better_bins(sims[here : here + n], worst, scale, bins)
        for m in range(starts[stratum], starts[stratum + 1]):
            c = among.negatives[m]
            if among.group[c] == group or c == itself:
                continue
            if restricted and not _differs(queries.opposed[i], among.opposed[c]):
                continue
            part.negatives[i] += 1
            s = block[i, column[c]]
            if s > best:
                low = 0
            elif s < worst:
                low = n
            else:
                place = min(int((s - worst) * scale), bins - 1)
                low, high = better[place + 1], better[place]
                # low becomes the number of positives that are better than this negative
                while low < high:
                    middle = (low + high) >> 1
                    if sims[here + middle] > s:
                        low = middle + 1
                    else:
                        high = middle
            if low < n and sims[here + low] == s:
                level[low] += 1
            else:
                over[low] += 1
        end = here + n
        _spread(over, level, sims[here:end], part.above[here:end], part.tied[here:end])


@njit(nogil=True, cache=True)
def _bin_scale(best: float, worst: float, bins: int) -> float:
    """What brings (s - worst) to a bin number; 0, one bin, where the range has no width."""
    width = best - worst
    if width <= 0 or not np.isfinite(bins / width):
        return 0.0
    return bins / width


@njit(nogil=True, cache=True)
def _better_bins(sims: Array, worst: float, scale: float, bins: int) -> Array:
    """(bins + 1,) how many positives lie in bin b or a better one.

    Binning is monotone in floating point, too, so a positive in a better bin than a negative's is
    above it for sure.
    """
    count = np.zeros(bins + 1, np.int64)
    for s in sims:
        count[min(int((s - worst) * scale), bins - 1)] += 1
    for b in range(bins - 1, -1, -1):
        count[b] += count[b + 1]
    return count


@njit(nogil=True, cache=True)
def _spread(over: Array, level: Array, sims: Array, above: Array, tied: Array) -> None:
    """From counts by position: ``over[k]`` before the k-th positive, ``level[k]`` tied with it.

    Of tied positives the first holds the count, and they all share it; what ties with them is above
    all later ones.
    """
    total = 0
    k = 0
    while k < len(sims):
        end = k + 1
        while end < len(sims) and sims[end] == sims[k]:
            end += 1
        total += over[k]
        for j in range(k, end):
            above[j], tied[j] = total, level[k]
        for j in range(k + 1, end):
            total += over[j]
        total += level[k]
        k = end


@njit(nogil=True, cache=True)
def rank_positives(
    block: Array, column: Array, queries: Queries, among: Candidates, found: Array, part: Ranked
) -> None:
    """Fill ``part`` from a block of similarities (queries, distinct candidates)."""
    _sort_positives(block, column, found, part)
    _count_negatives(block, column, queries, among, part)


@njit(nogil=True, cache=True)
def spread_all(over: Array, level: Array, part: Ranked) -> None:
    """Fill ``above`` and ``tied`` from counts by position, a row of each for every query."""
    for i in range(len(part.positives)):
        start, end = part.offsets[i], part.offsets[i] + part.positives[i]
        _spread(
            over[i], level[i], part.sims[start:end], part.above[start:end], part.tied[start:end]
        )


@njit(nogil=True, cache=True)
def _average_precision(sims: Array, above: Array, tied: Array, harmonic: Array) -> float:
    """AP: the mean over positives of the precision at their rank.

    A tie of r positives among n items, after R positives and K items in all, adds (McSherry and
    Najork 2008) r/n sum_{i=1..n} (R + 1 + (i-1)(r-1)/(n-1)) / (K+i), which harmonic numbers give in
    closed form.
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
    mean = (
        math.exp(-alpha * above / negatives) * (1 - step ** (tied + 1)) / ((1 - step) * (tied + 1))
    )
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


@njit(nogil=True, cache=True)
def ap_distribution(positives: int, total: int, size: int) -> Array:
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
