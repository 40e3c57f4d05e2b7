"""One cell of the grid: a method fitted on a fold with a seed, its predictions and scores, kept under what they
depend on.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

import perturbgen
from perturbgen.baselines import Baseline, Predictor
from perturbgen.compare.folds import Fold
from perturbgen.compare.methods import Method
from perturbgen.compare.settings import ScoreSettings
from perturbgen.compare.tables import Book
from perturbgen.core.errors import PerturbgenError, SchemaError
from perturbgen.core.files import atomic_path
from perturbgen.core.runs import package_version
from perturbgen.evaluate import place, score

# The code that predictions and scores depend on: rooms and files of the package.
_FITTING: Final = (
    "baselines",
    "de",
    "data/chemistry.py",
    "compare/methods.py",
    "compare/cells.py",
    "evaluate/card.py",
)
_GENERATING: Final = (
    *_FITTING,
    "data",
    "models",
    "nn",
    "predict",
    "generate",
    "train/card.py",
    "train/cells.py",
    "train/generative.py",
)
_SCORING: Final = ("evaluate",)
_LIBRARIES: Final = ("numpy", "scipy", "pandas", "scikit-learn", "xgboost", "torch", "rdkit")
_Values = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Cell:
    """What there is to compute. ``folder`` holds the table and the results; ``fit`` and ``key`` name the files."""

    folder: Path
    fold: Fold
    method: Method
    seed: int
    score: ScoreSettings
    fit: str
    key: str

    @property
    def predictions(self) -> Path:
        """The file of predictions."""
        return self.folder / f"{self.fit}.npz"

    @property
    def scores(self) -> Path:
        """The file of scores."""
        return self.folder / f"{self.key}.scores.npz"

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.method.name} on {self.fold.split}, {self.fold.name}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: ``state`` is done, cached or failed; time on the clock, and of all its processors."""

    state: str
    seconds: float = 0.0
    processor: float = 0.0
    error: str = ""
    detail: str = ""


def make_cells(
    folder: Path,
    book: Book,
    folds: list[Fold],
    methods: list[Method],
    seeds: tuple[int, ...],
    settings: ScoreSettings,
) -> list[Cell]:
    """The grid; a method without chance is fitted once, whatever the number of seeds."""
    data, code = (
        book.hash,
        {rooms: _code_version(rooms) for rooms in (_FITTING, _GENERATING, _SCORING)},
    )
    cells = []
    for fold in folds:
        divided = _digest([data, fold.train.tolist(), fold.test.tolist(), book.clip])
        for method in methods:
            levels = settings.intervals if method.intervals else ()
            for seed in seeds if method.random else seeds[:1]:
                chance = seed if method.random else None
                rooms = _GENERATING if method.trained else _FITTING
                fit = _digest([divided, dict(method.record), chance, sorted(levels), code[rooms]])
                scored = settings.model_dump(mode="json", include={"metrics", "level", "adjust"})
                key = _digest([fit, scored, code[_SCORING]])
                cells.append(Cell(folder, fold, method, seed, settings, fit, key))
    return cells


