"""A comparison from its settings to its scorecard.

What a comparison leaves behind: scorecard, cells, failures, report, and a row of the leaderboard.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from perturbgen.compare.assemble import (
    condition_table,
    intervals_of,
    make_card,
    measured,
    predictions_of,
    seed_table,
)
from perturbgen.compare.folds import Fold, make_folds
from perturbgen.compare.jobs import Cell, Outcome, as_row, make_cells
from perturbgen.compare.methods import make_methods, require_honest
from perturbgen.compare.schedule import PROCESSES, check_scheduler, run_cells
from perturbgen.compare.settings import CompareSettings
from perturbgen.compare.tables import Book, find, read_book, read_conditions, read_ladder
from perturbgen.core.config import to_toml
from perturbgen.core.console import progress
from perturbgen.core.errors import ConfigError, InputError, suggest
from perturbgen.core.files import atomic_path, require_writable
from perturbgen.core.runs import environment, git_revision
from perturbgen.evaluate import (
    HEADLINE,
    Scorecard,
    choose_metrics,
    find_clusters,
    markdown_table,
    report_page,
    to_markdown,
    write_scorecard,
)

_logger = logging.getLogger(__name__)


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
        return {
            cell: outcome for cell, outcome in self.outcomes.items() if outcome.state == "failed"
        }

    @property
    def cells(self) -> pd.DataFrame:
        """A row for every cell."""
        return pd.DataFrame([as_row(cell, outcome) for cell, outcome in self.outcomes.items()])

    def predictions(self) -> Mapping[str, pd.DataFrame]:
        """Each ranked method's predictions with its first seed, read when asked for."""
        return predictions_of(self.book, self.folds, list(self.outcomes), self.card)


def compare(
    settings: CompareSettings,
    out: str | Path,
    *,
    scheduler: str = PROCESSES,
    workers: int | None = None,
) -> Comparison:
    """Run every cell of the grid that ``out`` does not hold yet, and score each method between its controls.

    Everything that can be wrong with the settings is told before the first fit.
    """
    out = Path(out)
    check_scheduler(scheduler)
    require_writable(out / "scorecard.md")
    _check_scores(settings)
    methods = make_methods(settings)
    data = settings.data
    ladder = (
        read_ladder(find(data, settings.report.ladder, "ladder")) if settings.report.ladder else []
    )
    described = (
        read_conditions(find(data, data.conditions, "table of conditions"))
        if data.conditions
        else None
    )
    book = read_book(data)
    folds = make_folds(settings.splits, book, data)
    runs = require_honest(methods, folds, book.conditions)
    labels = condition_table(book, folds, described)
    find_clusters(labels.index, labels, settings.score.clusters or None)
    folder = out.absolute() / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    _keep_settings(settings, out, book)
    book.write(folder / "table.npz")
    cells = make_cells(folder, book, folds, methods, settings.seeds, settings.score)
    outcomes = _run_all(cells, scheduler, workers)
    card = make_card(
        settings, book, folds, outcomes, described, {"trained runs": runs} if runs else {}
    )
    return Comparison(settings, book, folds, outcomes, card, ladder)


def _run_all(cells: list[Cell], scheduler: str, workers: int | None) -> dict[Cell, Outcome]:
    """The outcome of every cell, in the order of the grid."""
    found: dict[Cell, Outcome] = {}
    with progress(f"{len(cells)} cells", len(cells)) as tick:
        for cell, outcome in run_cells(cells, scheduler=scheduler, workers=workers):
            found[cell] = outcome
            tick()
            if outcome.state == "failed":
                _logger.error("%s failed: %s", cell.label, outcome.error)
            elif outcome.state == "done":
                _logger.info("%s: %.1f s", cell.label, outcome.seconds)
    kept = sum(outcome.state == "cached" for outcome in found.values())
    _logger.info("%d cells, %d of them kept from before", len(cells), kept)
    return {cell: found[cell] for cell in cells}


def _check_scores(settings: CompareSettings) -> None:
    """The metrics exist and can be computed, the headline is among them."""
    names = {metric.name for metric in choose_metrics(settings.score.metrics, reference=True)}
    for name in settings.score.headline or ():
        if name not in names:
            raise ConfigError(f"score.headline: {name!r} is not computed", fix=suggest(name, names))
    if not settings.score.headline and not names & set(HEADLINE):
        raise ConfigError(
            "none of the headline's metrics is computed",
            fix=f"score.headline = {sorted(names)[:1]}",
        )


def _keep_settings(settings: CompareSettings, out: Path, book: Book) -> None:
    """What was asked for and where it ran, beside the results."""
    about: dict[str, Any] = environment(settings.seeds[0], {"table": f"sha256:{book.hash}"})
    for name, text in (
        ("config.toml", to_toml(settings)),
        ("env.json", json.dumps(about, indent=1)),
    ):
        with atomic_path(out / name) as part:
            part.write_text(text)


_RMSE = "mean_rowwise_rmse"


