"""What a comparison leaves behind: scorecard, cells, failures, report, and a row of the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from perturbgen.compare.assemble import intervals_of, measured, seed_table
from perturbgen.compare.run import Comparison
from perturbgen.config import environment, git_revision
from perturbgen.errors import InputError
from perturbgen.evaluate.outputs import markdown_table, to_markdown, write_scorecard
from perturbgen.evaluate.report import report_page
from perturbgen.files import atomic_path

RMSE = "mean_rowwise_rmse"


def write_outputs(found: Comparison, out: str | Path, *, title: str = "Comparison", report: bool = True) -> list[Path]:
    """Save everything into ``out``; returns the paths, those to read first in front."""
    out = Path(out)
    paths = write_scorecard(found.card, out)
    with atomic_path(paths[0]) as part:
        part.write_text("\n\n".join([to_markdown(found.card).rstrip(), *sections(found)]) + "\n", encoding="utf-8")
    paths.append(out / "cells.csv")
    with atomic_path(paths[-1]) as part:
        found.cells.to_csv(part, index=False)
    if report:
        paths.insert(1, write_report(found, out / "report.html", title))
    failures = out / "failures.txt"
    if found.failures:
        with atomic_path(failures) as part:
            part.write_text("\n\n".join(f"{cell.label}\n{end.detail}" for cell, end in found.failures.items()) + "\n")
        paths.append(failures)
    else:
        failures.unlink(missing_ok=True)
    return paths


def sections(found: Comparison) -> list[str]:
    """What the scorecard of a grid says besides: failures, seeds, folds and the time each method took."""
    parts = []
    if found.failures:
        note = "A method with a failed cell is not ranked; failures.txt has the details."
        parts += ["## Failed", note, markdown_table(failure_records(found))]
    seeds = seed_table(found.book, found.folds, list(found.outcomes), found.card)
    if len(seeds):
        parts += ["## Seeds", "Mean (least to largest) over seeds.", markdown_table(records(seeds))]
    return [*parts, "## Grid", markdown_table(fold_records(found))]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def failure_records(found: Comparison) -> list[dict[str, Any]]:
    """A line for every cell that failed."""
    return [
        {"method": cell.method.name, "split": cell.fold.split, "fold": cell.fold.name, "seed": cell.seed,
         "error": outcome.error}
        for cell, outcome in found.failures.items()
    ]  # fmt: skip


def fold_records(found: Comparison) -> list[dict[str, Any]]:
    """A line for every fold."""
    return [
        {"split": f.split, "fold": f.name, "trained on": len(f.train), "predicted": len(f.test)} for f in found.folds
    ]


def write_report(found: Comparison, path: Path, title: str, *, links: Mapping[str, str] | None = None) -> Path:
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
        page.table(failure_records(found))
    if links:
        items = "".join(f'<li><a href="{escape(to)}">{escape(about)}</a></li>' for about, to in links.items())
        page.section("See also")
        page.block(f"<ul>{items}</ul>")
    return page.write(path)


def check_leaderboard(path: Path) -> Path:
    """The leaderboard, if it is there with a table's head."""
    if not path.is_file() or "|---" not in path.read_text(encoding="utf-8"):
        raise InputError(f"no leaderboard at {path}", expected="a markdown file with a table", fix="run where it is")
    return path


def add_to_leaderboard(found: Comparison, path: Path, *, config: str, command: str, out: Path) -> str:
    """Append a row about the best method, which is returned: score is the MRRMSE, beside that of zeros."""
    ranking = found.card.ranking
    best = ranking[ranking["role"].isin(["method", "baseline"])].iloc[0]
    table = found.card.overall.table.set_index(["method", "metric"])["value"]
    has_error = (best.method, RMSE) in table.index and ("zeros", RMSE) in table.index
    score, zeros = (float(table[name, RMSE]) for name in (best.method, "zeros")) if has_error else (None, None)
    row = {
        "date": datetime.now(UTC).date().isoformat(),
        "experiment": config,
        "method": f"{best.method} (headline {best.value:.3f} [{best.low:.3f}, {best.high:.3f}])",
        "score": "-" if score is None else f"{score:.4f}",
        "zeros": "-" if zeros is None else f"{zeros:.4f}",
        "ratio": "-" if score is None or not zeros else f"{score / zeros:.3f}",
        "commit": (git_revision() or "unknown")[:10] + ("+changes" if "+" in (git_revision() or "") else ""),
        "command": f"`{command}` ({out / 'scorecard.md'})",
    }
    line = "| " + " | ".join(row.values()) + " |\n"
    text = path.read_text(encoding="utf-8")
    with atomic_path(path) as part:
        part.write_text(text + ("" if text.endswith("\n") else "\n") + line, encoding="utf-8")
    return line
