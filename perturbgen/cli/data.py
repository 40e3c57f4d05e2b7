"""``perturbgen ingest`` and ``perturbgen data``: read, check and draw counts, fetch public data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from perturbgen.cli.options import Columns, Json, Layer, Seed, Vehicle, Verbs
from perturbgen.core.console import progress, say, show_table
from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

_LARGE: Final = 200_000_000  # bytes: some seconds of a disk


def _ingest_counts(
    source: Annotated[
        Path,
        typer.Argument(help="A Kaggle folder, an Open Problems h5ad, or any h5ad with --columns."),
    ],
    out: Annotated[Path, typer.Option(help="Output: an h5ad file.")],
    organisers_plates: Annotated[
        bool, typer.Option("--organisers-plates", help="Name plates as the organisers' own DE did.")
    ] = False,
    keep_excluded: Annotated[
        bool,
        typer.Option(
            "--keep-excluded", help="Keep the (cell, gene) pairs of adata_excluded_ids.csv."
        ),
    ] = False,
    curated: Annotated[
        bool,
        typer.Option("--curated", help="Drop the conditions the Open Problems benchmark drops."),
    ] = False,
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    as_json: Json = False,
) -> None:
    """Read raw counts, check them, write one h5ad: CSR int32, our columns beside the originals.

    Nothing is written under the final name unless all of it is: a full disk or an interrupt leaves
    no half file.

    Example: [bold]perturbgen ingest kaggle/ --out counts.h5ad[/bold]
    """
    from perturbgen.data import read_competition, read_h5ad, read_openproblems, validate, write_h5ad
    from perturbgen.data.openproblems import is_openproblems
    from perturbgen.data.pictures import Overview

    check_output(out, ".h5ad")
    of_files = {"curated": curated, "columns": columns, "layer": layer, "vehicle": vehicle}
    of_folders = {"organisers_plates": organisers_plates, "keep_excluded": keep_excluded}
    if source.is_dir():
        _refuse_options(source, "a Kaggle folder", **of_files)
        adata = read_competition(
            source, excluded=not keep_excluded, organisers_plates=organisers_plates
        )
    else:
        _refuse_options(source, "an h5ad file", **of_folders)
        # A column map says what the columns mean, so it wins over recognising them.
        if columns is None and is_openproblems(source):
            chosen = {"vehicle": vehicle} if vehicle else {}
            adata = read_openproblems(source, layer=layer, curated=curated, **chosen)
        else:
            _refuse_options(source, "not an Open Problems file", curated=curated)
            adata = read_h5ad(source, columns, layer=layer, vehicle=vehicle)
    # errors have been raised; what is only odd may still be right
    for warning in validate(adata):
        log.warning("%s", warning)
    write_h5ad(adata, out)
    show_table([Overview(adata).summary()], title=f"wrote {out}", as_json=as_json)


def load(
    source: Path,
    *,
    columns: Path | None,
    layer: str | None,
    vehicle: str | None,
    run: TrainedRun | None = None,
) -> AnnData:
    """Counts from a folder or a file, not yet checked; a run's own file by the run's column map."""
    from perturbgen.data import read_competition, read_h5ad

    if run is not None:
        columns = columns or run.columns_of(source)
    if source.is_dir():
        _refuse_options(source, "a Kaggle folder", columns=columns, layer=layer)
        return read_competition(source)
    # not checked: data check lists all that is wrong, a reader stops at the first
    with _reading(source):
        return read_h5ad(source, columns, layer=layer, vehicle=vehicle, checked=False)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Say that a file is read: a large one takes its time before anything else can be said."""
    size = source.stat().st_size if source.is_file() else 0
    if size >= _LARGE:
        log.info("reading %s (%.1f GB)", source, size / 1e9)
    with progress(f"reading {source.name}"):
        yield


