"""What several verbs share: options, declared once, and the one way to profiles of any form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from perturbgen.profiles import Profiles

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


@contextmanager
def opened_profiles(source: Path, key: str | None = None) -> Iterator[Profiles]:
    """Profiles of an L1000 matrix, a known set of images, or a table, h5ad or folder of either.

    ``key`` says which entry of an h5ad, or how the feature columns of a table begin.
    """
    if source.suffix in (".gctx", ".gct"):
        from perturbgen.l1000 import read_plate
        from perturbgen.profiles import Profiles

        yield Profiles.from_anndata(read_plate(source), str(source))
    else:
        from perturbgen.images.readers import opened

        with opened(source, key=key) as profiles:
            yield profiles
