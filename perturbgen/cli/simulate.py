"""``perturbgen simulate``: the OP3 experiment with a known truth, in the competition's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from perturbgen.cli.options import Config, DryRun, Force, Json, Overrides, Seed, show_settings
from perturbgen.core.console import show_table


def _simulate(
    out: Annotated[
        Path, typer.Argument(help="Folder to write; it appears only when it is complete.")
    ],
    preset: Annotated[
        str,
        typer.Option(
            help="Which preset: tiny (seconds), small (a minute), op3 (the real size) or op3_2025."
        ),
    ] = "tiny",
    seed: Seed = 0,
    means: Annotated[
        Path | None, typer.Option(help="CSV of real baseline means, cell types x genes.")
    ] = None,
    signatures: Annotated[Path | None, typer.Option(help="NPZ of real drug signatures.")] = None,
    effects: Annotated[
        Path | None, typer.Option(help="CSV of how strong real compounds are: sm_name, conserved.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Folder of the real compounds, wells and rows.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Simulate the OP3 experiment: 3 donors, 2 libraries, 6 cell types, two of them withheld.

    The folder holds the competition's files and the truth they were drawn from. With real baselines
    and signatures the experiment is semi-real, and says so.

    Example: [bold]perturbgen simulate data/tiny --preset tiny --seed 0[/bold]

    Example: [bold]perturbgen simulate data/semireal --preset small --plan op3
    --means op3/means.csv --signatures op3/ranks.npz --set cells.per_well=100[/bold]
    """
    from perturbgen.simulation import preset_settings, simulate

    # real sources make the experiment semi-real; each may be given alone
    sources = {"baseline": means, "signatures": signatures, "layout": plan, "effects": effects}
    settings = preset_settings(preset, config=config, overrides=overrides or (), sources=sources)
    if dry_run:
        show_settings(settings, as_json=as_json)
        return
    folder = simulate(settings, out=out, seed=seed, force=force)
    show_table(_describe_files(folder), title=f"simulated: {folder}", as_json=as_json)


def _describe_files(folder: Path) -> list[dict[str, Any]]:
    """One row for each file: its size and what it holds."""
    import pandas as pd
    import pyarrow.parquet as pq

    rows = []
    for path in sorted(folder.iterdir()):
        what = ""
        if path.suffix == ".parquet":
            found = pq.read_metadata(path)
            what = f"{found.num_rows:,} rows x {found.num_columns:,} columns"
        elif path.suffix == ".csv":
            # one column counts rows: sample_submission.csv has another 18,211
            what = f"{len(pd.read_csv(path, usecols=[0])):,} rows"
        rows.append({"file": path.name, "MB": path.stat().st_size / 1e6, "holds": what})
    return rows


VERBS = {"simulate": _simulate}
