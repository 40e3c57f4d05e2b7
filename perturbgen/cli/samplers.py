"""``perturbgen samplers``: fit the forests that say how many cells a well holds and how deep they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perturbgen.cli.data import load
from perturbgen.cli.options import Columns, Json, Layer, Vehicle
from perturbgen.core.console import show_table
from perturbgen.core.errors import InputError
from perturbgen.core.files import check_output, require_writable

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.generate import CellSampler

_QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("samplers")(_samplers)


def _samplers(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="An h5ad file, or a folder of competition files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write sampler.npz and scores.csv to.")],
    plots: Annotated[
        Path | None, typer.Option(help="A page (.html) of predicted against observed wells.")
    ] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(help="id_map.csv of conditions to foretell; writes predicted.csv."),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            min=2,
            help="Into how many parts a compound's cell types are dealt, to be hidden in turn.",
        ),
    ] = 3,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the forests: leaf=10")
    ] = None,
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same sampler.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit the samplers of cell numbers and library sizes, and report how well they foretell hidden conditions.

    Each compound's cell types are hidden in turn; the forests, fitted on the rest, foretell those wells. The table says
    how many wells fell into the 50, 80 and 95 % intervals (calibrated: that many) and the CRPS (lower is better).

    Example: [bold]perturbgen samplers counts.h5ad --out samplers --plots samplers.html --conditions id_map.csv[/bold]
    """
    import numpy as np

    from perturbgen.core.config import load_settings
    from perturbgen.data import validate
    from perturbgen.generate import SamplerSettings, fit_samplers, well_table
    from perturbgen.generate.validate import calibration_page, cross_validate, summarise

    settings = load_settings(SamplerSettings, overrides=overrides or [], fix="--set leaf=10")
    _require_folder_to_be(out)
    if plots:
        check_output(plots, ".html", option="--plots")
    cells = load(source, columns=columns, layer=layer, vehicle=vehicle)
    validate(cells)
    table = well_table(cells)
    wanted = read_conditions(conditions) if conditions else None
    rng = np.random.default_rng(seed)
    scores = cross_validate(table, settings, rng=rng, folds=folds)
    sampler = fit_samplers(table, rng=rng, settings=settings)
    files = {"sampler.npz": sampler.save(out / "sampler.npz")}
    tables = {"scores.csv": scores} | (
        {} if wanted is None else {"predicted.csv": _predict(sampler, wanted)}
    )
    files |= {name: _write_csv(frame, out / name) for name, frame in tables.items()}
    summary = summarise(scores)
    if plots:
        lead = f"{len(scores):,} wells x cell types of {source.name}, each hidden once"
        calibration_page(
            scores, summary, title="Samplers of cells and library sizes", lead=lead
        ).write(plots)
    show_table(
        summary, title=f"wrote {', '.join(str(path) for path in files.values())}", as_json=as_json
    )


def _require_folder_to_be(out: Path) -> None:
    """The output is, or can become, a folder."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file", expected="a folder", fix="choose another --out")
    require_writable(out / "sampler.npz")


def read_conditions(path: Path) -> pd.DataFrame:
    """The conditions of an id_map, in our words."""
    from perturbgen.core.tables import read_frame, read_header, require_values

    name = "compound" if "compound" in read_header(path) else "sm_name"
    table = read_frame(path, columns=["cell_type", name], text=["cell_type", name])
    for column, other in (("cell_type", name), (name, "cell_type")):
        require_values(table, [column], other, path)
    return table[["cell_type", name]].rename(columns={name: "compound"})


def _predict(sampler: CellSampler, conditions: pd.DataFrame) -> pd.DataFrame:
    """The wells of the conditions, with quantiles of their numbers of cells."""
    from perturbgen.generate import design_wells

    wells = design_wells(sampler.table, conditions)
    return wells.join(sampler.quantiles(wells, _QUANTILES).add_prefix("q"))


def _write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Save a table."""
    from perturbgen.core.files import atomic_path

    with atomic_path(path) as part:
        frame.to_csv(part, index=False)
    return path
