"""Running the cells: one after the other, in processes, or on a Dask cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final

from perturbgen.compare.jobs import Cell, Outcome, run_cell
from perturbgen.core.errors import ConfigError, MissingDependencyError
from perturbgen.core.system import cores

_logger = logging.getLogger(__name__)

PROCESSES: Final = "processes"
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PATIENCE: Final = "10s"  # for a Dask scheduler to answer

_Finished = Iterator[tuple[Cell, Outcome]]


def run_cells(
    cells: list[Cell], *, scheduler: str = PROCESSES, workers: int | None = None
) -> _Finished:
    """Every cell with its outcome, as they end; those kept from before come first and need no worker."""
    waiting = []
    for cell in cells:
        if cell.scores.exists() and cell.predictions.exists():
            yield cell, Outcome("cached")
        else:
            waiting.append(cell)
    if scheduler != PROCESSES:
        yield from _on_cluster(waiting, scheduler)
        return
    workers = min(workers or cores(), len(waiting))
    if workers > 1:
        yield from _in_processes(waiting, workers)
    else:
        for cell in waiting:
            yield cell, run_cell(cell)


def check_scheduler(scheduler: str) -> None:
    """``processes``, or what may be an address."""
    if scheduler != PROCESSES and ":" not in scheduler:
        raise ConfigError(
            f"there is no scheduler {scheduler!r}",
            expected="processes, or the address of a Dask scheduler",
            fix="--scheduler tcp://HOST:8786",
        )


def _in_processes(cells: list[Cell], workers: int) -> _Finished:
    """In a pool of fresh processes; cells that a dying process took with it are tried again, alone."""
    lost = []
    for cell, outcome in _pooled(cells, workers):
        if outcome is None:
            lost.append(cell)
        else:
            yield cell, outcome
    for cell in lost:
        for _, outcome in _pooled([cell], 1):
            words = "the process that ran it was killed: out of memory, most often"
            yield cell, outcome or Outcome("failed", error=words, detail=words)


def _pooled(cells: list[Cell], workers: int) -> Iterator[tuple[Cell, Outcome | None]]:
    """Cells and their outcomes; None where the pool broke."""
    context = multiprocessing.get_context("spawn")
    with _single_threads():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_set_up_worker)
        futures: dict[Future[Outcome], Cell] = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield (
                    futures[future],
                    None if isinstance(future.exception(), BrokenProcessPool) else future.result(),
                )
        except BaseException:
            for child in multiprocessing.active_children():  # what they have finished is kept
                child.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


@contextmanager
def _single_threads() -> Iterator[None]:
    """New processes start with one thread each for linear algebra."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _set_up_worker() -> None:
    """A worker says nothing, and an interrupt ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.getLogger("perturbgen").setLevel(logging.ERROR)


def _on_cluster(cells: list[Cell], address: str) -> _Finished:
    """On the workers of a Dask scheduler; they must see the run's folder under the same path."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise MissingDependencyError(
            "Dask is not installed", fix='pip install "perturbgen[cluster]"'
        ) from None
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"no Dask scheduler at {address}: {reason}", fix="dask scheduler starts one"
        ) from None
    with client:
        if not cells:
            return
        _require_shared(client, cells[0], address)
        futures = {
            client.submit(run_cell, cell, key=f"perturbgen-{cell.key}", pure=False): cell
            for cell in cells
        }
        try:
            for future in as_completed(futures, loop=client.loop):
                yield futures[future], _result_of(future)
        except BaseException:
            client.cancel(list(futures))
            raise


def _result_of(future: Any) -> Outcome:
    """The outcome, or what became of the worker."""
    if future.status == "finished":
        found: Outcome = future.result()
        return found
    words = f"the cluster gave no result: {type(future.exception()).__name__}: {future.exception()}"
    return Outcome("failed", error=words.partition("\n")[0], detail=words)


def _require_shared(client: Any, cell: Cell, address: str) -> None:
    """Every worker sees the table."""
    path = cell.folder / "table.npz"
    seen = client.run(path.exists)
    if not seen:
        raise ConfigError(
            f"the scheduler at {address} has no workers", fix=f"dask worker {address}"
        )
    blind = [worker for worker, found in seen.items() if not found]
    if blind:
        raise ConfigError(
            f"{blind[0]} does not see {path}",
            expected="a folder that all machines share",
            fix="--out",
        )
