"""A comparison from its settings to its scorecard.

Folds are joined by condition, seeds averaged, methods that failed left out and named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd

from perturbgen.compare.folds import Fold
from perturbgen.compare.grid import PROCESSES, Job, Outcome, run_jobs
from perturbgen.compare.methods import Method, extensions_of
from perturbgen.compare.settings import CompareSettings
from perturbgen.compare.tables import Book
from perturbgen.core.console import progress
from perturbgen.core.errors import ConfigError, InputError, PerturbgenError, SchemaError, shorten
from perturbgen.core.files import atomic_path, only_writer, require_writable
from perturbgen.core.runs import environment
from perturbgen.core.tables import CONDITION, NAMES, read_frame, require_columns, with_compound
from perturbgen.evaluate import (
    HEADLINE,
    Scorecard,
    Values,
    effect_sizes,
    find_labels,
    join_scores,
    require_kept,
    strata,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Interval = tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came of it: the outcome of every job, and the scorecard of the methods all of whose ran.

    ``described`` are conditions with the user's own columns to stratify by, ``runs`` what the
    report says of trained runs, ``ladder`` the rungs of an oracle ladder.
    """

    settings: CompareSettings
    book: Book
    folds: list[Fold]
    outcomes: Mapping[Job, Outcome]
    described: pd.DataFrame | None = None
    runs: Mapping[str, Any] = field(default_factory=dict)
    ladder: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tested(self) -> list[str]:
        """Which conditions are tested, where they are few for a reason that is not seen."""
        return Fold.tested(self.settings.splits, self.folds, self.book.conditions)

    @property
    def failures(self) -> dict[Job, Outcome]:
        """The jobs that failed."""
        return {job: end for job, end in self.outcomes.items() if end.state == "failed"}

    @property
    def jobs(self) -> pd.DataFrame:
        """A row for every job."""
        return pd.DataFrame([job.row(outcome) for job, outcome in self.outcomes.items()])

    @property
    def environment(self) -> dict[str, Any]:
        """Where it ran, and on which table."""
        return environment(self.settings.seeds[0], {"table": f"sha256:{self.book.hash}"})

    @cached_property
    def card(self) -> Scorecard:
        """The scorecard of the methods all of whose jobs ran."""
        failed = list(dict.fromkeys(job.method.name for job in self.failures))
        # A method that is judged on some folds only would be judged on other conditions than the
        # rest.
        ranked = [name for name in self.settings.all_methods if name not in failed]
        controls, asked = self.settings.controls, self.settings.score
        negatives = tuple(name for name in controls.negatives if name in ranked)
        if not negatives:
            raise PerturbgenError(
                f"no negative control ran: {shorten(controls.negatives)} failed",
                fix="cells.csv says why",
            )
        positive = controls.positive if controls.positive in ranked else None
        if controls.positive and positive is None:
            text = "the positive control %s failed: a perfect prediction takes its place"
            _log.warning(text, controls.positive)
        scores = join_scores({name: self.scores(name) for name in ranked})
        index = pd.MultiIndex.from_frame(scores.columns.to_frame(index=False))
        # Which genes respond is seen in the values as they are, without the limits of the data.
        truth = self._by_fold(lambda fold: self.book.table.iloc[fold.test])
        table = _strata_table(self.book, self.folds, self.described)
        info = {
            "conditions": len(index),
            "genes": truth.shape[1],
            "splits": list(self.settings.splits),
            "seeds": list(self.settings.seeds),
            "failed methods": failed or None,
            "level": asked.level,
            "adjusted_p": asked.adjust,
            "data": self.settings.data.model_dump(exclude_defaults=True),
            **({"trained runs": self.runs} if self.runs else {}),
            **({"extensions": brought} if (brought := extensions_of(self.settings)) else {}),
        }
        effect = effect_sizes(Values(truth.to_numpy(), asked.level, asked.adjust), truth.index)
        return Scorecard(
            scores,
            negatives,
            positive,
            tuple(name for name in self.settings.baselines if name in ranked),
            references=tuple(name for name in controls.references if name in ranked),
            strata=strata(index, table, effect),
            clusters=find_labels(index, table, asked.clusters or None),
            headline=asked.headline or HEADLINE,
            resamples=asked.resamples,
            seed=self.settings.seeds[0],
            info=info,
        )

    def truth(self) -> pd.DataFrame:
        """What each prediction is compared with, within the limits of the data if it has any."""
        return self._by_fold(lambda fold: self.book.rows(fold.test))

    def predictions(self) -> Mapping[str, pd.DataFrame]:
        """Each ranked method's predictions with its first seed, read when asked for."""
        # A report reads one method after the other; all at once are gigabytes.
        return _WhenAsked(self.card.methods, lambda name: self._values(name, "values"))

    def intervals(self) -> Mapping[str, Mapping[float, _Interval]]:
        """Lower and upper tables by level, of the methods that have them, read when asked for."""
        have = dict.fromkeys(job.method.name for job in self.outcomes if job.method.intervals)
        names = [name for name in have if name in self.card.methods]
        levels = self.settings.score.intervals

        def read(name: str) -> Mapping[float, _Interval]:
            return {
                level: (
                    self._values(name, f"lower {level:g}"),
                    self._values(name, f"upper {level:g}"),
                )
                for level in levels
            }

        return _WhenAsked(names, read) if levels else {}

    def scores(self, name: str, seed: int | None = None) -> pd.DataFrame:
        """Metrics x conditions of one method: the mean over its seeds (or one), of each fold."""

        def part(fold: Fold) -> pd.DataFrame:
            tables = [
                job.read_scores(self.book.conditions)
                for job in self.outcomes
                if job.fold is fold and job.method.name == name and seed in (None, job.seed)
            ]
            return (sum(tables[1:], tables[0]) / len(tables)).T

        return self._by_fold(part).T

    def _values(self, name: str, what: str) -> pd.DataFrame:
        """What the first seed of a method left, conditions x genes."""
        mine = [job for job in self.outcomes if job.method.name == name]
        # Reversed, so that the first seed is the one that stays.
        first = {id(job.fold): job for job in reversed(mine)}
        return self._by_fold(lambda fold: first[id(fold)].read_values(self.book, what))

    def _by_fold(self, part: Callable[[Fold], pd.DataFrame]) -> pd.DataFrame:
        return _join_folds(self.folds, part)


