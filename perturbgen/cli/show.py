"""``perturbgen data show``: a page of pictures of a counts file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perturbgen.cli.data import Columns, Layer, Vehicle, data_app, load
from perturbgen.console import say
from perturbgen.files import check_output


@data_app.command("show")
def show_data(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="An h5ad file, or a folder of competition files.")],
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="For the UMAP.")] = 0,
) -> None:
    """Draw depth, zeros, cells on the plates, and maps of pseudobulk before and after plate effects are removed.

    Example: [bold]perturbgen data show counts.h5ad --out page.html[/bold]
    """
    check_output(out, ".html")
    from perturbgen.data.schema import validate
    from perturbgen.data.summary import summary_page

    adata = load(source, columns=columns, layer=layer, vehicle=vehicle)
    validate(adata)
    say(f"wrote {summary_page(adata, title=source.name, seed=seed).write(out)}")
