"""``perturbgen compare``: methods x splits x seeds, ending in a scorecard and a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import Json
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import PerturbgenError

if TYPE_CHECKING:
    from perturbgen.compare import Comparison

_LEADERBOARD = Path("experiments") / "LEADERBOARD.md"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare")(_compare)


def _compare(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Data, splits, methods, controls.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of results [default: runs/compare-CONFIG].")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of the data, over the file's data.folder.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="processes, or the address of a Dask scheduler.")
    ] = "processes",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes [default: one a core].")
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    leaderboard: Annotated[
        bool,
        typer.Option(
            "--leaderboard",
            help="Add a row to experiments/LEADERBOARD.md (of the working directory).",
        ),
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value, over the file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare methods on a DE table: fit each on every split with every seed, score between controls, report.

    What has been computed is kept in the folder of results: run the same again and nothing is fitted twice, change a
    method and only its cells are, interrupt it and it goes on where it was. A method that fails is named, the others
    are ranked, and the exit code is 1. A file of two lines will do (12 methods, 3 folds of compounds):

        [data]
        folder = "data/small"

    Splits are [bold]\\[splits.NAME][/bold] of kind kaggle, compounds, cell_types or file. Methods are
    [bold]\\[methods.NAME][/bold], a baseline (perturbgen baselines) or predictions = "file.parquet".

    Example: [bold]perturbgen compare experiments/op3_semireal/compare.toml --data data/semireal[/bold]
    """
    from perturbgen.compare import CompareSettings
    from perturbgen.compare import compare as run
    from perturbgen.compare.run import add_to_leaderboard, check_leaderboard, write_outputs
    from perturbgen.core.config import load_settings, to_toml
    from perturbgen.core.files import slug

    asked = [*(overrides or []), *([f"data.folder={data!r}"] if data is not None else [])]
    settings = load_settings(CompareSettings, config, overrides=asked)
    if dry_run:
        say(to_toml(settings))
        return
    if leaderboard:
        check_leaderboard(_LEADERBOARD)
    folder = out or Path("runs") / f"compare-{slug(config.stem)}"
    found = run(settings, folder, scheduler=scheduler, workers=workers)
    paths = write_outputs(found, folder, title=f"Comparison: {config.stem}", report=report)
    show(found, as_json=as_json)
    if leaderboard:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        add_to_leaderboard(found, _LEADERBOARD, config=str(config), command=command, out=folder)
    if not as_json:
        say(f"wrote {', '.join(path.name for path in paths)} in {folder}")
    raise_failures(found, folder)


def show(found: Comparison, *, as_json: bool = False) -> None:
    """Print the ranking, and how the grid went."""
    from perturbgen.evaluate import headline_note, headline_records, to_record

    if as_json:
        record: dict[str, Any] = to_record(found.card) | {"cells": found.cells.to_dict("records")}
        show_table([record], as_json=True)
        return
    times = found.cells.groupby("method", sort=False)[["seconds", "processor"]].sum().T.to_dict()
    rows = [row | times[row["method"]] for row in headline_records(found.card)]
    show_table(rows, title=headline_note(found.card))
    states = found.cells["state"].value_counts()
    say(
        "cells: "
        + ", ".join(
            f"{states[name]} {name}" for name in ("done", "cached", "failed") if name in states
        )
    )


def raise_failures(found: Comparison, folder: Path) -> None:
    """The exit code says that something failed."""
    if found.failures:
        names = dict.fromkeys(cell.method.name for cell in found.failures)
        raise PerturbgenError(
            f"{len(found.failures)} of {len(found.outcomes)} cells failed, of {', '.join(names)}; the rest is scored",
            fix=f"{folder / 'failures.txt'} says why; run again to try these cells only",
        )
