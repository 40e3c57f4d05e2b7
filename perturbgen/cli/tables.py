"""``perturbgen pseudobulk`` and ``perturbgen split``: tables made from cells."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from perturbgen.cli.data import load
from perturbgen.cli.options import Columns, Json, Layer, Seed, Vehicle
from perturbgen.core.console import show_table
from perturbgen.core.errors import ConfigError
from perturbgen.core.files import check_output

_Source = Annotated[
    Path, typer.Argument(metavar="FILE", help="An h5ad file, or a folder of competition files.")
]


class _Kind(StrEnum):
    """How to split."""

    RANDOM = "random"
    LEAVE_OUT = "leave-out"
    KAGGLE = "kaggle"
    KFOLD = "kfold"


_OPTIONS = {
    _Kind.RANDOM: ("fraction",),
    _Kind.LEAVE_OUT: ("column", "value"),
    _Kind.KFOLD: ("column", "folds"),
    _Kind.KAGGLE: ("public",),
}


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("pseudobulk")(_pseudobulk)
    app.command("split")(_split)


def _pseudobulk(
    source: _Source,
    out: Annotated[Path, typer.Option(help="The h5ad file to write.")],
    by: Annotated[
        str, typer.Option(help="Columns of obs, separated by commas.")
    ] = "plate,well,cell_type",
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    as_json: Json = False,
) -> None:
    """Sum the raw counts of the cells that agree in some columns: one sample for each combination.

    Keeps the columns that are constant within every sample, adds n_cells, drops samples without
    counts and says which.

    Example: [bold]perturbgen pseudobulk counts.h5ad --by plate,well,cell_type
    --out pseudobulk.h5ad[/bold]
    """
    from perturbgen.data import pseudobulk, validate, write_h5ad

    check_output(out, ".h5ad")
    cells = load(source, columns=columns, layer=layer, vehicle=vehicle)
    validate(cells)
    bulk = pseudobulk(cells, [name.strip() for name in by.split(",")])
    write_h5ad(bulk, out)
    sizes = bulk.obs["n_cells"]
    row = {
        "samples": bulk.n_obs,
        "genes": bulk.n_vars,
        "cells": int(sizes.sum()),
        "median cells": float(sizes.median()),
    }
    show_table([row], title=f"wrote {out}", as_json=as_json)


def _split(
    source: _Source,
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    kind: Annotated[_Kind, typer.Option(help="What is withheld.")],
    column: Annotated[
        str | None, typer.Option(help="leave-out, kfold: the column whose values stay whole.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="leave-out: a value to withhold; repeatable.")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="random: the share of validation cells; 0.032.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="kfold: how many; 5.")] = None,
    public: Annotated[
        int | None, typer.Option(help="kaggle: how many compounds are public; 50.")
    ] = None,
    columns: Columns = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Give every cell a part, check the split for leaks, and write it.

    random: validation cells at random. leave-out: all cells with some values of a column. kfold:
    each value of a column stays in one fold. kaggle: conditions instead of cells, as in the
    competition: 17 compounds are known in B and myeloid cells, the others are to be predicted.

    Example: [bold]perturbgen split counts.h5ad --kind leave-out --column cell_type
    --value "B cells" --out b.csv[/bold]
    """
    import numpy as np

    from perturbgen.core.labels import CONDITION
    from perturbgen.data import Split

    check_output(out, ".csv")
    given: dict[str, Any] = {
        "column": column,
        "value": value,
        "fraction": fraction,
        "folds": folds,
        "public": public,
    }
    options = {name: setting for name, setting in given.items() if setting is not None}
    _check_split_options(kind, options)
    table = load(source, columns=columns, layer=None, vehicle=None).obs
    rng = np.random.default_rng(seed)
    if kind == _Kind.RANDOM:
        made = Split.random_cells(table, rng=rng, **options)
    elif kind == _Kind.LEAVE_OUT:
        made = Split.leave_out(table, options["column"], options["value"])
    elif kind == _Kind.KFOLD:
        made = Split.kfold(table, options.get("folds", 5), rng=rng, by=column)
    else:
        table = table.drop_duplicates(list(CONDITION)).reset_index(drop=True)
        made = Split.kaggle(table, rng=rng, **options)
    made.check_leaks(table)
    made.write(out)
    sizes = made.parts.value_counts(sort=False)
    parts = [{"part": name, "rows": int(size)} for name, size in sizes.items()]
    show_table(parts, title=f"{made.kind}: wrote {out}", as_json=as_json)


def _check_split_options(kind: _Kind, options: dict[str, Any]) -> None:
    """A kind of split has the options that it needs, and none that mean nothing to it."""
    needed = ("column", "value") if kind == _Kind.LEAVE_OUT else ()
    missing = [f"--{name}" for name in needed if name not in options]
    if missing:
        raise ConfigError(
            f"--kind {kind.value} needs {' and '.join(missing)}", fix="perturbgen split --help"
        )
    alien = [f"--{name}" for name in options if name not in _OPTIONS[kind]]
    if alien:
        raise ConfigError(f"--kind {kind.value} does not use {' '.join(alien)}", fix="leave it out")
