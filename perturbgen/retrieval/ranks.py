"""Which candidates are a query's positives and negatives, and how many negatives stand above each
positive.

Counted block by block, on a CPU's cores (``kernels``) or with torch on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import MissingDependencyError, SchemaError
from perturbgen.core.stats import Array
from perturbgen.core.system import cores
from perturbgen.retrieval.embedding import Similarity, codes, read_mask, require_labels

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_BYTES = 48 << 20  # of similarities in one block; a block per core is in flight


@dataclass(frozen=True)
class Pairs:
    """Queries (rows) against candidates (rows); every label is an integer code, -1 where it is
    unknown.

    Group ``g``'s members among the candidates are ``members[member_starts[g]:member_starts[g +
    1]]``, and the possible negatives of stratum ``s`` are
    ``negatives[negative_starts[s]:negative_starts[s + 1]]``, both candidate numbers.
    """

    query: Array  # (queries,) rows of the embedding
    candidate: Array  # (candidates,) rows of the embedding
    itself: Array  # (queries,) the query's own number among the candidates, -1 if it is none
    query_group: Array
    candidate_group: Array
    query_stratum: Array
    query_differ: Array  # (queries, columns in which positives differ)
    candidate_differ: Array
    query_opposed: Array  # (queries, columns in which negatives differ)
    candidate_opposed: Array
    members: Array
    member_starts: Array
    negatives: Array
    negative_starts: Array


def make_pairs(
    meta: pd.DataFrame,
    *,
    same: Sequence[str],
    differ: Sequence[str] = (),
    negatives_same: Sequence[str] = (),
    negatives_differ: Sequence[str] = (),
    queries: Array | None = None,
    candidates: Array | None = None,
    negatives: Array | None = None,
) -> Pairs:
    """Positives agree in all of ``same`` and differ in each of ``differ``; negatives disagree in
    ``same``.

    ``negatives_same`` restricts negatives to rows that agree with the query there (the same plate),
    and ``negatives_differ`` to rows that differ in each of its columns. The masks (rows,) say which
    rows ask, which may be found, and which serve as negatives (for instance the DMSO wells). A row
    whose ``same`` is missing takes no part, unless ``negatives`` names it; one whose ``differ`` is
    missing is no query's positive.
    """
    require_labels(meta, [*same, *differ, *negatives_same, *negatives_differ])
    if not same:
        raise SchemaError(
            "no column in same",
            expected="the columns in which positives agree",
            fix='same=["compound"]',
        )
    group = codes(meta, same)
    stratum = codes(meta, negatives_same)
    found = read_mask(candidates, meta, "candidates")
    asking = read_mask(queries, meta, "queries") & (group >= 0)
    if negatives is None:
        against = found & (group >= 0) & (stratum >= 0)
    else:
        against = read_mask(negatives, meta, "negatives") & (stratum >= 0)
    candidate = np.flatnonzero((found & (group >= 0)) | against)
    number = np.full(len(meta), -1)
    number[candidate] = np.arange(len(candidate))
    differs, opposes = _separate_codes(meta, differ), _separate_codes(meta, negatives_differ)
    query = np.flatnonzero(asking)
    members, member_starts = _by_code(
        group[candidate], found[candidate], int(group.max(initial=-1)) + 1
    )
    opposed, negative_starts = _by_code(
        stratum[candidate], against[candidate], int(stratum.max(initial=-1)) + 1
    )
    return Pairs(
        query=query,
        candidate=candidate,
        itself=number[query],
        query_group=group[query],
        candidate_group=group[candidate],
        query_stratum=stratum[query],
        query_differ=differs[query],
        candidate_differ=differs[candidate],
        query_opposed=opposes[query],
        candidate_opposed=opposes[candidate],
        members=members,
        member_starts=member_starts,
        negatives=opposed,
        negative_starts=negative_starts,
    )


def _separate_codes(meta: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(rows, columns) the code of each column on its own."""
    out = np.empty((len(meta), len(columns)), np.int64)
    for j, column in enumerate(columns):
        out[:, j] = codes(meta, [column])
    return out


def _by_code(code: Array, wanted: Array, count: int) -> tuple[Array, Array]:
    """The wanted positions sorted by code, and where each of ``count`` codes begins."""
    position = np.flatnonzero(wanted & (code >= 0))
    order = position[np.argsort(code[position], kind="stable")]
    ends = np.cumsum(np.bincount(code[position], minlength=count))
    return order, np.concatenate([[0], ends]).astype(np.int64)


@dataclass(frozen=True)
class _Ranked:
    """A block's positives, the best first: query i's are at ``offsets[i]`` and the next ``count[i]
    - 1`` places.
    """

    rows: slice
    offsets: Array
    count: Array
    sims: Array
    above: Array
    tied: Array
    opposed: Array  # (queries,) negatives of each query