def _digest(value: Any) -> str:
    """A short name for anything JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


@lru_cache
def _code_version(parts: tuple[str, ...]) -> str:
    """A hash of the sources of some rooms of the package, and of the libraries that compute."""
    root = Path(perturbgen.__file__).parent
    found = hashlib.sha256(json.dumps([package_version(name) for name in _LIBRARIES]).encode())
    for part in parts:
        for path in (
            sorted((root / part).rglob("*.py")) if (root / part).is_dir() else [root / part]
        ):
            found.update(path.read_bytes())
    return found.hexdigest()


def run_cell(cell: Cell) -> Outcome:
    """Fit, predict, score, as far as that has not been done before; whatever goes wrong is told, never raised."""
    if cell.scores.exists() and cell.predictions.exists():
        return Outcome("cached")
    start, processor = time.perf_counter(), time.process_time()
    try:
        with _one_thread():
            _compute(cell)
    except Exception as error:  # noqa: BLE001  a method may fail in any way; its cell says so and the rest goes on
        detail = str(error) if isinstance(error, PerturbgenError) else traceback.format_exc()
        words = str(error).partition("\n")[0]
        return Outcome("failed", error=f"{type(error).__name__}: {words}", detail=detail)
    return Outcome("done", time.perf_counter() - start, time.process_time() - processor)


def _one_thread() -> Any:
    """One thread for linear algebra: the sums' last bits do not depend on how many cells run at a time."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def _compute(cell: Cell) -> None:
    """Write the predictions, where they are not there yet, and their scores."""
    path = cell.folder / "table.npz"
    book = _load_book(path, (path.stat().st_ino, path.stat().st_mtime_ns))
    train, test = book.rows(cell.fold.train), book.rows(cell.fold.test)
    if not cell.predictions.exists():
        values = _fitted_values(cell, train, test)
        with atomic_path(cell.predictions) as part:
            np.savez(part, **values)  # type: ignore[arg-type]
    with np.load(cell.predictions) as file:
        predicted = pd.DataFrame(file["values"].astype(float), test.index, test.columns)
    settings = cell.score
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over nothing where no gene responds
        found = score(
            book.table.iloc[cell.fold.test],
            predicted,
            metrics=settings.metrics,
            reference=train.mean(),
            level=settings.level,
            adjust=settings.adjust,
            clip=book.clip,
            name=cell.method.name,
        )
    with atomic_path(cell.scores) as part:
        np.savez(part, values=found.to_numpy(), metrics=np.array(found.index, str))


@lru_cache(maxsize=1)
def _load_book(path: Path, made: tuple[int, int]) -> Book:
    """The measured rows; ``made`` tells a file from another that stood at its place before."""
    return Book.read(path)


def _fitted_values(cell: Cell, train: pd.DataFrame, test: pd.DataFrame) -> _Values:
    """Predictions (rows, genes), and the ends of their intervals where there are any; single precision is kept."""
    predictor = cell.method.make(test).fit(train, rng=np.random.default_rng(cell.seed))
    values = {"values": _checked(predictor.predict(_labels_of(test)), test, cell.method.name)}
    return values | _interval_values(predictor, cell, test)


def _labels_of(table: pd.DataFrame) -> pd.MultiIndex:
    """The conditions of a table."""
    return pd.MultiIndex.from_tuples(list(table.index), names=table.index.names)


def _interval_values(predictor: Predictor, cell: Cell, test: pd.DataFrame) -> _Values:
    """Lower and upper ends by level."""
    if not (cell.method.intervals and isinstance(predictor, Baseline)):
        return {}
    found: _Values = {}
    for level in cell.score.intervals:
        ends = predictor.predict_interval(_labels_of(test), level=level)
        for end, table in zip(("lower", "upper"), ends, strict=True):
            found[f"{end} {level:g}"] = np.asarray(table.loc[test.index, test.columns], np.float32)
    return found


def _checked(found: pd.DataFrame, test: pd.DataFrame, name: str) -> np.ndarray:
    """The values asked for (rows, genes); a prediction without a number somewhere is none."""
    values = found.loc[test.index, test.columns].to_numpy(np.float32)
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise SchemaError(
            f"{name} predicts {int(wrong.sum())} values that are missing or infinite, the first {place(wrong, test)}",
            expected="a finite number for every condition and gene",
        )
    return values


def read_values(cell: Cell, book: Book, name: str = "values") -> pd.DataFrame:
    """The cell's predictions, or an end of its intervals, labelled and limited."""
    with np.load(cell.predictions) as file:
        values = pd.DataFrame(
            file[name].astype(float), book.conditions[cell.fold.test], book.table.columns
        )
    return book.limit(values)


def read_scores(cell: Cell, index: pd.MultiIndex) -> pd.DataFrame:
    """The cell's scores: metrics x conditions."""
    with np.load(cell.scores) as file:
        metrics = pd.Index(file["metrics"].astype(object), name="metric")
        return pd.DataFrame(file["values"], metrics, index[cell.fold.test])


def as_row(cell: Cell, outcome: Outcome) -> Mapping[str, Any]:
    """A line of the table of cells."""
    return {
        "method": cell.method.name,
        "split": cell.fold.split,
        "fold": cell.fold.name,
        "seed": cell.seed,
        "conditions": len(cell.fold.test),
        "trained on": len(cell.fold.train),
        "state": outcome.state,
        "seconds": round(outcome.seconds, 2),
        "processor": round(outcome.processor, 2),
        "error": outcome.error,
        "key": cell.key,
    }
