"""``perturbgen pseudobulk`` and ``perturbgen split``: tables made from cells."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.console import say, show_table
from perturbgen.errors import InputError, SchemaError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from perturbgen.data.splits import Split

File = Annotated[Path, typer.Argument(help="An h5ad file of raw counts.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Kind(StrEnum):
    """How to split."""

    random = "random"
    leave_out = "leave-out"
    kaggle = "kaggle"
    kfold = "kfold"


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(pseudobulk)
    app.command()(split)


def pseudobulk(
    file: File,
    out: Annotated[Path, typer.Option(help="The h5ad file to write.")],
    by: Annotated[str, typer.Option(help="Columns of obs, separated by commas.")] = "plate,well,cell_type",
    layer: Annotated[str | None, typer.Option(help="The layer that holds the counts, if not X.")] = None,
    allow_fractional: Annotated[bool, typer.Option(help="Accept numbers that are no whole counts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sum the counts of all cells that agree in some columns: one row a group, ready for differential expression.

    Keeps the columns that are constant within every group, adds n_cells, and drops groups without a count (saying which).

    Example: [bold]perturbgen pseudobulk counts.h5ad --by plate,well,cell_type --out pb.h5ad[/bold]
    """
    from perturbgen.data.pseudobulk import pseudobulk as sum_groups
    from perturbgen.files import atomic_path

    cells = read_cells(file)
    bulk = sum_groups(cells, split_list(by), layer=layer, allow_fractional=allow_fractional)
    with atomic_path(out) as part:
        bulk.write_h5ad(part, compression="gzip")
    sizes = bulk.obs["n_cells"]
    row = {
        "groups": bulk.n_obs,
        "genes": bulk.n_vars,
        "cells": int(sizes.sum()),
        "median cells a group": float(sizes.median()),
        "median counts a group": float(sum_rows(bulk).median()),
        "file": str(out),
    }
    show_table([row], title="pseudobulk", as_json=as_json)


def split(
    file: Annotated[
        Path, typer.Argument(help="An h5ad file, or a CSV with cell_type and compound.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    kind: Annotated[Kind, typer.Option(help="What is held out.")],
    conditions: Annotated[
        bool, typer.Option("--conditions", help="Split (cell_type, compound) pairs instead of cells.")
    ] = False,
    fraction: Annotated[float, typer.Option(help="random: the share of validation cells.")] = 0.03,
    force_train: Annotated[
        list[str] | None, typer.Option(help="random: column=value whose cells stay in train; repeatable.")
    ] = None,
    hold_out: Annotated[
        list[str] | None, typer.Option(help="leave-out: column=value; repeatable, several columns must all match.")
    ] = None,
    keep_controls: Annotated[bool, typer.Option(help="leave-out: control cells stay in train.")] = False,
    folds: Annotated[int, typer.Option(help="kfold: how many.")] = 5,
    by: Annotated[str | None, typer.Option(help="kfold: a column whose values stay whole, such as compound.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of the random draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Assign every cell or condition to a part (train, test, ...), check it for leaks and write it to a file.

    random: validation cells at random. leave-out: a cell type, a compound, or both at once.
    kaggle: the competition's own task on conditions, 17 compounds known in B and Myeloid cells.
    kfold: folds of cells or conditions, singly or whole groups at a time.

    Example: [bold]perturbgen split counts.h5ad --kind leave-out --hold-out "cell_type=NK cells" --out nk.csv[/bold]
    """
    import numpy as np

    from perturbgen.data import splits

    table = read_table(file)
    rows = splits.condition_table(without_vehicle(table)) if conditions or kind == Kind.kaggle else table
    rng = np.random.default_rng(seed)
    if kind == Kind.random:
        made = splits.random_cells(rows, fraction=fraction, forced_train=pairs(force_train), rng=rng)
    elif kind == Kind.leave_out:
        made = splits.leave_out(rows, pairs(hold_out), keep=control_column(rows) if keep_controls else None)
    elif kind == Kind.kaggle:
        made = splits.kaggle_emulation(rows, rng=rng)
    else:
        made = splits.kfold(rows, folds, by=by, rng=rng)
    made.write(out)
    show_table(describe(made), title=f"{kind} split", as_json=as_json)
    if not as_json:
        say(f"wrote {out}")