def write_outputs(
    found: Comparison, out: str | Path, *, title: str = "Comparison", report: bool = True
) -> list[Path]:
    """Save everything into ``out``; returns the paths, those to read first in front."""
    out = Path(out)
    paths = write_scorecard(found.card, out)
    with atomic_path(paths[0]) as part:
        part.write_text(
            "\n\n".join([to_markdown(found.card).rstrip(), *_sections(found)]) + "\n",
            encoding="utf-8",
        )
    paths.append(out / "cells.csv")
    with atomic_path(paths[-1]) as part:
        found.cells.to_csv(part, index=False)
    if report:
        paths.insert(1, write_report(found, out / "report.html", title))
    failures = out / "failures.txt"
    if found.failures:
        with atomic_path(failures) as part:
            part.write_text(
                "\n\n".join(f"{cell.label}\n{end.detail}" for cell, end in found.failures.items())
                + "\n"
            )
        paths.append(failures)
    else:
        failures.unlink(missing_ok=True)
    return paths


def _sections(found: Comparison) -> list[str]:
    """What the scorecard of a grid says besides: failures, seeds, folds and the time each method took."""
    parts = []
    if found.failures:
        note = "A method with a failed cell is not ranked; failures.txt has the details."
        parts += ["## Failed", note, markdown_table(_failure_records(found))]
    seeds = seed_table(found.book, found.folds, list(found.outcomes), found.card)
    if len(seeds):
        parts += [
            "## Seeds",
            "Mean (least to largest) over seeds.",
            markdown_table(_records(seeds)),
        ]
    return [*parts, "## Grid", markdown_table(_fold_records(found))]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _failure_records(found: Comparison) -> list[dict[str, Any]]:
    """A line for every cell that failed."""
    return [
        {
            "method": cell.method.name,
            "split": cell.fold.split,
            "fold": cell.fold.name,
            "seed": cell.seed,
            "error": outcome.error,
        }
        for cell, outcome in found.failures.items()
    ]


def _fold_records(found: Comparison) -> list[dict[str, Any]]:
    """A line for every fold."""
    return [
        {"split": f.split, "fold": f.name, "trained on": len(f.train), "predicted": len(f.test)}
        for f in found.folds
    ]


def write_report(
    found: Comparison, path: Path, title: str, *, links: Mapping[str, str] | None = None
) -> Path:
    """The page about the scorecard, with the failures in it; ``links`` are other pages, by what they are about."""
    cells = list(found.outcomes)
    page = report_page(
        found.card,
        measured(found.book, found.folds),
        found.predictions(),
        title=title,
        intervals=intervals_of(found.settings, found.book, found.folds, cells, found.card),
        ladder=found.ladder,
        metadata=environment(found.settings.seeds[0], {"table": f"sha256:{found.book.hash}"}),
    )
    if found.failures:
        page.section("Failed", "These methods are not ranked.")
        page.table(_failure_records(found))
    if links:
        items = "".join(
            f'<li><a href="{escape(to)}">{escape(about)}</a></li>' for about, to in links.items()
        )
        page.section("See also")
        page.block(f"<ul>{items}</ul>")
    return page.write(path)


def check_leaderboard(path: Path) -> Path:
    """The leaderboard, if it is there with a table's head."""
    if not path.is_file() or "|---" not in path.read_text(encoding="utf-8"):
        raise InputError(
            f"no leaderboard at {path}",
            expected="a markdown file with a table",
            fix="run where it is",
        )
    return path


def add_to_leaderboard(
    found: Comparison, path: Path, *, config: str, command: str, out: Path
) -> str:
    """Append a row about the best method, which is returned: score is the MRRMSE, beside that of zeros."""
    ranking = found.card.ranking
    best = ranking[ranking["role"].isin(["method", "baseline"])].iloc[0]
    table = found.card.overall.table.set_index(["method", "metric"])["value"]
    has_error = (best.method, _RMSE) in table.index and ("zeros", _RMSE) in table.index
    score, zeros = (
        (float(table[name, _RMSE]) for name in (best.method, "zeros"))
        if has_error
        else (None, None)
    )
    row = {
        "date": datetime.now(UTC).date().isoformat(),
        "experiment": config,
        "method": f"{best.method} (headline {best.value:.3f} [{best.low:.3f}, {best.high:.3f}])",
        "score": "-" if score is None else f"{score:.4f}",
        "zeros": "-" if zeros is None else f"{zeros:.4f}",
        "ratio": "-" if score is None or not zeros else f"{score / zeros:.3f}",
        "commit": (git_revision() or "unknown")[:10]
        + ("+changes" if "+" in (git_revision() or "") else ""),
        "command": f"`{command}` ({out / 'scorecard.md'})",
    }
    line = "| " + " | ".join(row.values()) + " |\n"
    text = path.read_text(encoding="utf-8")
    with atomic_path(path) as part:
        part.write_text(text + ("" if text.endswith("\n") else "\n") + line, encoding="utf-8")
    return line
