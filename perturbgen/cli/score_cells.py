"""``perturbgen score-cells``: generated cells of raw counts against measured ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import Json, Seed
from perturbgen.core.console import say, show_table
from perturbgen.core.files import require_writable, staged

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.evaluate import Metric


def _score_cells(
    prediction: Annotated[Path, typer.Argument(help="Generated cells (h5ad), raw counts in X.")],
    truth: Annotated[Path, typer.Argument(help="Measured cells (h5ad), control cells among them.")],
    perturbation: Annotated[str, typer.Option(help="The column of obs that names perturbations.")],
    control: Annotated[
        str, typer.Option(help="The level which all others are compared with: of control cells.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Output: a folder for scores.csv and panel.csv.")
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Metrics, separated by commas, or vcc2026 (six), or all.")
    ] = "vcc2026",
    splits: Annotated[
        int, typer.Option(min=1, help="Splits into halves that the replicate is the mean of.")
    ] = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score generated cells as the Virtual Cell Challenge 2026 does (tables of differential
    expression: score; a trained model: evaluate).

    A value stands between the mean response of all perturbations (0) and a second measurement (1),
    which is one half of the measured cells against the other. The values are cell-eval2's. The
    measured control cells are the control of both sides.

    Example: [bold]perturbgen score-cells generated.h5ad measured.h5ad --perturbation target_gene
    --control non-targeting --out scores[/bold]
    """
    from perturbgen.core.h5ad import open_h5ad
    from perturbgen.evaluate import anchors, panel_values, scaled
    from perturbgen.scores import count_metrics, read_cells

    if out is not None:
        require_writable(out / "scores.csv")
    chosen = count_metrics(metrics if metrics in ("vcc2026", "all") else metrics.split(","))
    where = {"perturbation": perturbation, "control": control}
    measured, predicted = read_cells(open_h5ad(prediction), open_h5ad(truth), **where)
    scores = measured.panel(predicted).scores(chosen)
    panel = anchors(measured, chosen, seed=seed, splits=splits)
    panel.insert(0, "value", panel_values(scores))
    panel["score"] = scaled(panel["value"], panel)
    title = f"{len(measured.names)} perturbations x {len(measured.genes):,} genes"
    show_table(_rows(panel, chosen, as_json=as_json), title=title, as_json=as_json)
    if not as_json:
        mean = panel["score"].mean()
        say(f"mean score {mean:.3f}: 0 is the mean response, 1 a second measurement")
    if out is not None:
        with staged(out) as folder:
            scores.to_csv(folder / "scores.csv", index=False)
            panel.to_csv(folder / "panel.csv")
        if not as_json:
            say(f"wrote scores.csv, panel.csv in {out}")


def _rows(panel: pd.DataFrame, metrics: list[Metric], *, as_json: bool) -> list[dict[str, Any]]:
    titles = [metric.name if as_json else metric.title for metric in metrics]
    table = panel.reset_index(drop=True).assign(metric=titles)[["metric", *panel]]
    return table.to_dict("records")  # type: ignore[return-value]


VERBS = {"score-cells": _score_cells}