def ranked_blocks(
    pairs: Pairs, similarity: Similarity, *, chunk: int | None, device: str
) -> Iterator[_Ranked]:
    """Blocks in order, ``chunk`` queries each; on the CPU as many in flight as there are cores."""
    wide = max(1, similarity.queries.itemsize * len(similarity.candidates))
    size = max(1, chunk) if chunk is not None else int(np.clip(_BLOCK_BYTES // wide, 1, 4096))
    blocks = [slice(s, min(s + size, len(pairs.query))) for s in range(0, len(pairs.query), size)]
    if device != "cpu":
        yield from map(_DeviceCounter(pairs, similarity, device).rank, blocks)
        return
    from threadpoolctl import threadpool_limits

    workers = min(len(blocks), cores())
    # One thread for each block's product: the blocks already fill the cores.
    with threadpool_limits(1 if workers > 1 else None), ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[_Ranked]] = []
        for block in blocks:
            if len(waiting) == workers:
                yield waiting.pop(0).result()
            waiting.append(pool.submit(_rank_block, pairs, similarity, block))
        for future in waiting:
            yield future.result()


def _rank_block(pairs: Pairs, similarity: Similarity, rows: slice) -> _Ranked:
    """One block on one core."""
    from perturbgen.retrieval import kernels

    block = similarity.block(rows)
    part, found = _positives(pairs, rows, block.dtype)
    kernels.sort_positives(block, similarity.column, found, part.offsets, part.count, part.sims)
    kernels.count_negatives(
        block,
        similarity.column,
        pairs.itself[rows],
        pairs.query_group[rows],
        pairs.query_stratum[rows],
        pairs.candidate_group,
        pairs.query_opposed[rows],
        pairs.candidate_opposed,
        pairs.negatives,
        pairs.negative_starts,
        part.offsets,
        part.sims,
        part.count,
        part.above,
        part.tied,
        part.opposed,
    )
    return part


def _positives(pairs: Pairs, rows: slice, dtype: Any) -> tuple[_Ranked, Array]:
    """Room for a block's positives, and their candidate numbers, in the same places."""
    from perturbgen.retrieval import kernels

    sizes = np.diff(pairs.member_starts)[pairs.query_group[rows]]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    queries, room = len(sizes), int(offsets[-1])
    found, count = np.zeros(room, np.int64), np.zeros(queries, np.int64)
    kernels.find_positives(
        pairs.itself[rows],
        pairs.query_group[rows],
        pairs.query_differ[rows],
        pairs.candidate_differ,
        pairs.members,
        pairs.member_starts,
        offsets,
        found,
        count,
    )
    part = _Ranked(
        rows,
        offsets,
        count,
        sims=np.zeros(room, dtype),
        above=np.zeros(room, np.int64),
        tied=np.zeros(room, np.int64),
        opposed=np.zeros(queries, np.int64),
    )
    return part, found


class _DeviceCounter:
    """Candidates and labels resident on the device; ``rank`` does one block of queries."""

    def __init__(self, pairs: Pairs, similarity: Similarity, device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingDependencyError(
                f"device {device!r} was asked for and torch sees no GPU",
                fix="device='cpu', or a CUDA build of torch",
            )
        self._pairs, self._similarity, self._torch = pairs, similarity, torch
        self._device = torch.device(device)
        stratum = np.full(len(pairs.candidate), -1)
        sizes = np.diff(pairs.negative_starts)
        stratum[pairs.negatives] = np.repeat(np.arange(len(sizes)), sizes)
        self._stratum, self._group = self._send(stratum), self._send(pairs.candidate_group)
        self._opposed = [self._send(column) for column in pairs.candidate_opposed.T]
        self._column = self._send(similarity.column)
        self._candidates = None if similarity.product else self._send(similarity.candidates)

    def _send(self, array: Array) -> Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def rank(self, rows: slice) -> _Ranked:
        """One block."""
        from perturbgen.retrieval import kernels

        torch, block = self._torch, self._block(rows)
        dtype = np.float64 if block.dtype == torch.float64 else np.float32
        part, found = _positives(self._pairs, rows, dtype)
        most = int(part.count.max(initial=0))
        if most == 0:
            return part
        filled = np.arange(most) < part.count[:, None]
        place = (part.offsets[:-1, None] + np.arange(most))[filled]
        chosen = np.zeros(filled.shape, np.int64)
        chosen[filled] = self._similarity.column[found[place]]
        sims = block.gather(1, self._send(chosen)).masked_fill(~self._send(filled), -torch.inf)
        worst_first = sims.sort(dim=1).values
        part.sims[place] = worst_first.flip(1).cpu().numpy()[filled]
        over, level = self._histograms(block, rows, worst_first)
        part.opposed[:] = (over + level).sum(axis=1) * (part.count > 0)
        kernels.spread_all(over, level, part.offsets, part.count, part.sims, part.above, part.tied)
        return part

    def _block(self, rows: slice) -> Tensor:
        if self._candidates is None:
            return self._send(self._similarity.block(rows))
        # True float32: TensorFloat-32 would tie and swap close neighbours.
        return self._send(self._similarity.queries[rows]) @ self._candidates.T

    def _histograms(self, block: Tensor, rows: slice, worst_first: Tensor) -> tuple[Array, Array]:
        """(queries, most + 1) negatives between, and level with, the positives counted from the
        best.
        """
        torch, pairs = self._torch, self._pairs
        values = block[:, self._column]
        below = torch.searchsorted(worst_first, values, out_int32=True)
        upto = torch.searchsorted(worst_first, values, right=True, out_int32=True)
        group, stratum, itself = (
            self._send(a[rows])[:, None]
            for a in (pairs.query_group, pairs.query_stratum, pairs.itself)
        )
        number = torch.arange(len(self._group), device=self._device)
        negative = (
            (self._group != group)
            & (self._stratum == stratum)
            & (stratum >= 0)
            & (number != itself)
        )
        for opposed, own in zip(self._opposed, pairs.query_opposed[rows].T, strict=True):
            mine = self._send(own)[:, None]
            negative &= (opposed != mine) & (opposed >= 0) & (mine >= 0)
        better = worst_first.shape[1] - upto
        results = []
        for chosen in (negative & (below == upto), negative & (below != upto)):
            counts = torch.zeros(
                len(values), worst_first.shape[1] + 1, dtype=torch.int32, device=self._device
            )
            counts.scatter_add_(1, better.long(), chosen.int())
            results.append(counts.cpu().numpy().astype(np.int64))
        return results[0], results[1]
