"""What a comparison leaves behind: scorecard, jobs, failures, report, a row of the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from perturbgen.compare.assemble import Comparison
from perturbgen.core.errors import InputError
from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path
from perturbgen.evaluate import ScorecardText, markdown_table, report_page

_RMSE = "mean_rowwise_rmse"


def write_outputs(
    found: Comparison,
    out: str | Path,
    *,
    title: str = "Comparison",
    report: str | Path | None = "report.html",
    links: Mapping[str, str] | None = None,
) -> list[Path]:
    """Save everything into ``out``; returns the paths, those to read first in front.

    ``report`` is the page's place in ``out`` (or an absolute one), None for no page; ``links`` are
    other pages that it points to, by what they are about.
    """
    out = Path(out)
    written = ScorecardText(found.card)
    paths = written.write(out)
    with atomic_path(paths[0]) as part:
        text = "\n\n".join([written.markdown().rstrip(), *_sections(found)])
        part.write_text(text + "\n", encoding="utf-8")
    # The name that earlier versions gave to the table of jobs.
    paths.append(out / "cells.csv")
    write_table(found.jobs, paths[-1])
    if report:
        paths.insert(1, _write_report(found, out / report, title, links))
    failures = out / "failures.txt"
    if found.failures:
        with atomic_path(failures) as part:
            told = [f"{job.label}\n{end.detail}" for job, end in found.failures.items()]
            part.write_text("\n\n".join(told) + "\n")
        paths.append(failures)
    else:
        # One of an earlier run, whose failure is mended.
        failures.unlink(missing_ok=True)
    return paths


def _sections(found: Comparison) -> list[str]:
    """What the scorecard of a grid says besides: failures, seeds, folds."""
    parts = []
    if found.failures:
        note = "A method with a failed job is not ranked; failures.txt has the details."
        parts += ["## Failed", note, markdown_table(_failed(found))]
    if notes := _latent_notes(found):
        parts += ["## Trained models", *notes]
    if seeds := _seeds(found):
        parts += ["## Seeds", "Mean (least to largest) over seeds.", markdown_table(seeds)]
    grid = [
        {
            "split": fold.split,
            "fold": fold.name,
            "trained on": len(fold.train),
            "predicted": len(fold.test),
        }
        for fold in found.folds
    ]
    return [*parts, "## Grid", *found.tested, markdown_table(grid)]


def _latent_notes(found: Comparison) -> list[str]:
    """What has to be known of trained models whose latent space holds next to nothing."""
    notes = {name: about.get("latent space") for name, about in found.runs.items()}
    return [f"{name}: {note}." for name, note in notes.items() if note]


def _seeds(found: Comparison) -> list[dict[str, Any]]:
    """How far seeds move a method: mean, least and largest of the headline's metrics."""
    wanted = (*found.card.headline, _RMSE)
    metrics = [metric.name for metric in found.card.metrics if metric.name in wanted]
    rows = []
    for name in found.card.methods:
        seeds = list(dict.fromkeys(job.seed for job in found.outcomes if job.method.name == name))
        if len(seeds) < 2:
            continue
        means = {seed: found.scores(name, seed).loc[metrics].mean(axis=1) for seed in seeds}
        spread = {
            str(metric): f"{v.mean():.4f} ({v.min():.4f} to {v.max():.4f})"
            for metric, v in pd.DataFrame(means).loc[metrics].iterrows()
        }
        rows.append({"method": name, "seeds": len(seeds), **spread})
    return rows


def _failed(found: Comparison) -> list[dict[str, Any]]:
    """A line for every job that failed."""
    names = ("method", "split", "fold", "seed", "error")
    rows = [job.row(outcome) for job, outcome in found.failures.items()]
    return [{name: row[name] for name in names} for row in rows]


def _write_report(
    found: Comparison, path: Path, title: str, links: Mapping[str, str] | None
) -> Path:
    """The page about the scorecard; ``links`` are other pages, by what they are about."""
    page = report_page(
        found.card,
        found.truth(),
        found.predictions(),
        title=title,
        intervals=found.intervals(),
        ladder=found.ladder,
        metadata=found.environment,
        warnings=[*found.tested, *_latent_notes(found)],
    )
    if found.failures:
        page.section("Failed", "These methods are not ranked.")
        page.table(_failed(found))
    if links:
        items = "".join(
            f'<li><a href="{escape(to)}">{escape(about)}</a></li>' for about, to in links.items()
        )
        page.section("See also")
        page.block(f"<ul>{items}</ul>")
    return page.write(path)


class Leaderboard:
    """A markdown file with a table, to which a comparison adds a row."""

    def __init__(self, path: Path) -> None:
        if not path.is_file() or "|---" not in path.read_text(encoding="utf-8"):
            raise InputError(
                f"no leaderboard at {path}",
                expected="a markdown file with a table",
                fix="run where it is",
            )
        self.path = path

    def add(self, found: Comparison, *, config: str, command: str, out: Path) -> str:
        """Append a row about the best method: its MRRMSE beside that of zeros; returns the row."""
        ranking = found.card.ranking
        # Controls are no entries: the first place of an oracle says nothing.
        best = ranking[ranking["role"].isin(["method", "baseline"])].iloc[0]
        table = found.card.overall.table.set_index(["method", "metric"])["value"]
        score = zeros = ratio = "-"
        if (best.method, _RMSE) in table.index and ("zeros", _RMSE) in table.index:
            error, nothing = float(table[best.method, _RMSE]), float(table["zeros", _RMSE])
            score, zeros = f"{error:.4f}", f"{nothing:.4f}"
            ratio = f"{error / nothing:.3f}" if nothing else "-"
        # Of fewer than five conditions there is no interval.
        apart = "" if pd.isna(best.low) else f" [{best.low:.3f}, {best.high:.3f}]"
        revision = found.environment["git"] or "unknown"
        row = (
            datetime.now(UTC).date().isoformat(),
            config,
            f"{best.method} (headline {best.value:.3f}{apart})",
            score,
            zeros,
            ratio,
            revision[:10] + ("+changes" if "+" in revision else ""),
            f"`{command}` ({out / 'scorecard.md'})",
        )
        line = "| " + " | ".join(row) + " |\n"
        text = self.path.read_text(encoding="utf-8")
        # Whole or not at all: the table holds the rows of everyone before.
        with atomic_path(self.path) as part:
            end = "" if text.endswith("\n") else "\n"
            part.write_text(text + end + line, encoding="utf-8")
        return line
