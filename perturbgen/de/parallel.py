"""Threads over independent blocks: numpy and scipy release the interpreter's lock in the loops that take the time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

from perturbgen.machine import cores, keep_freed_memory

KEPT = 32 << 20  # bytes of the largest array of a block of genes


def workers() -> int:
    """The cores this process may use; OMP_NUM_THREADS lowers it."""
    available = cores()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(available, int(wanted))) if wanted.isdigit() else available


def spread(
    work: Callable[[range], None], total: int, *, step: int, done: Callable[[float], None] | None = None
) -> None:
    """Call ``work`` on every range of ``step`` items, in threads; the results do not depend on their number."""
    keep_freed_memory(KEPT)
    ranges = [range(start, min(start + step, total)) for start in range(0, total, step)]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers()) as pool:
        for piece, _ in zip(ranges, pool.map(work, ranges), strict=True):
            if done is not None:
                done(len(piece))
