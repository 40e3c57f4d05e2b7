"""``perturbgen pseudobulk``, ``split`` and ``de``: sums of cells, their parts, their contrasts."""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from perturbgen.cli.data import load
from perturbgen.cli.options import Columns, Device, Json, Layer, Seed, Vehicle, listed
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import check_output

log = logging.getLogger(__name__)

_Source = Annotated[
    Path, typer.Argument(metavar="FILE", help="An h5ad file, or a folder of competition files.")
]


class _Kind(StrEnum):
    """How to split."""

    RANDOM = "random"
    LEAVE_OUT = "leave-out"
    KAGGLE = "kaggle"
    KFOLD = "kfold"
    CALIBRATION = "calibration"


_OPTIONS = {
    _Kind.RANDOM: ("fraction",),
    _Kind.LEAVE_OUT: ("column", "value"),
    _Kind.KFOLD: ("column", "folds"),
    _Kind.KAGGLE: ("public",),
    _Kind.CALIBRATION: ("conditions", "fraction"),
}
_LISTED = 12  # contrasts, of how many there are
_NEEDED = {_Kind.LEAVE_OUT: ("column", "value"), _Kind.CALIBRATION: ("conditions",)}
_CALIBRATION = {"share": 0.5, "validation": 0.1}  # of the known compounds, and of the other cells


