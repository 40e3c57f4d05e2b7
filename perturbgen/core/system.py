"""What the machine gives this process, cores, devices, memory, and what it asks: to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Final

from threadpoolctl import threadpool_limits

from perturbgen.core.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEPT = 32 << 20  # bytes of the largest array of a block of genes


class _Stop:
    """The wish of a user, or of the system, that this process ends: Ctrl-C or SIGTERM.

    Python raises it wherever the program is, and that may be a callback of a C library, which
    prints the exception and goes on. So it is remembered, and raised again at the next ``check``.
    """

    asked: int = 0  # the signal that came

    def listen(self) -> None:
        """Take the signals; in the main thread of a program only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)
        sys.unraisablehook = self._say_ignored

    def _say_ignored(self, about: sys.UnraisableHookArgs) -> None:
        # what a callback could not raise is raised again: nothing is lost that a user should see
        if not (self.asked and issubclass(about.exc_type, KeyboardInterrupt | SystemExit)):
            sys.__unraisablehook__(about)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self.check()

    def check(self) -> None:
        """Stop if it was asked for; called wherever work of some length moves on."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked:
            raise SystemExit(128 + self.asked)

    @contextmanager
    def withheld_from_children(self) -> Iterator[None]:
        """Processes that are started meanwhile never see a Ctrl-C, and print nothing about it."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def follow(self, parent: int) -> None:
        """End this process when its parent has: one that is killed can tell nobody."""

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(0.5)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


STOP: Final = _Stop()


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
