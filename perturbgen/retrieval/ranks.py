"""How the positives of each query rank among its negatives, counted block by block.

On a CPU's cores, by kernels that numba compiles and that release the interpreter lock, or with
torch on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit

from perturbgen.core.errors import MissingDependencyError
from perturbgen.core.stats import Array
from perturbgen.core.system import cores
from perturbgen.retrieval.embedding import Candidates, Pairing, Queries, Similarity

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_BYTES = 48 << 20  # of similarities in one block; a block per core is in flight


class Ranked(NamedTuple):
    """A block's positives, from the best to the worst: query i's at ``offsets[i]`` and after it."""

    offsets: Array
    positives: Array  # (queries,) how many each query has
    sims: Array
    above: Array  # negatives more similar than this positive
    tied: Array  # negatives exactly as similar
    negatives: Array  # (queries,) how many each query has


def ranked_blocks(
    pairs: Pairing, similarity: Similarity, *, chunk: int | None, device: str
) -> Iterator[tuple[slice, Ranked]]:
    """Blocks in order, ``chunk`` queries each; on the CPU as many in flight as there are cores."""
    wide = max(1, similarity.queries.itemsize * len(similarity.candidates))
    size = max(1, chunk) if chunk is not None else int(np.clip(_BLOCK_BYTES // wide, 1, 4096))
    blocks = [slice(s, min(s + size, len(pairs.query))) for s in range(0, len(pairs.query), size)]
    if device != "cpu":
        yield from zip(
            blocks, map(_DeviceCounter(pairs, similarity, device).rank, blocks), strict=True
        )
        return
    from threadpoolctl import threadpool_limits

    workers = min(len(blocks), cores())
    # One thread for each block's product: the blocks already fill the cores.
    with threadpool_limits(1 if workers > 1 else None), ThreadPoolExecutor(workers) as pool:
        waiting: list[tuple[slice, Future[Ranked]]] = []
        for block in blocks:
            if len(waiting) == workers:
                rows, future = waiting.pop(0)
                yield rows, future.result()
            waiting.append((block, pool.submit(_rank_block, pairs, similarity, block)))
        for rows, future in waiting:
            yield rows, future.result()


def _rank_block(pairs: Pairing, similarity: Similarity, rows: slice) -> Ranked:
    """One block on one core."""
    block = similarity.block(rows)
    queries, part, found = _positives(pairs, rows, block.dtype)
    _sort_positives(block, similarity.column, found, part)
    _count_negatives(block, similarity.column, queries, pairs.among, part)
    return part


def _positives(pairs: Pairing, rows: slice, dtype: Any) -> tuple[Queries, Ranked, Array]:
    """A block's queries, room for their positives, and these as candidate numbers."""
    queries = Queries(*(labels[rows] for labels in pairs.queries))
    sizes = np.diff(pairs.among.member_starts)[queries.group]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    count, opposed = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    found, above, tied = (np.zeros(offsets[-1], np.int64) for _ in range(3))
    _find_positives(queries, pairs.among, offsets, found, count)
    sims = np.zeros(offsets[-1], dtype)
    return queries, Ranked(offsets, count, sims, above, tied, opposed), found


