"""``perturbgen simulate``: the OP3 experiment with a known truth, as the competition's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.core.console import say, show_table

if TYPE_CHECKING:
    from perturbgen.simulate import SimulationSettings


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("simulate")(_simulate)


def _simulate(
    out: Annotated[
        Path, typer.Argument(help="Folder to write; it appears only when it is complete.")
    ],
    preset: Annotated[
        str, typer.Option(help="tiny (seconds), small (a minute) or op3 (the real size).")
    ] = "tiny",
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**32 - 1, help="The same seed and settings give the same files."),
    ] = 0,
    baseline: Annotated[
        Path | None, typer.Option(help="CSV of real baseline means, cell types x genes.")
    ] = None,
    signatures: Annotated[Path | None, typer.Option(help="NPZ of real drug signatures.")] = None,
    layout: Annotated[
        Path | None, typer.Option(help="Folder of the real compounds, wells and rows.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, over the preset.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value, over everything else.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate the OP3 experiment: 3 donors x 2 compound libraries, 6 cell types, and B and Myeloid cells withheld.

    The folder holds the competition's files and the truth they were drawn from. With real baselines and signatures the
    experiment is semi-real, and says so.

    Example: [bold]perturbgen simulate data/tiny --preset tiny --seed 0[/bold]
    Example: [bold]perturbgen simulate data/semireal --preset small --layout op3 --baseline op3/means.csv
    --signatures op3/ranks.npz --set cells.per_well=100[/bold]
    """
    from perturbgen.core.config import to_toml
    from perturbgen.simulate.op3.experiment import write_simulation
    from perturbgen.simulate.op3.settings import preset_settings

    sources = {"baseline": baseline, "signatures": signatures, "layout": layout}
    settings = preset_settings(preset, config=config, overrides=overrides or (), sources=sources)
    if dry_run:
        say(
            json.dumps(settings.model_dump(mode="json"), indent=1) if as_json else to_toml(settings)
        )
        return
    folder = write_simulation(settings, out, seed=seed, force=force)
    show_table(_summary(folder, settings), title=f"simulated: {folder}", as_json=as_json)


def _summary(folder: Path, settings: SimulationSettings) -> list[dict[str, Any]]:
    """One row for each file: its size and what it holds."""
    import pandas as pd
    import pyarrow.parquet as pq

    rows = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            found = pq.read_metadata(path)
            what = f"{found.num_rows:,} rows x {found.num_columns:,} columns"
        elif path.suffix == ".csv":
            what = f"{len(pd.read_csv(path, usecols=[0])):,} rows"
        else:
            what = ""
        rows.append({"file": path.name, "MB": path.stat().st_size / 1e6, "holds": what})
    return rows
