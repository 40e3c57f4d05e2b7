"""The grid of a comparison: its jobs, kept under what they depend on, and where they run.

A job is a method fitted on a fold with a seed, its predictions and their scores. Jobs run one after
the other, in processes, or on a Dask cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.baselines import Baseline
from perturbgen.compare.folds import Fold
from perturbgen.compare.methods import Method
from perturbgen.compare.settings import CompareSettings, ScoreSettings
from perturbgen.compare.tables import Book
from perturbgen.core.errors import ConfigError, MissingDependencyError, PerturbgenError, SchemaError
from perturbgen.core.files import atomic_path
from perturbgen.core.system import STOP, cores
from perturbgen.evaluate import place, score

PROCESSES: Final = "processes"
log = logging.getLogger(__name__)

_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PATIENCE: Final = "10s"  # for a Dask scheduler to answer


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``state`` is done, cached or failed; time on the clock and in all."""

    state: str
    seconds: float = 0.0
    processor: float = 0.0
    error: str = ""
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Job:
    """What there is to compute.

    ``folder`` holds the table and the results; ``fit`` names the file of predictions, ``key`` that
    of scores. Both name what the result depends on, so two jobs that differ in nothing else but
    their names have one key and share a file.
    """

    folder: Path
    fold: Fold
    method: Method
    seed: int
    score: ScoreSettings
    fit: str
    key: str

    @classmethod
    def grid(
        cls,
        folder: Path,
        book: Book,
        folds: list[Fold],
        methods: list[Method],
        settings: CompareSettings,
    ) -> list[Job]:
        """The grid; a method that is not random is fitted once, whatever the number of seeds."""
        data, asked = book.hash, settings.score
        scored = asked.model_dump(mode="json", include={"metrics", "level", "adjust"})
        chosen = asked.chosen(layout=book.layout is not None)
        if asked.headline is not None:
            scored["metrics"] = [metric.name for metric in chosen]
        if book.layout is not None:
            scored["layout"] = book.layout.tolist()
        if extensions := {metric.name: metric.code for metric in chosen if metric.code}:
            scored["extensions"] = extensions
        jobs: list[Job] = []
        for fold in folds:
            divided = _digest([data, fold.train.tolist(), fold.test.tolist(), book.clip])
            for method in methods:
                levels = asked.intervals if method.intervals else ()
                fitting, scoring = method.code_versions
                for seed in settings.seeds if method.random else settings.seeds[:1]:
                    # Deterministic results are the same file, whatever seeds are asked for.
                    drawn = seed if method.random else None
                    fit = _digest([divided, dict(method.record), drawn, sorted(levels), fitting])
                    key = _digest([fit, scored, scoring])
                    jobs.append(cls(folder, fold, method, seed, asked, fit, key))
        return jobs

    @property
    def predictions(self) -> Path:
        """The file of predictions."""
        return self.folder / f"{self.fit}.npz"

    @property
    def scores(self) -> Path:
        """The file of scores."""
        return self.folder / f"{self.key}.scores.npz"

    @property
    def kept(self) -> bool:
        """Whether both files are there from before."""
        return self.scores.exists() and self.predictions.exists()

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.method.name} on {self.fold.split}, {self.fold.name}, seed {self.seed}"

    def run(self) -> Outcome:
        """Fit, predict, score, where not done yet; what goes wrong is told, never raised."""
        if self.kept:
            return Outcome("cached")
        from threadpoolctl import threadpool_limits

        start, processor = time.perf_counter(), time.process_time()
        try:
            # The last bits of sums do not depend on how many jobs run at a time.
            with threadpool_limits(1):
                self._compute()
        except Exception as error:  # noqa: BLE001  a method may fail in any way; the rest goes on
            detail = str(error) if isinstance(error, PerturbgenError) else traceback.format_exc()
            words = str(error).partition("\n")[0]
            return Outcome("failed", error=f"{type(error).__name__}: {words}", detail=detail)
        return Outcome("done", time.perf_counter() - start, time.process_time() - processor)

    def _compute(self) -> None:
        """Write the predictions, where they are not there yet, and their scores."""
        path = self.folder / "table.npz"
        book = _load_book(path, (path.stat().st_ino, path.stat().st_mtime_ns))
        train, test = book.rows(self.fold.train), book.rows(self.fold.test)
        if not self.predictions.exists():
            values = self._fitted(train, test)
            with atomic_path(self.predictions) as part:
                np.savez(part, **values)  # type: ignore[arg-type]
        with np.load(self.predictions) as file:
            predicted = pd.DataFrame(file["values"].astype(float), test.index, test.columns)
        layout = None if book.layout is None else pd.Series(book.layout, book.conditions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means over no responding gene
            # Against the table as it is: ``score`` limits what it compares, and finds responding
            # genes before.
            found = score(
                book.table.iloc[self.fold.test],
                predicted,
                metrics=[metric.name for metric in self.score.chosen(layout=layout is not None)],
                reference=train.mean(),
                layout=layout,
                level=self.score.level,
                adjust=self.score.adjust,
                clip=book.clip,
                name=self.method.name,
            )
        with atomic_path(self.scores) as part:
            np.savez(part, values=found.to_numpy(), metrics=np.array(found.index, str))

    def _fitted(self, train: pd.DataFrame, test: pd.DataFrame) -> dict[str, np.ndarray]:
        """Predictions (rows, genes), and ends of intervals by level, in single precision."""
        wanted = pd.MultiIndex.from_tuples(list(test.index), names=test.index.names)
        predictor = self.method.make(test).fit(train, rng=np.random.default_rng(self.seed))
        table = predictor.predict(wanted)
        # Single precision: half the disk, and far finer than the tolerance of any metric.
        found = {"values": table.loc[test.index, test.columns].to_numpy(np.float32)}
        wrong = ~np.isfinite(found["values"])
        if wrong.any():
            rows = int(wrong.any(axis=1).sum())
            raise SchemaError(
                f"{self.method.name} predicts {int(wrong.sum())} values that are missing or "
                f"infinite, in {rows} of {len(wrong)} rows, the first {place(wrong, test)}",
                expected="a finite number for every condition and gene",
            )
        if self.method.intervals and isinstance(predictor, Baseline):
            for level in self.score.intervals:
                ends = predictor.predict_interval(wanted, level=level)
                for end, table in zip(("lower", "upper"), ends, strict=True):
                    values = np.asarray(table.loc[test.index, test.columns], np.float32)
                    found[f"{end} {level:g}"] = values
        return found

    def read_values(self, book: Book, name: str = "values") -> pd.DataFrame:
        """The predictions, or an end of their intervals, labelled and limited."""
        with np.load(self.predictions) as file:
            values = file[name].astype(float)
        rows = book.conditions[self.fold.test]
        return book.limit(pd.DataFrame(values, rows, book.table.columns))

    def read_scores(self, index: pd.MultiIndex) -> pd.DataFrame:
        """Metrics x conditions."""
        with np.load(self.scores) as file:
            metrics = pd.Index(file["metrics"].astype(object), name="metric")
            return pd.DataFrame(file["values"], metrics, index[self.fold.test])

    def row(self, outcome: Outcome) -> dict[str, Any]:
        """A line of the table of jobs."""
        return {
            "method": self.method.name,
            "split": self.fold.split,
            "fold": self.fold.name,
            "seed": self.seed,
            "conditions": len(self.fold.test),
            "trained on": len(self.fold.train),
            "state": outcome.state,
            "seconds": round(outcome.seconds, 2),
            "processor": round(outcome.processor, 2),
            "error": outcome.error,
            "key": self.key,
        }


# The jobs of one process share the table, so it is read once.
@lru_cache(maxsize=1)
def _load_book(path: Path, made: tuple[int, int]) -> Book:
    """The measured rows; ``made`` tells a file from another that stood at its place before."""
    return Book.read(path)


def _digest(value: Any) -> str:
    """A short name for anything JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


_Finished = Iterator[tuple[Job, Outcome]]


def run_jobs(
    jobs: list[Job], *, scheduler: str = PROCESSES, workers: int | None = None
) -> _Finished:
    """Every job with its outcome, as they end; those kept from before come first."""
    waiting: dict[str, list[Job]] = {}
    for job in jobs:
        if job.kept:
            yield job, Outcome("cached")
        else:
            waiting.setdefault(job.key, []).append(job)
    # Of jobs with one key (two splits may divide alike) one runs: no two write the same file.
    first = [same[0] for same in waiting.values()]
    for job, outcome in _run_where(first, scheduler, workers):
        yield job, outcome
        for other in waiting[job.key][1:]:
            yield other, Outcome("cached") if outcome.state == "done" else outcome


def _run_where(jobs: list[Job], scheduler: str, workers: int | None) -> _Finished:
    """Jobs with a key of their own, on a cluster, in processes, or one after the other."""
    if scheduler != PROCESSES:
        yield from _on_cluster(jobs, scheduler)
        return
    if workers is not None and workers > cores():
        log.warning("--workers %d on %d cores: as many workers as cores", workers, cores())
    # More processes than jobs would only start and end; more than cores would wait for each other.
    workers = min(workers or cores(), cores(), len(jobs))
    if workers > 1:
        yield from _in_processes(jobs, workers)
    else:
        for job in jobs:
            yield job, job.run()


def _in_processes(jobs: list[Job], workers: int) -> _Finished:
    """In a pool of fresh processes; jobs that a dying process took with it are tried alone."""
    lost = []
    for job, outcome in _pooled(jobs, workers):
        if outcome is None:
            lost.append(job)
        else:
            yield job, outcome
    # Alone, so that the one that needs too much memory takes no other with it.
    for job in lost:
        for _, outcome in _pooled([job], 1):
            words = "the process that ran it was killed: out of memory, most often"
            yield job, outcome or Outcome("failed", error=words, detail=words)


def _pooled(jobs: list[Job], workers: int) -> Iterator[tuple[Job, Outcome | None]]:
    """Jobs and their outcomes; None where the pool broke."""
    # Spawned, not forked: a forked child inherits the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with _single_threads():
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_set_up_worker, initargs=(os.getpid(),)
        )
        with STOP.withheld_from_children():  # which start as jobs are handed in
            futures: dict[Future[Outcome], Job] = {pool.submit(job.run): job for job in jobs}
        try:
            for future in as_completed(futures):
                broken = isinstance(future.exception(), BrokenProcessPool)
                yield futures[future], None if broken else future.result()
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


def _set_up_worker(parent: int) -> None:
    """A worker is silent, and ends with its parent, which is the one that hears a Ctrl-C."""
    STOP.follow(parent)
    warnings.simplefilter("ignore")
    logging.getLogger("perturbgen").setLevel(logging.ERROR)


def _on_cluster(jobs: list[Job], address: str) -> _Finished:
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
        if not jobs:
            return
        # Told before anything is computed: a worker without the table fails every job.
        _require_shared(client, jobs[0].folder / "table.npz", address)
        futures = {
            client.submit(job.run, key=f"perturbgen-{job.key}", pure=False): job for job in jobs
        }
        try:
            for future in as_completed(futures, loop=client.loop):
                if future.status == "finished":
                    yield futures[future], future.result()
                    continue
                failure = future.exception()
                words = f"the cluster gave no result: {type(failure).__name__}: {failure}"
                failed = Outcome("failed", error=words.partition("\n")[0], detail=words)
                yield futures[future], failed
        except BaseException:
            client.cancel(list(futures))
            raise


def _require_shared(client: Any, table: Path, address: str) -> None:
    """Every worker sees the table."""
    seen = client.run(table.exists)
    if not seen:
        raise ConfigError(
            f"the scheduler at {address} has no workers", fix=f"dask worker {address}"
        )
    apart = [worker for worker, found in seen.items() if not found]
    if apart:
        raise ConfigError(
            f"{apart[0]} does not see {table}",
            expected="a folder that all machines share",
            fix="--out",
        )