def _join_folds(folds: list[Fold], part: Callable[[Fold], pd.DataFrame]) -> pd.DataFrame:
    """Tables of the folds' conditions, one after the other.

    With several splits a condition may be predicted more than once, so that the split's name leads
    its label.
    """
    splits = dict.fromkeys(fold.split for fold in folds)
    if len(splits) == 1:
        return pd.concat([part(fold) for fold in folds])
    parts = {
        name: pd.concat([part(fold) for fold in folds if fold.split == name]) for name in splits
    }
    return pd.concat(parts, names=["split"])


def _strata_table(book: Book, folds: list[Fold], described: pd.DataFrame | None) -> pd.DataFrame:
    """What to stratify by: part, whether labels were learnt from, and the user's own columns."""

    def part(fold: Fold) -> pd.DataFrame:
        found = fold.describe(book.conditions)
        if described is None:
            return found
        absent = found.index[~found.index.isin(described.index)]
        if len(absent):
            raise PerturbgenError(
                f"data.conditions lacks {len(absent)} conditions: {shorten(absent, 3)}"
            )
        return found.join(described)

    return _join_folds(folds, part)


class _WhenAsked(Mapping[str, _T]):
    """Values that are read each time they are asked for: all at once would fill the memory."""

    def __init__(self, names: Iterable[str], read: Callable[[str], _T]) -> None:
        self.names, self.read = list(names), read

    def __getitem__(self, name: str) -> _T:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def compare(
    settings: CompareSettings,
    out: str | Path,
    *,
    scheduler: str = PROCESSES,
    workers: int | None = None,
) -> Comparison:
    """Run every job of the grid that ``out`` does not hold yet, and score methods between controls.

    Everything that can be wrong with the settings is told before the first fit.
    """
    out, data, asked = Path(out), settings.data, settings.score
    if scheduler != PROCESSES and ":" not in scheduler:
        raise ConfigError(
            f"there is no scheduler {scheduler!r}",
            expected="processes, or the address of a Dask scheduler",
            fix="--scheduler tcp://HOST:8786",
        )
    # An hour of fits must not end in a folder that cannot be written.
    require_writable(out / "scorecard.md")
    _check_metrics(settings)
    methods = Method.all(settings)
    rungs, table = settings.report.ladder, data.conditions
    ladder = _read_ladder(data.find(rungs, "ladder")) if rungs else []
    described = _read_described(data.find(table, "table of conditions")) if table else None
    book = Book.of(data)
    folds = Fold.all(settings.splits, book, data)
    seen = {method.name: method.require_unseen(folds, book.conditions) for method in methods}
    runs = {name: about for name, about in seen.items() if about is not None}
    labels = _strata_table(book, folds, described)
    # Only for its refusal: a column that is not there is told before the first fit.
    find_labels(labels.index, labels, asked.clusters or None)
    if (places := find_labels(book.conditions, described, asked.layout or None)) is not None:
        book = replace(book, layout=places.astype(str).to_numpy(str))
    folder = out.absolute() / "cells"
    # What was asked for is written before the first job: an interrupted comparison says what it
    # was.
    made = Comparison(settings, book, folds, {}, described, runs, ladder)
    with only_writer(out):
        folder.mkdir(exist_ok=True)
        for name, text in (
            ("config.toml", settings.to_toml()),
            ("env.json", json.dumps(made.environment, indent=1)),
        ):
            with atomic_path(out / name) as part:
                part.write_text(text)
        book.write(folder / "table.npz")
        outcomes = _run_all(Job.grid(folder, book, folds, methods, settings), scheduler, workers)
    found = Comparison(settings, book, folds, outcomes, described, runs, ladder)
    found.card  # noqa: B018  built now, so that a comparison without controls ends here
    return found


