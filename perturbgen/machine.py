"""What the machine gives this process: cores, and memory that was freed and will be wanted again."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@lru_cache
def keep_freed_memory(largest: int) -> None:
    """Let glibc keep freed arrays of up to ``largest`` bytes for the next one.

    By default it returns each to the system and has it zeroed again, which takes as long as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, largest)
        mallopt(M_TRIM_THRESHOLD, min(4 * largest, 2**31 - 1))


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
