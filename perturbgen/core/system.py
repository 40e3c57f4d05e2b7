"""What the machine gives this process, cores, devices, memory, and what it asks: to stop."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator, ExitStack, contextmanager, suppress
from functools import lru_cache
from math import inf
from pathlib import Path
from types import FrameType
from typing import Final

from threadpoolctl import threadpool_limits

from perturbgen.core.errors import ConfigError

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEPT = 32 << 20  # bytes of the largest array of a block of genes
_SHARED = 4_000_000  # numbers from which work is shared out among threads


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


_THREAD_NAMES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _Allowed:
    """How many cores ``--threads`` leaves; None: all that the system gives."""

    cores: int | None = None


def cores(*, as_omp: bool = False) -> int:
    """The cores this process may use; with ``as_omp`` OMP_NUM_THREADS lowers their number.

    Those of its affinity, or fewer where a container has a quota or ``--threads`` was given.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    found = len(allowed(0)) if allowed else os.cpu_count() or 1
    found = max(1, min(found, int(min(quota(), 1e6)), _Allowed.cores or found))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(found, int(wanted))) if as_omp and wanted.isdigit() else found


@lru_cache
def quota(root: Path = Path("/")) -> float:
    """Cores that a container's control groups let this process keep busy; inf without a limit."""
    with suppress(OSError, ValueError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        groups = [line.split(":", 2)[1:] for line in lines if line.count(":") >= 2]
        return min((_group_quota(root / "sys/fs/cgroup", *group) for group in groups), default=inf)
    return inf


def _group_quota(root: Path, controllers: str, path: str) -> float:
    """The least limit of a group and of those around it, as version 2 or 1 writes it."""
    names = [""] if not controllers else [controllers, "cpu"]
    if controllers and "cpu" not in controllers.split(","):
        return inf
    found = [inf]
    for folder in (root / name for name in names):
        # a container may see its own group as the root, or under the path that the host gives it
        own = folder / path.strip("/")
        for place in [own, *own.parents][: len(own.relative_to(folder).parts) + 1]:
            for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
                with suppress(OSError, ValueError):
                    share, period = " ".join((place / n).read_text() for n in files).split()
                    if share.isdigit():  # "max" and -1 are no limit
                        found.append(int(share) / int(period))
    return min(found)


def limit_threads(wanted: int | None = None) -> int:
    """Let this process, and what it starts, compute with ``wanted`` threads, by default its cores.

    More threads than cores would wait for each other: they are not given. Returns the number.
    """
    _Allowed.cores = None
    found = cores()
    if wanted is not None:
        if wanted > found:
            log.warning("--threads %d on %d cores: as many threads as cores", wanted, found)
        found = _Allowed.cores = min(wanted, found)
    elif found >= (os.cpu_count() or 1):
        return found  # what every library finds by itself
    for name in (*_THREAD_NAMES, "NUMBA_NUM_THREADS"):
        # what the user said of a library stays, unless this is the user's own word
        if name.startswith("NUMBA") and "numba" in sys.modules:
            continue  # it reads its variable once, and refuses another value then
        if wanted is not None or name not in os.environ:
            os.environ[name] = str(found)
    # libraries that are loaded read no variable any more
    threadpool_limits(found)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(found)
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        numba.set_num_threads(min(found, numba.config.NUMBA_NUM_THREADS))
    return found


def choose_device(name: str = "auto") -> str:
    """A device by name, which must be there; ``auto`` is a GPU if torch sees one, else the CPU."""
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        _say_once("computing on cuda (%s)", torch.cuda.get_device_name())
        return "cuda"
    try:
        torch.zeros(1, device=name).sum().item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name}: {str(error).splitlines()[0]}",
            expected="auto, cpu, or cuda where torch sees a GPU",
        ) from None
    return name


@lru_cache
def _say_once(text: str, *values: object) -> None:
    log.info(text, *values)


def fast_bf16(device: str) -> tuple[bool, str]:
    """Whether a device multiplies bfloat16 in hardware, and why one may say so."""
    import torch

    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"a GPU of compute capability {major}.{minor} (bfloat16 from 8.0 on)"
    if device != "cpu":
        return False, f"nothing is known of bfloat16 on {device}"
    # Asked of torch, too: what its kernels were told not to use (ATEN_CPU_CAPABILITY) is not there.
    level, flags = torch.backends.cpu.get_cpu_capability(), _cpu_flags()
    known = {"avx512_bf16", "amx_bf16"} if level.startswith("AVX512") else set[str]()
    if level in ("DEFAULT", "NEON", "SVE256"):  # ARM's word
        known = {"bf16"}
    found = sorted(known & flags)
    if found:
        return True, f"this processor has {' and '.join(found)}"
    return False, f"this processor ({level}) would emulate bfloat16"


@lru_cache
def _cpu_flags() -> frozenset[str]:
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.lower().startswith(("flags", "features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


class _OneBlasThread(ContextDecorator):
    """A context, or decorator, in which BLAS starts no threads of its own.

    Of a product of a few thousand numbers its second thread does next to nothing, and where other
    programs keep the cores busy the first one waits for it, each time. One within another costs
    nothing.
    """

    def __init__(self) -> None:
        self._lock, self._depth, self._limits = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._limits.enter_context(threadpool_limits(1, user_api="blas"))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._limits.close()


ONE_BLAS_THREAD: Final = _OneBlasThread()


def spread(
    work: Callable[[range], None],
    total: int,
    *,
    step: int,
    size: int | None = None,
    done: Callable[[float], None] | None = None,
) -> None:
    """Call ``work`` on every range of ``step`` items, in threads; their number changes nothing.

    ``size`` is how many numbers the items are in all: few are not shared out, since threads that
    wait for each other on busy cores take longer than the work.
    """
    keep_freed_memory(_KEPT)
    ranges = [range(start, min(start + step, total)) for start in range(0, total, step)]
    threads = min(cores(as_omp=True), len(ranges))
    if threads < 2 or (size is not None and size < _SHARED):
        with ONE_BLAS_THREAD:
            _report(ranges, map(work, ranges), done)
        return
    # numpy and scipy release the interpreter's lock in the loops that take the time, so threads do;
    # BLAS must not start its own inside each of them.
    with ONE_BLAS_THREAD, ThreadPoolExecutor(threads) as pool:
        _report(ranges, pool.map(work, ranges), done)


def _report(
    ranges: list[range], working: Iterable[None], done: Callable[[float], None] | None
) -> None:
    for piece, _ in zip(ranges, working, strict=True):
        if done is not None:
            done(len(piece))