def _refuse_options(source: Path, what: str, **options: Any) -> None:
    """An option that means nothing for this source is an error, not ignored."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise InputError(
            f"{' '.join(given)} does not apply: {source} is {what}", fix="leave it out"
        )


def _check_data(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="An h5ad file, or a folder of competition files.")
    ],
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    as_json: Json = False,
) -> None:
    """Show what is in a file of counts, and all that is wrong with it (a submission:
    check-submission). Exit code 2 if it is unusable.

    Example: [bold]perturbgen data check kang.h5ad --columns experiments/columns/kang.toml[/bold]
    """
    from perturbgen.data import find_violations
    from perturbgen.data.pictures import Overview

    adata = load(source, columns=columns, layer=layer, vehicle=vehicle)
    violations = find_violations(adata, vehicle=vehicle)
    errors = sum(violation.severity == "error" for violation in violations)
    usable = {"compound", "cell_type"} <= set(adata.obs.columns)
    found = Overview(adata)
    summary, quantiles = found.summary(), found.depth()
    # without both columns there is no condition to count
    conditions = found.cells() if usable else []
    if as_json:
        parts = {"summary": summary, "depth": quantiles, "cells": conditions}
        show_table([parts | {"violations": [v.record() for v in violations]}], as_json=True)
    else:
        show_table([summary], title="data")
        show_table(quantiles, title="depth")
        if conditions:
            show_table(conditions, title="cells by compound and cell type")
        for violation in violations:
            say(f"{violation.severity}  {violation}")
        counted = f"{errors} errors, {len(violations) - errors} warnings"
        say(counted if violations else "no violations")
    # last: all that is wrong has been shown
    if errors:
        raise typer.Exit(SchemaError.exit_code)


def _list_data(as_json: Json = False) -> None:
    """List public data that `perturbgen data get` fetches: what, how large, under which licence.

    Example: [bold]perturbgen data list[/bold]
    """
    from perturbgen.data.download import Registry

    rows = [
        {
            "name": name,
            "what": source.title,
            "size": source.size,
            "licence": source.licence,
            "page": source.page,
        }
        for name, source in Registry.read().sources.items()
    ]
    show_table(rows, title="public data", as_json=as_json)


def _get_data(
    name: Annotated[str, typer.Argument(help="A name from `perturbgen data list`.")],
    out: Annotated[
        Path | None, typer.Option(help="Output: a folder, by default downloads/NAME.")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="Another TOML of sources than the built-in one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch public data. An interrupted download goes on where it stopped; checksums are verified.

    Example: [bold]perturbgen data get op3-de --out data/op3[/bold]
    """
    from perturbgen.data.download import CHECKSUMS, Registry

    source = Registry.read(registry).find(name)
    folder = out or Path("downloads") / name
    paths = source.fetch(folder)
    recorded = source.checksums(folder)
    rows = [{"file": str(p), "bytes": p.stat().st_size, "sha256": recorded[p.name]} for p in paths]
    show_table(rows, title=f"{source.title} (checksums in {folder / CHECKSUMS})", as_json=as_json)


def _show_data(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="An h5ad file, or a folder of competition files.")
    ],
    out: Annotated[Path, typer.Option(help="Output: an HTML page.")],
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    seed: Seed = 0,
) -> None:
    """Draw depth, zeros, plates, and maps of pseudobulk before and after plate effects go.

    Example: [bold]perturbgen data show counts.h5ad --out page.html[/bold]
    """
    from perturbgen.data import validate
    from perturbgen.data.pictures import summary_page

    check_output(out, ".html")

    adata = load(source, columns=columns, layer=layer, vehicle=vehicle)
    with progress("checking the counts"):
        validate(adata)
    say(f"wrote {summary_page(adata, title=source.name, seed=seed).write(out)}")


VERBS = {
    "ingest": _ingest_counts,
    "data": Verbs(
        {"check": _check_data, "list": _list_data, "get": _get_data, "show": _show_data},
        help="Check data, find public data, fetch them.",
    ),
}
