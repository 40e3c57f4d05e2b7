"""RxRx1: does a network that sees one experiment at a time learn siRNAs, and not the stains of
experiments?
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table

TRAINED = (("mixed", False), ("one experiment", True))
STATISTICS = ("running", "own", "batch")


def main(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of RxRx1 with images; without it fixtures of ten experiments."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and report.")] = Path(
        "runs/rxrx1-network"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Fixtures and networks.")] = 3,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: training.epochs=40")
    ] = None,
) -> None:
    """Train a small network on batches of mixed experiments and of one, and ask both about
    experiments never seen.

    Example: python experiments/rxrx1/network.py
    """
    rows = [
        row
        for seed in range(seeds)
        for row in compare(fixture(data, out, seed), out, seed, overrides or [])
    ]
    table = average(rows)
    show_table(
        table,
        title=f"accuracy in experiments never seen: mean (lowest to highest) of {seeds} seeds",
    )
    say(f"wrote {report(table, rows).write(out / 'report.html')}")


def fixture(data: Path | None, out: Path, seed: int) -> Path:
    """Six training and four test experiments of one cell type, each stained in its own way."""
    from perturbgen.simulation.images import write_rxrx1

    folder = data or out / f"fixture{seed}"
    if not folder.exists():
        names = {f"HUVEC-{i:02d}": "train" if i < 7 else "test" for i in range(1, 11)}
        write_rxrx1(folder, seed=seed, size=32, sirnas=6, controls=2, stain=0.6, experiments=names)
    return folder


def compare(data: Path, out: Path, seed: int, overrides: list[str]) -> list[dict[str, Any]]:
    """Both networks of a seed, with every statistics of batch normalisation, on the test part."""
    from perturbgen.images.network import IMAGES, ImageSettings
    from perturbgen.images.network.evaluate import evaluate_run

    base = {
        "seed": seed,
        "data": {"path": str(data)},
        "model": {"embedding": 32},
        "training": {"epochs": 25, "batch_size": 32, "learning_rate": 3e-3},
        "board": {"every": 100},
    }
    rows = []
    for name, one in TRAINED:
        judged = "batch" if one else "running"  # its own statistics decide when training is over
        given = [
            f"name={name}",
            f"training.one_experiment={str(one).lower()}",
            f"model.statistics={judged}",
            *overrides,
        ]
        run = IMAGES.train(ImageSettings.load(overrides=given, base=base), runs=out / "runs")
        trained = IMAGES.load(run)
        for statistics in STATISTICS:
            found = evaluate_run(trained, part=("test",), statistics=statistics)
            rows += [
                {"batches": name, "statistics": statistics, "seed": seed, **row} for row in found
            ]
    return rows


def average(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each way to train and to normalise, a column for each question."""
    import pandas as pd

    table = pd.DataFrame(rows)
    table["question"] = table["of"] + ", " + table["decoding"]
    lines = []
    for (batches, statistics), part in table.groupby(["batches", "statistics"], sort=False):
        line: dict[str, Any] = {
            "batches in training": batches,
            "statistics in the test": statistics,
        }
        for question, values in part.groupby("question", sort=False)["all"]:
            line[str(question)] = f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"
        lines.append(line)
    return lines


def report(table: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Any:
    """The page."""
    from perturbgen.core.page import Page

    page = Page(
        "RxRx1: batches of one experiment",
        "A small network, asked about experiments it has never seen.",
    )
    page.section(
        "Accuracy",
        "Statistics of batch normalisation: those of training (running), of each whole test "
        "experiment (own, AdaBN), "
        "or of each batch of it (batch). The last two columns know which siRNAs share a plate: an "
        "easier question.",
    )
    page.table(table)
    page.section("Every seed")
    page.table(rows)
    return page


if __name__ == "__main__":
    run_experiment(main)
