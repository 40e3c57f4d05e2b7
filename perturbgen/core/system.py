"""What the machine gives this process: cores, devices, and memory that was freed before."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from threadpoolctl import threadpool_limits

from perturbgen.core.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEPT = 32 << 20  # bytes of the largest array of a block of genes


@lru_cache
def keep_freed_memory(largest: int) -> None:
    """Let glibc keep freed arrays of up to ``largest`` bytes for the next one."""
    # By default it returns each to the system and has it zeroed again, which takes as long as the
    # arithmetic on it.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, largest)
        mallopt(_M_TRIM_THRESHOLD, min(4 * largest, 2**31 - 1))


def cores(*, as_omp: bool = False) -> int:
    """The cores this process may use; with ``as_omp`` OMP_NUM_THREADS lowers their number."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    found = len(allowed(0)) if allowed else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(found, int(wanted))) if as_omp and wanted.isdigit() else found


def require_device(name: str) -> None:
    """Refuse a device that torch does not know or that this machine lacks."""
    import torch

    try:
        torch.zeros(1, device=name).sum().item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name}: {str(error).splitlines()[0]}",
            expected="cpu, or cuda where torch sees a GPU",
        ) from None


def spread(
    work: Callable[[range], None],
    total: int,
    *,
    step: int,
    done: Callable[[float], None] | None = None,
) -> None:
    """Call ``work`` on every range of ``step`` items, in threads; their number changes nothing."""
    keep_freed_memory(_KEPT)
    # numpy and scipy release the interpreter's lock in the loops that take the time, so threads do;
    # BLAS must not start its own inside each of them.
    ranges = [range(start, min(start + step, total)) for start in range(0, total, step)]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores(as_omp=True)) as pool:
        for piece, _ in zip(ranges, pool.map(work, ranges), strict=True):
            if done is not None:
                done(len(piece))