class _DeviceCounter:
    """Candidates and labels resident on the device; ``rank`` does one block of queries."""

    def __init__(self, pairs: Pairing, similarity: Similarity, device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingDependencyError(
                f"device {device!r} was asked for and torch sees no GPU",
                fix="device='cpu', or a CUDA build of torch",
            )
        self._pairs, self._similarity, self._torch = pairs, similarity, torch
        self._device = torch.device(device)
        stratum = np.full(len(pairs.candidate), -1)
        among = pairs.among
        sizes = np.diff(among.negative_starts)
        stratum[among.negatives] = np.repeat(np.arange(len(sizes)), sizes)
        self._stratum, self._group = self._send(stratum), self._send(among.group)
        self._opposed = [self._send(column) for column in among.opposed.T]
        self._column = self._send(similarity.column)
        self._candidates = None if similarity.product else self._send(similarity.candidates)

    def _send(self, array: Array) -> Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def rank(self, rows: slice) -> Ranked:
        """One block."""
        torch, block = self._torch, self._block(rows)
        dtype = np.float64 if block.dtype == torch.float64 else np.float32
        queries, part, found = _positives(self._pairs, rows, dtype)
        most = int(part.positives.max(initial=0))
        if most == 0:
            return part
        filled = np.arange(most) < part.positives[:, None]
        place = (part.offsets[:-1, None] + np.arange(most))[filled]
        chosen = np.zeros(filled.shape, np.int64)
        chosen[filled] = self._similarity.column[found[place]]
        sims = block.gather(1, self._send(chosen)).masked_fill(~self._send(filled), -torch.inf)
        worst_first = sims.sort(dim=1).values
        part.sims[place] = worst_first.flip(1).cpu().numpy()[filled]
        over, level = self._histograms(block, queries, worst_first)
        part.negatives[:] = (over + level).sum(axis=1) * (part.positives > 0)
        _spread_all(over, level, part)
        return part

    def _block(self, rows: slice) -> Tensor:
        if self._candidates is None:
            return self._send(self._similarity.block(rows))
        # True float32: TensorFloat-32 would tie and swap close neighbours.
        return self._send(self._similarity.queries[rows]) @ self._candidates.T

    def _histograms(
        self, block: Tensor, queries: Queries, worst_first: Tensor
    ) -> tuple[Array, Array]:
        """(queries, most + 1) negatives between, and level with, positives from the best."""
        torch = self._torch
        values = block[:, self._column]
        below = torch.searchsorted(worst_first, values, out_int32=True)
        upto = torch.searchsorted(worst_first, values, right=True, out_int32=True)
        group, stratum, itself = (
            self._send(labels)[:, None]
            for labels in (queries.group, queries.stratum, queries.itself)
        )
        number = torch.arange(len(self._group), device=self._device)
        # The rule of _count_negatives, once more for the device: change both.
        negative = (
            (self._group != group)
            & (self._stratum == stratum)
            & (stratum >= 0)
            & (number != itself)
        )
        for opposed, own in zip(self._opposed, queries.opposed.T, strict=True):
            mine = self._send(own)[:, None]
            negative &= (opposed != mine) & (opposed >= 0) & (mine >= 0)
        # Padding sorts first as -inf, so positions from the best count from the end.
        better = worst_first.shape[1] - upto
        results = []
        for chosen in (negative & (below == upto), negative & (below != upto)):
            counts = torch.zeros(
                len(values), worst_first.shape[1] + 1, dtype=torch.int32, device=self._device
            )
            counts.scatter_add_(1, better.long(), chosen.int())
            results.append(counts.cpu().numpy().astype(np.int64))
        return results[0], results[1]


@njit(nogil=True, cache=True)
def _differs(one: Array, other: Array) -> bool:
    """Both know every column, and they differ in each."""
    for d in range(len(one)):  # noqa: SIM110  (numba has no generators)
        if one[d] == other[d] or one[d] < 0 or other[d] < 0:
            return False
    return True


@njit(nogil=True, cache=True)
def _find_positives(
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
    """Fill ``above`` and ``tied``, and each query's number of negatives, in one pass.

    What is a negative is said in ``_DeviceCounter._histograms``, too: change both.
    """
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
        better, scale = _better_bins(sims[here : here + n])
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
                place = min(int((s - worst) * scale), len(better) - 2)
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
        _spread_counts(over, level, sims[here:end], part.above[here:end], part.tied[here:end])


@njit(nogil=True, cache=True)
def _better_bins(sims: Array) -> tuple[Array, float]:
    """(bins + 1,) how many positives lie in bin b or a better one; the scale of (s - worst) to b.

    Binning is monotone in floating point, too, so a positive in a better bin than a negative's is
    above it for sure.
    """
    worst, bins = sims[-1], min(4 * len(sims), 4096)
    scale = bins / (sims[0] - worst) if sims[0] > worst else 0.0
    # One bin, where the range has no width.
    if not np.isfinite(scale):
        scale = 0.0
    count = np.zeros(bins + 1, np.int64)
    for s in sims:
        count[min(int((s - worst) * scale), bins - 1)] += 1
    for b in range(bins - 1, -1, -1):
        count[b] += count[b + 1]
    return count, scale


@njit(nogil=True, cache=True)
def _spread_counts(over: Array, level: Array, sims: Array, above: Array, tied: Array) -> None:
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
def _spread_all(over: Array, level: Array, part: Ranked) -> None:
    """Fill ``above`` and ``tied`` from counts by position, a row of each for every query."""
    for i in range(len(part.positives)):
        start, end = part.offsets[i], part.offsets[i] + part.positives[i]
        _spread_counts(
            over[i], level[i], part.sims[start:end], part.above[start:end], part.tied[start:end]
        )
