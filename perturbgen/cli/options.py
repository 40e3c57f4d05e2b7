"""The options that several verbs share, declared once, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
_SEED = "Seed of everything random: the same seed gives the same result."
Seed = Annotated[int, typer.Option(min=0, help=_SEED)]
# for what ends in scikit-learn or UMAP, whose seeds have 32 bits
Seed32 = Annotated[int, typer.Option(min=0, max=2**32 - 1, help=_SEED)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, over everything else; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into --out.")]

# what a file of counts calls things
Columns = Annotated[Path | None, typer.Option(help="TOML that maps the file's columns to ours.")]
Layer = Annotated[
    str | None, typer.Option(help="Layer of raw counts ('raw' is .raw), if they are not in X.")
]
Vehicle = Annotated[
    str | None, typer.Option(help="The compound which all others are compared with.")
]

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory that train made.", show_default=False)
]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option(min=1, help="Devices (processes) on each node.")]


def listed(text: str | None) -> list[str]:
    """The names between the commas of an option."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
