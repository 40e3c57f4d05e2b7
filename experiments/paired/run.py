"""Images and L1000 of the same compounds: the published predictions and replicate correlations,
evaluated again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table

DATASETS = ("lincs", "cdrp-bio", "cdrp", "luad", "taorf")


def main(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with pred_moa_LINCS.xlsx, RepCorrDF.xlsx, compound_activity_full.tsv.gz."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/paired"),
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap over compounds.")] = 0,
) -> None:
    """Recompute the accuracies of 57 mechanisms from per-row predictions, and the shares of
    reproducible perturbations.

    Example: python experiments/paired/run.py ../shared/data/imaging/paired
    """
    import numpy as np
    import published_tables as paired

    from perturbgen.core.page import Page

    predictions = paired.read_moa_predictions(data / "pred_moa_LINCS.xlsx")
    tables = {
        "Mechanisms": paired.moa_accuracies(predictions, rng=np.random.default_rng(seed)),
        "Reproducible by dose": paired.reproducible_by_dose(
            data / "compound_activity_full.tsv.gz"
        ).to_dict("records"),
        "Reproducible by data set": [
            paired.replicability(data / "RepCorrDF.xlsx", name) for name in DATASETS
        ],
    }
    page = Page(
        "Images and L1000 of the same perturbations",
        f"{len(predictions):,} treatments, {predictions['moa'].nunique()} mechanisms.",
    )
    for title, rows in tables.items():
        show_table(rows, title=title)  # type: ignore[arg-type]
        page.section(title)
        page.table(rows)  # type: ignore[arg-type]
    say(f"wrote {page.write(out / 'report.html')}")


if __name__ == "__main__":
    run_experiment(main)
