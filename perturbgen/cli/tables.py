"""``perturbgen pseudobulk`` and ``perturbgen split``: tables made from cells."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.data import load
from perturbgen.cli.options import Columns, Json, Layer, Vehicle
from perturbgen.core.console import show_table
from perturbgen.core.errors import ConfigError
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.data.splits import Split

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

    Keeps the columns that are constant within every sample, adds n_cells, drops samples without counts and says which.

    Example: [bold]perturbgen pseudobulk counts.h5ad --by plate,well,cell_type --out pseudobulk.h5ad[/bold]
    """
    from perturbgen.data import pseudobulk as sum_cells
    from perturbgen.data import validate, write_h5ad

    check_output(out, ".h5ad")
    cells = load(source, columns=columns, layer=layer, vehicle=vehicle)
    validate(cells)
    bulk = sum_cells(cells, [name.strip() for name in by.split(",")])
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
    kind: Annotated[_Kind, typer.Option(help="What is held out.")],
    column: Annotated[
        str | None, typer.Option(help="leave-out, kfold: the column whose values stay whole.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="leave-out: a value to hold out; repeatable.")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="random: the share of validation cells; 0.032.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="kfold: how many; 5.")] = None,
    public: Annotated[
        int | None, typer.Option(help="kaggle: how many compounds are public; 50.")
    ] = None,
    columns: Columns = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Give every cell a part, check the split for leaks, and write it.

    random: validation cells at random. leave-out: all cells with some values of a column. kfold: each value of a column
    stays in one fold. kaggle: conditions instead of cells, as in the competition: 17 compounds are known in B and
    myeloid cells, the others are to be predicted.

    Example: [bold]perturbgen split counts.h5ad --kind leave-out --column cell_type --value "B cells" --out b.csv[/bold]
    """
    from perturbgen.data.splits import check_leaks

    check_output(out, ".csv")
    given = {
        "column": column,
        "value": value,
        "fraction": fraction,
        "folds": folds,
        "public": public,
    }
    options = {name: setting for name, setting in given.items() if setting is not None}
    _check_options(kind, options)
    obs = load(source, columns=columns, layer=None, vehicle=None).obs
    made, table = _make_split(obs, kind, options, seed)
    check_leaks(made, table)
    made.write(out)
    parts = [
        {"part": name, "rows": int(size)}
        for name, size in made.parts.value_counts(sort=False).items()
    ]
    show_table(parts, title=f"{made.kind}: wrote {out}", as_json=as_json)


def _check_options(kind: _Kind, options: dict[str, Any]) -> None:
    """A kind of split has the options that it needs, and none that mean nothing to it."""
    missing = [
        f"--{name}"
        for name in ("column", "value")
        if kind == _Kind.LEAVE_OUT and name not in options
    ]
    if missing:
        raise ConfigError(
            f"--kind {kind.value} needs {' and '.join(missing)}", fix="perturbgen split --help"
        )
    alien = [f"--{name}" for name in options if name not in _OPTIONS[kind]]
    if alien:
        raise ConfigError(f"--kind {kind.value} does not use {' '.join(alien)}", fix="leave it out")


def _make_split(
    obs: pd.DataFrame, kind: _Kind, options: dict[str, Any], seed: int
) -> tuple[Split, pd.DataFrame]:
    """The split, and the table of cells or conditions that it divides."""
    import numpy as np

    from perturbgen.data import splits

    rng = np.random.default_rng(seed)
    if kind == _Kind.RANDOM:
        return splits.random_cells(obs, rng=rng, **options), obs
    if kind == _Kind.LEAVE_OUT:
        return splits.leave_out(obs, options["column"], options["value"]), obs
    if kind == _Kind.KFOLD:
        return splits.kfold(obs, options.get("folds", 5), rng=rng, by=options.get("column")), obs
    conditions = obs.drop_duplicates(list(splits.CONDITION)).reset_index(drop=True)
    return splits.kaggle(conditions, rng=rng, **options), conditions
