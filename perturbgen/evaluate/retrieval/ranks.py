"""Counting, block by block, how many negatives stand above each positive; on a CPU's cores or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbgen.evaluate.retrieval.pairs import Pairs
from perturbgen.evaluate.retrieval.similarity import Similarity
from perturbgen.machine import cores

Array = np.ndarray[Any, Any]
BLOCK_BYTES = 48 << 20  # of similarities in one block; a block per core is in flight


@dataclass(frozen=True)
class Ranked:
    """A block's positives, the best first: query i's are at ``offsets[i]`` and the next ``count[i] - 1`` places."""

    rows: slice
    offsets: Array
    count: Array
    sims: Array
    above: Array
    tied: Array
    opposed: Array  # (queries,) negatives of each query


def block_size(pairs: Pairs, similarity: Similarity, chunk: int | None) -> int:
    """Queries in a block."""
    if chunk is not None:
        return max(1, chunk)
    wide = max(1, similarity.queries.itemsize * len(similarity.candidates))
    return int(np.clip(BLOCK_BYTES // wide, 1, 4096))


def ranked_blocks(pairs: Pairs, similarity: Similarity, *, chunk: int | None, device: str) -> Iterator[Ranked]:
    """Blocks in order; on the CPU as many are in flight as there are cores."""
    size = block_size(pairs, similarity, chunk)
    blocks = [slice(s, min(s + size, len(pairs.query))) for s in range(0, len(pairs.query), size)]
    if device != "cpu":
        from perturbgen.evaluate.retrieval.device import DeviceCounter

        yield from map(DeviceCounter(pairs, similarity, device).rank, blocks)
        return
    from threadpoolctl import threadpool_limits

    workers = min(len(blocks), cores())
    with threadpool_limits(1 if workers > 1 else None), ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Ranked]] = []
        for block in blocks:
            if len(waiting) == workers:
                yield waiting.pop(0).result()
            waiting.append(pool.submit(rank_block, pairs, similarity, block))
        for future in waiting:
            yield future.result()


def rank_block(pairs: Pairs, similarity: Similarity, rows: slice) -> Ranked:
    """One block on one core."""
    from perturbgen.evaluate.retrieval.kernels import count_negatives, sort_positives

    block = similarity.block(rows)
    part, who = positives(pairs, rows, block.dtype)
    sort_positives(block, similarity.column, who, part.offsets, part.count, part.sims)
    count_negatives(
        block, similarity.column, pairs.itself[rows], pairs.query_group[rows], pairs.query_stratum[rows],
        pairs.candidate_group, pairs.query_opposed[rows], pairs.candidate_opposed,
        pairs.negatives, pairs.negative_starts,
        part.offsets, part.sims, part.count, part.above, part.tied, part.opposed,
    )  # fmt: skip
    return part


def positives(pairs: Pairs, rows: slice, dtype: Any) -> tuple[Ranked, Array]:
    """Room for a block's positives, and who they are (candidate numbers, in the same places)."""
    from perturbgen.evaluate.retrieval.kernels import find_positives

    offsets = pairs.capacity(rows)
    queries, room = len(offsets) - 1, int(offsets[-1])
    who, count = np.zeros(room, np.int64), np.zeros(queries, np.int64)
    find_positives(
        pairs.itself[rows], pairs.query_group[rows], pairs.query_differ[rows], pairs.candidate_differ,
        pairs.members, pairs.member_starts, offsets, who, count,
    )  # fmt: skip
    above, tied, opposed = np.zeros(room, np.int64), np.zeros(room, np.int64), np.zeros(queries, np.int64)
    return Ranked(rows, offsets, count, np.zeros(room, dtype), above, tied, opposed), who