def _pseudobulk(
    source: _Source,
    out: Annotated[Path, typer.Option(help="Output: an h5ad file.")],
    by: Annotated[
        str, typer.Option(help="What tells groups apart: columns of obs, separated by commas.")
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
    from perturbgen.core.tables import CONDITION
    from perturbgen.data import pseudobulk, validate, write_h5ad

    check_output(out, ".h5ad")
    cells = load(source, columns=columns, layer=layer, vehicle=vehicle)
    names = listed(by)
    absent = [name for name in names if name not in cells.obs]
    if absent or not names:
        raise SchemaError(
            f"--by {by}: obs has no column {shorten(absent)}",
            expected="columns that tell samples apart",
            fix=f"--by with some of {shorten(map(str, cells.obs.columns), 12)}, "
            "or a column map: --columns (perturbgen init FILE writes one)",
        )
    # sums of anything but raw counts would not be counts; untreated cells have sums, too
    validate(cells, required=[name for name in CONDITION if name in cells.obs])
    bulk = pseudobulk(cells, names)
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
    out: Annotated[Path, typer.Option(help="Output: a CSV file.")],
    kind: Annotated[_Kind, typer.Option(help="Which kind, of what is withheld.")],
    column: Annotated[
        str | None, typer.Option(help="leave-out, kfold: the column whose values stay whole.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="leave-out: a value to withhold; repeatable.")
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            help="The share that is withheld: random: of the cells, for validation; 0.032. "
            "calibration: of the compounds known in the cell types to predict; 0.5."
        ),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="How many folds: kfold; 5.")] = None,
    public: Annotated[
        int | None, typer.Option(help="kaggle: how many compounds are public; 50.")
    ] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(help="The conditions to predict: calibration; id_map.csv, or a csv."),
    ] = None,
    columns: Columns = None,
    vehicle: Vehicle = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Give every cell a part, check the split for leaks, and write it.

    random: validation cells at random. leave-out: all cells with some values of a column. kfold:
    each value of a column stays in one fold. kaggle: conditions instead of cells, as in the
    competition: 17 compounds are known in B and myeloid cells, the others are to be predicted.

    calibration: what a model that is to predict --conditions should be trained with. Their own
    cells are withheld, and some measured compounds of the same cell types: predict finds out on
    those how far to trust the model, which would be too far on what it was trained on. A tenth of
    the other cells are for validation.

    Example: [bold]perturbgen split counts.h5ad --kind leave-out --column cell_type
    --value "B cells" --out b.csv[/bold]

    Example: [bold]perturbgen split counts.h5ad --kind calibration --conditions id_map.csv
    --out split.csv[/bold], then [bold]perturbgen train config.toml --split split.csv[/bold]
    """
    import numpy as np

    from perturbgen.core.tables import CONDITION, VEHICLE
    from perturbgen.data import Split, read_conditions

    check_output(out, ".csv")
    # None where an option was not given, so that a needless one can be refused
    given: dict[str, Any] = {
        "column": column,
        "value": value,
        "fraction": fraction,
        "folds": folds,
        "public": public,
        "conditions": conditions,
    }
    options = {name: setting for name, setting in given.items() if setting is not None}
    _check_split_options(kind, options)
    wanted = None if conditions is None else read_conditions(conditions)
    cells = load(source, columns=columns, layer=None, vehicle=vehicle)
    table = cells.obs
    rng = np.random.default_rng(seed)
    if kind == _Kind.RANDOM:
        made = Split.random_cells(table, rng=rng, **options)
    elif kind == _Kind.LEAVE_OUT:
        made = Split.leave_out(table, options["column"], options["value"])
    elif kind == _Kind.KFOLD:
        made = Split.kfold(table, options.get("folds", 5), rng=rng, by=column)
    elif wanted is not None:
        shares = _CALIBRATION if fraction is None else {**_CALIBRATION, "share": fraction}
        vehicle = str(cells.uns.get("vehicle", VEHICLE))
        made = Split.for_calibration(table, wanted, rng=rng, vehicle=vehicle, **shares)
    else:
        # Kaggle withheld conditions, not cells of them
        table = table.drop_duplicates(list(CONDITION)).reset_index(drop=True)
        made = Split.kaggle(table, rng=rng, **options)
    # before it is written: a split that leaks is worse than none
    made.check_leaks(table)
    made.write(out)
    sizes = made.parts.value_counts(sort=False)
    parts = [{"part": name, "rows": int(size)} for name, size in sizes.items()]
    show_table(parts, title=f"{made.kind}: wrote {out}", as_json=as_json)


def _check_split_options(kind: _Kind, options: dict[str, Any]) -> None:
    """A kind of split has the options that it needs, and none that mean nothing to it."""
    missing = [f"--{name}" for name in _NEEDED.get(kind, ()) if name not in options]
    if missing:
        raise ConfigError(
            f"--kind {kind.value} needs {' and '.join(missing)}", fix="perturbgen split --help"
        )
    alien = [f"--{name}" for name in options if name not in _OPTIONS[kind]]
    if alien:
        raise ConfigError(f"--kind {kind.value} does not use {' '.join(alien)}", fix="leave it out")


def _de(
    pseudobulk: Annotated[
        Path, typer.Argument(help="Raw counts, samples x genes (.h5ad).", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Output: the DE table, .parquet or .h5ad.")
    ] = None,
    flavour: Annotated[
        str | None, typer.Option(help="A published recipe of the DE: kaggle or op3.")
    ] = None,
    design: Annotated[
        str | None,
        typer.Option(help='The design as an R formula, e.g. "~0 + {group} + donor + plate".'),
    ] = None,
    group: Annotated[str, typer.Option(help="The column whose levels are compared.")] = "compound",
    control: Annotated[
        str | None, typer.Option(help="The level which all others are compared with.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="What tells groups apart: a column whose levels are fitted apart, cell_type."
        ),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="One fit of all combinations of --by and --group.")
    ] = False,
    backend: Annotated[str, typer.Option(help="native, or r (limma through rpy2).")] = "native",
    contrasts: Annotated[
        str | None, typer.Option(help="exact (default), or limma's approximation.")
    ] = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FORMULA", help='e.g. ab="drugA - drugB"; repeatable.'),
    ] = None,
    treat: Annotated[
        float | None, typer.Option(metavar="LFC", help="Test log2 fold changes beyond this.")
    ] = None,
    analysis: Annotated[
        Path | None, typer.Option(help="TOML of the design and a table of its contrasts.")
    ] = None,
    robust: Annotated[bool, typer.Option("--robust", help="Robust moderation.")] = False,
    trend: Annotated[
        bool, typer.Option("--trend", help="The prior variance follows expression.")
    ] = False,
    normalise: Annotated[str, typer.Option(help="tmm or none.")] = "tmm",
    span: Annotated[
        str, typer.Option(help="voom's lowess span, or adaptive (as limma since 3.66).")
    ] = "0.5",
    gene_filter: Annotated[
        str | None, typer.Option(help="filterByExpr, or intersection of it over --by.")
    ] = None,
    layer: Layer = None,
    allow_fractional: Annotated[
        bool, typer.Option("--allow-fractional", help="Accept counts that are not whole numbers.")
    ] = False,
    keep_plates: Annotated[
        bool,
        typer.Option("--keep-plates", help="kaggle: do not rename plates as the organisers did."),
    ] = False,
    device: Device = "cpu",
    verify: Annotated[
        int | None, typer.Option(help="Run this many genes through R, too, and compare.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A page (.html), of plots.")] = None,
    min_cells: Annotated[
        int, typer.Option(min=0, help="Conditions of fewer cells are not listed (--out has them).")
    ] = 10,
    as_json: Json = False,
) -> None:
    """Differential expression with limma-voom: every level of a factor against a control.

    Without --design or --flavour the design is the group, and donor, plate and row where they
    vary and leave every contrast estimable; it is said.
    The native backend gives R limma's numbers without R. Standard errors are exact unless you ask
    for limma's approximation with --contrasts limma (a flavour asks for it). The table has logFC,
    t, log10 p and adjusted p.
    --contrast asks for any contrast of levels, coefficients, slopes and interactions instead.

    Example: [bold]perturbgen pseudobulk kang.h5ad --columns experiments/columns/kang.toml
    --by cell_type,donor,compound --out kang_sums.h5ad[/bold], then
    [bold]perturbgen de kang_sums.h5ad --design "~0 + {group} + donor" --by cell_type
    --out de.parquet[/bold]

    Example: [bold]perturbgen de pseudobulk.h5ad --flavour kaggle --out de.parquet
    --verify 200[/bold]

    Example: [bold]perturbgen de sums.h5ad --design "~0 + {group} + donor" --contrast
    "ab=drugA - drugB" --contrast "mean=(drugA + drugB)/2 - DMSO" --treat 0.5[/bold]
    """
    from perturbgen.cli.de import make_table, read_span, verify_backends, with_analysis
    from perturbgen.core.h5ad import open_h5ad
    from perturbgen.core.system import choose_device
    from perturbgen.data import take_layer

    if out is not None:
        check_output(out, ".parquet", ".h5ad")
    if plots is not None:
        check_output(plots, ".html", option="--plots")
    # None is what was not asked for: the flavour decides, or limma_table's default
    options: dict[str, Any] = {
        "flavour": flavour,
        "design": design,
        "group": group,
        "control": control,
        "by": by,
        "joint": joint or None,
        "contrasts": contrasts,
        "robust": robust or None,
        "trend": trend or None,
        "normalise": normalise,
        "span": read_span(span),
        "gene_filter": gene_filter,
        "allow_fractional": allow_fractional,
        "rename_plates": not keep_plates,
    }
    device = choose_device(device) if device == "auto" else device
    options, wanted, treat = with_analysis(analysis, options, contrast or (), treat)
    options |= {"wanted": wanted, "treat": treat}
    adata = take_layer(open_h5ad(pseudobulk), layer, pseudobulk)
    if verify is not None:
        verify_backends(adata, verify, options, device=device, as_json=as_json)
        if out is None and plots is None:  # asked for the comparison alone
            return
    started = time.perf_counter()
    table = make_table(adata, backend=backend, device=device, **options)
    title = f"{len(table.conditions)} contrasts in {time.perf_counter() - started:.1f} s"
    title += f", the strongest {_LISTED} listed" if len(table.conditions) > _LISTED else ""
    few = int((~table.enough(min_cells)).sum())
    title += f"; {few} conditions of fewer than {min_cells} cells are not listed" if few else ""
    if verify is None:
        rows = table.strongest(_LISTED, min_cells=min_cells)
        show_table(rows, title=title, as_json=as_json)
        if not as_json and any(row.get("slants") for row in rows):
            say(
                "slants: the median log2 fold change of the best expressed third of the genes less "
                "that of the least; significance is then more of the sample than of the compound"
            )
    if out is not None:
        table.write(out)
    if plots is not None:
        from perturbgen.de.plots import de_page

        de_page(table, min_cells=min_cells, samples=adata).write(plots)
    if not as_json:
        for path in filter(None, (out, plots)):
            say(f"wrote {path}")


VERBS = {"pseudobulk": _pseudobulk, "split": _split, "de": _de}
