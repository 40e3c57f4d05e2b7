"""A comparison from its settings to its scorecard."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from perturbgen.compare.assemble import condition_table, make_card, predictions_of
from perturbgen.compare.cells import Cell, Outcome, as_row, make_cells
from perturbgen.compare.folds import Fold, make_folds
from perturbgen.compare.methods import make_methods, require_honest
from perturbgen.compare.schedule import PROCESSES, check_scheduler, run_cells
from perturbgen.compare.settings import CompareSettings
from perturbgen.compare.tables import Book, find, read_book, read_conditions, read_ladder
from perturbgen.config import environment, to_toml
from perturbgen.console import progress
from perturbgen.errors import ConfigError, suggest
from perturbgen.evaluate.build import find_clusters
from perturbgen.evaluate.records import HEADLINE, choose_metrics
from perturbgen.evaluate.scorecard import Scorecard
from perturbgen.files import atomic_path, require_writable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came of it: the scorecard of the methods that ran through, and the outcome of every cell."""

    settings: CompareSettings
    book: Book
    folds: list[Fold]
    outcomes: Mapping[Cell, Outcome]
    card: Scorecard
    ladder: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failures(self) -> dict[Cell, Outcome]:
        """The cells that failed."""
        return {cell: outcome for cell, outcome in self.outcomes.items() if outcome.state == "failed"}

    @property
    def cells(self) -> pd.DataFrame:
        """A row for every cell."""
        return pd.DataFrame([as_row(cell, outcome) for cell, outcome in self.outcomes.items()])

    def predictions(self) -> Mapping[str, pd.DataFrame]:
        """Each ranked method's predictions with its first seed, read when asked for."""
        return predictions_of(self.book, self.folds, list(self.outcomes), self.card)


def compare(
    settings: CompareSettings, out: str | Path, *, scheduler: str = PROCESSES, workers: int | None = None
) -> Comparison:
    """Run every cell of the grid that ``out`` does not hold yet, and score each method between its controls.

    Everything that can be wrong with the settings is told before the first fit.
    """
    out = Path(out)
    check_scheduler(scheduler)
    require_writable(out / "scorecard.md")
    check_scores(settings)
    methods = make_methods(settings)
    data = settings.data
    ladder = read_ladder(find(data, settings.report.ladder, "ladder")) if settings.report.ladder else []
    described = read_conditions(find(data, data.conditions, "table of conditions")) if data.conditions else None
    book = read_book(data)
    folds = make_folds(settings.splits, book, data)
    runs = require_honest(methods, folds, book.conditions)
    labels = condition_table(book, folds, described)
    find_clusters(labels.index, labels, settings.score.clusters or None)
    folder = out.absolute() / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    keep_settings(settings, out, book)
    book.write(folder / "table.npz")
    cells = make_cells(folder, book, folds, methods, settings.seeds, settings.score)
    outcomes = run_all(cells, scheduler, workers)
    card = make_card(settings, book, folds, outcomes, described, {"trained runs": runs} if runs else {})
    return Comparison(settings, book, folds, outcomes, card, ladder)


def run_all(cells: list[Cell], scheduler: str, workers: int | None) -> dict[Cell, Outcome]:
    """The outcome of every cell, in the order of the grid."""
    found: dict[Cell, Outcome] = {}
    with progress(f"{len(cells)} cells", len(cells)) as tick:
        for cell, outcome in run_cells(cells, scheduler=scheduler, workers=workers):
            found[cell] = outcome
            tick()
            if outcome.state == "failed":
                logger.error("%s failed: %s", cell.label, outcome.error)
            elif outcome.state == "done":
                logger.info("%s: %.1f s", cell.label, outcome.seconds)
    kept = sum(outcome.state == "cached" for outcome in found.values())
    logger.info("%d cells, %d of them kept from before", len(cells), kept)
    return {cell: found[cell] for cell in cells}


def check_scores(settings: CompareSettings) -> None:
    """The metrics exist and can be computed, the headline is among them."""
    names = {metric.name for metric in choose_metrics(settings.score.metrics, reference=True)}
    for name in settings.score.headline or ():
        if name not in names:
            raise ConfigError(f"score.headline: {name!r} is not computed", fix=suggest(name, names))
    if not settings.score.headline and not names & set(HEADLINE):
        raise ConfigError("none of the headline's metrics is computed", fix=f"score.headline = {sorted(names)[:1]}")


def keep_settings(settings: CompareSettings, out: Path, book: Book) -> None:
    """What was asked for and where it ran, beside the results."""
    about: dict[str, Any] = environment(settings.seeds[0], {"table": f"sha256:{book.hash}"})
    for name, text in (("config.toml", to_toml(settings)), ("env.json", json.dumps(about, indent=1))):
        with atomic_path(out / name) as part:
            part.write_text(text)