def _run_all(jobs: list[Job], scheduler: str, workers: int | None) -> dict[Job, Outcome]:
    """The outcome of every job, in the order of the grid."""
    found: dict[Job, Outcome] = {}
    with progress(f"{len(jobs)} jobs", len(jobs)) as tick:
        for job, outcome in run_jobs(jobs, scheduler=scheduler, workers=workers):
            found[job] = outcome
            tick()
            if outcome.state == "failed":
                _log.error("%s failed: %s", job.label, outcome.error)
            elif outcome.state == "done":
                _log.info("%s: %.1f s", job.label, outcome.seconds)
    kept = sum(outcome.state == "cached" for outcome in found.values())
    _log.info("%d jobs, %d of them kept from before", len(jobs), kept)
    return {job: found[job] for job in jobs}


def _check_metrics(settings: CompareSettings) -> None:
    """The metrics exist and can be computed, the headline is among them."""
    chosen = settings.score.chosen(layout=bool(settings.score.layout))
    for metric in chosen:
        if metric.code:  # told now: every job would fail with it
            require_kept(metric)
    names = {metric.name for metric in chosen}
    if not settings.score.headline and not names & set(HEADLINE):
        raise ConfigError(
            "none of the headline's metrics is computed",
            fix=f"score.headline = {sorted(names)[:1]}",
        )


def _read_described(path: Path) -> pd.DataFrame:
    """What is known of conditions, to stratify by: labelled rows."""
    table = with_compound(read_frame(path, text=(*CONDITION, *NAMES)), path)
    require_columns(table.columns, CONDITION, path)
    return table.set_index(list(CONDITION))


def _read_ladder(path: Path) -> list[dict[str, Any]]:
    """Rungs of an oracle ladder: rows with prediction and ratio."""
    if path.suffix == ".json":
        try:
            table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} is no table in JSON: {error}", expected="a list of rows"
            ) from None
    else:
        table = read_frame(path)
    require_columns(table.columns, ["prediction", "ratio"], path)
    ratio = pd.to_numeric(table["ratio"], errors="coerce")
    wrong = table["prediction"][~np.isfinite(ratio)]
    if len(wrong):
        raise SchemaError(
            f"{path}: no ratio for {shorten(wrong)}", expected="a number in every row"
        )
    return cast("list[dict[str, Any]]", table.assign(ratio=ratio).to_dict("records"))
