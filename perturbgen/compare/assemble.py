"""From cells to one scorecard: folds joined by condition, seeds averaged, methods that failed left out and named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pandas as pd

from perturbgen.compare.folds import Fold, describe
from perturbgen.compare.jobs import Cell, Outcome, read_scores, read_values
from perturbgen.compare.settings import CompareSettings
from perturbgen.compare.tables import Book
from perturbgen.core.errors import PerturbgenError, shorten
from perturbgen.evaluate import (
    HEADLINE,
    Scorecard,
    Values,
    effect_sizes,
    find_clusters,
    join_scores,
    strata,
)

_logger = logging.getLogger(__name__)
_T = TypeVar("T")


def make_card(
    settings: CompareSettings,
    book: Book,
    folds: list[Fold],
    outcomes: Mapping[Cell, Outcome],
    described: pd.DataFrame | None,
    about: Mapping[str, Any],
) -> Scorecard:
    """The scorecard of the methods all of whose cells ran; ``about`` joins what the files say of it."""
    failed = list(
        dict.fromkeys(
            cell.method.name for cell, found in outcomes.items() if found.state == "failed"
        )
    )
    ranked = [name for name in settings.all_methods if name not in failed]
    controls, score = settings.controls, settings.score
    negatives = tuple(name for name in controls.negatives if name in ranked)
    if not negatives:
        raise PerturbgenError(
            f"no negative control ran: {shorten(controls.negatives)} failed",
            fix="cells.csv says why",
        )
    positive = controls.positive if controls.positive in ranked else None
    if controls.positive and positive is None:
        _logger.warning(
            "the positive control %s failed: a perfect prediction takes its place",
            controls.positive,
        )
    scores = join_scores(
        {name: _method_scores(name, book, folds, list(outcomes)) for name in ranked}
    )
    index = pd.MultiIndex.from_frame(scores.columns.to_frame(index=False))
    truth = _by_fold(folds, lambda fold: book.table.iloc[fold.test])
    table = condition_table(book, folds, described)
    info = {
        "conditions": len(index),
        "genes": truth.shape[1],
        "splits": list(settings.splits),
        "seeds": list(settings.seeds),
        "failed methods": failed or None,
        "level": score.level,
        "adjusted_p": score.adjust,
        "data": settings.data.model_dump(exclude_defaults=True),
        **about,
    }
    effect = effect_sizes(Values(truth.to_numpy(), score.level, score.adjust), truth.index)
    return Scorecard(
        scores,
        negatives,
        positive,
        tuple(name for name in settings.baselines if name in ranked),
        references=tuple(name for name in controls.references if name in ranked),
        strata=strata(index, table, effect),
        clusters=find_clusters(index, table, score.clusters or None),
        headline=score.headline or HEADLINE,
        resamples=score.resamples,
        seed=settings.seeds[0],
        info=info,
    )


def _several(folds: Iterable[Fold]) -> bool:
    """Whether a condition needs the split's name, too, to be known by."""
    return len({fold.split for fold in folds}) > 1


def _by_fold(folds: list[Fold], part: Callable[[Fold], pd.DataFrame]) -> pd.DataFrame:
    """Tables of the folds' conditions (rows), one after the other; with several splits their name leads the label."""
    if not _several(folds):
        return pd.concat([part(fold) for fold in folds])
    splits = dict.fromkeys(fold.split for fold in folds)
    return pd.concat(
        {name: pd.concat([part(fold) for fold in folds if fold.split == name]) for name in splits},
        names=["split"],
    )


def measured(book: Book, folds: list[Fold]) -> pd.DataFrame:
    """The truth of every prediction, within the limits of the data if these have any."""
    return _by_fold(folds, lambda fold: book.rows(fold.test))


def condition_table(book: Book, folds: list[Fold], described: pd.DataFrame | None) -> pd.DataFrame:
    """What to stratify by: part, whether labels were learnt from, and the user's own columns."""

    def part(fold: Fold) -> pd.DataFrame:
        found = describe(fold, book.conditions)
        if described is None:
            return found
        absent = found.index[~found.index.isin(described.index)]
        if len(absent):
            raise PerturbgenError(
                f"data.conditions lacks {len(absent)} conditions: {shorten(absent, 3)}"
            )
        return found.join(described)

    return _by_fold(folds, part)


def _method_scores(name: str, book: Book, folds: list[Fold], cells: list[Cell]) -> pd.DataFrame:
    """Metrics x conditions of one method: the mean over its seeds, of each fold."""

    def part(fold: Fold) -> pd.DataFrame:
        mine = [cell for cell in cells if cell.fold is fold and cell.method.name == name]
        tables = [read_scores(cell, book.conditions) for cell in mine]
        return (sum(tables[1:], tables[0]) / len(tables)).T

    return _by_fold(folds, part).T


def seed_table(book: Book, folds: list[Fold], cells: list[Cell], card: Scorecard) -> pd.DataFrame:
    """How much chance moves a method: its mean of the headline's metrics with each seed, and their range."""
    metrics = [
        metric.name
        for metric in card.metrics
        if metric.name in (*card.headline, "mean_rowwise_rmse")
    ]
    rows = []
    for name in card.methods:
        mine = [cell for cell in cells if cell.method.name == name]
        seeds = list(dict.fromkeys(cell.seed for cell in mine))
        if len(seeds) < 2:
            continue
        means = pd.DataFrame(
            {
                s: _method_scores(name, book, folds, [c for c in mine if c.seed == s])
                .loc[metrics]
                .mean(axis=1)
                for s in seeds
            }
        )
        rows.append(
            {"method": name, "seeds": len(seeds)} | {m: _spread(means.T[m]) for m in metrics}
        )
    return pd.DataFrame(rows)


def _spread(values: pd.Series) -> str:
    """The mean over seeds, the least and the largest."""
    return f"{values.mean():.4f} ({values.min():.4f} to {values.max():.4f})"


class _Lazy(Mapping[str, _T]):
    """A mapping whose values are read each time they are asked for: all of them at once would fill the memory."""

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


def predictions_of(
    book: Book, folds: list[Fold], cells: list[Cell], card: Scorecard
) -> Mapping[str, pd.DataFrame]:
    """Each method's predictions with its first seed."""
    return _Lazy(card.methods, lambda name: _values_of(name, "values", book, folds, cells))


def intervals_of(
    settings: CompareSettings, book: Book, folds: list[Fold], cells: list[Cell], card: Scorecard
) -> Mapping[str, Mapping[float, tuple[pd.DataFrame, pd.DataFrame]]]:
    """Lower and upper tables by level, of the methods that have them."""
    names = list(dict.fromkeys(cell.method.name for cell in cells if cell.method.intervals))

    def read(name: str) -> Mapping[float, tuple[pd.DataFrame, pd.DataFrame]]:
        ends = {
            level: [
                _values_of(name, f"{end} {level:g}", book, folds, cells)
                for end in ("lower", "upper")
            ]
            for level in settings.score.intervals
        }
        return {level: (lower, upper) for level, (lower, upper) in ends.items()}

    return (
        _Lazy([name for name in names if name in card.methods], read)
        if settings.score.intervals
        else {}
    )


def _values_of(
    name: str, what: str, book: Book, folds: list[Fold], cells: list[Cell]
) -> pd.DataFrame:
    """What the first seed of a method left, conditions x genes."""
    first = {id(cell.fold): cell for cell in reversed(cells) if cell.method.name == name}
    return _by_fold(folds, lambda fold: read_values(first[id(fold)], book, what))
