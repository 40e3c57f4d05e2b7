"""``perturbgen samplers`` and ``perturbgen generate``: how many cells, how deep, their counts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final

import typer

from perturbgen.cli.data import load
from perturbgen.cli.options import (
    Columns,
    Conditions,
    Device,
    Json,
    Layer,
    Overrides,
    RunFolder,
    Seed,
    Vehicle,
)
from perturbgen.core.console import show_table
from perturbgen.core.errors import InputError
from perturbgen.core.export import write_table
from perturbgen.core.files import check_output, require_writable, staged

CellsFile = Annotated[
    Path, typer.Option(help="The measured cells: an h5ad file, or a folder of competition files.")
]
Latent = Annotated[
    str,
    typer.Option(
        help="Latent points from the prior, from cells of the type (posterior), or from "
        "vehicle cells of the same plate and type (control)."
    ),
]
SamplersFile = Annotated[
    Path | None, typer.Option(help="What perturbgen samplers wrote; fitted anew otherwise.")
]
# The median and the ends of intervals of 50, 80 and 95 %.
_QUANTILES: Final = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
_BLOCK: Final = 1 << 22  # counts read at a time


def _samplers(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="An h5ad file, or a folder of competition files.")
    ],
    out: Annotated[Path, typer.Option(help="Output: a folder for sampler.npz and scores.csv.")],
    plots: Annotated[
        Path | None, typer.Option(help="A page (.html), of predicted against observed wells.")
    ] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(help="The conditions to predict: their wells are written to predicted.csv."),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            min=2,
            help="How many folds: a compound's cell types are dealt into them, each withheld once.",
        ),
    ] = 3,
    overrides: Overrides = None,
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit the samplers of cell numbers and library sizes, and report how well they foretell
    withheld conditions.

    Each compound's cell types are withheld in turn; the forests, fitted on the rest, foretell those
    wells. The table says how many wells fell into the 50, 80 and 95 % intervals (calibrated: that
    many) and the CRPS (lower is better).

    Example: [bold]perturbgen samplers counts.h5ad --out samplers --plots samplers.html
    --conditions id_map.csv[/bold]
    """
    import numpy as np

    from perturbgen.data import read_conditions, validate
    from perturbgen.generate import (
        CellSampler,
        SamplerSettings,
        WellTable,
        calibration_page,
        cross_validate,
        summarise,
    )

    settings = SamplerSettings.load(overrides=overrides or [], fix="--set leaf=10")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file", expected="a folder", fix="choose another --out")
    require_writable(out / "sampler.npz")
    if plots:
        check_output(plots, ".html", option="--plots")
    cells = load(source, columns=columns, layer=layer, vehicle=vehicle)
    validate(cells)
    table = WellTable.of(cells)
    wanted = read_conditions(conditions) if conditions else None
    rng = np.random.default_rng(seed)
    # Judged on withheld conditions first; the sampler that is kept is fitted on all.
    scores = cross_validate(table, settings, rng=rng, folds=folds)
    sampler = CellSampler.fit(table, rng=rng, settings=settings)
    tables = {"scores.csv": scores}
    if wanted is not None:
        wells = sampler.table.design(wanted)
        quantiles = sampler.quantiles(wells, _QUANTILES).add_prefix("q")
        tables["predicted.csv"] = wells.join(quantiles)
    # Written last and together: wells that cannot be foretold, or a full disk, leave nothing.
    with staged(out) as folder:
        sampler.save(folder / "sampler.npz")
        for name, frame in tables.items():
            write_table(frame, folder / name)
    summary = summarise(scores)
    if plots:
        title = "Samplers of cells and library sizes"
        lead = f"{len(scores):,} wells x cell types of {source.name}, each withheld once"
        calibration_page(scores, summary, title=title, lead=lead).write(plots)
    show_table(
        summary,
        title=f"wrote {', '.join(str(out / name) for name in ('sampler.npz', *tables))}",
        as_json=as_json,
    )


def _generate(
    run: RunFolder,
    cells: CellsFile,
    conditions: Conditions,
    out: Annotated[
        Path, typer.Option(help="Output: a folder for replicate-0001.h5ad, ... and wells.csv.")
    ],
    replicates: Annotated[int, typer.Option(min=1, help="How many experiments to draw.")] = 1,
    latent: Latent = "control",
    samplers: SamplersFile = None,
    seed: Seed = 0,
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw cells for every condition and each of its compound's wells: how many, how deep, and
    their raw counts.

    One h5ad a replicate, written as it is drawn; a folder that was interrupted is completed by the
    same command. Wells for which no cell was drawn have a zero in wells.csv: that donor is missing,
    as it happens in a real experiment.

    Example: [bold]perturbgen generate runs/latest --cells counts.h5ad --conditions id_map.csv
    --replicates 5 --out generated[/bold]
    """
    from perturbgen.core.runs import file_hash
    from perturbgen.data import read_conditions, validate
    from perturbgen.generate import CellSampler, ReplicateFolder, require_route
    from perturbgen.predict import Wells, read_wanted, run_fingerprint, without
    from perturbgen.train import load_run

    # Every mistake is found before cells are read, which takes longest.
    require_route(latent)
    trained = load_run(run, device=device)
    wanted = read_wanted(read_conditions(conditions))
    # sorted: the same conditions in another order are the same experiment
    labels = "\n".join(sorted("\t".join(key) for key in wanted))
    about = {
        "run": str(run),
        "model": run_fingerprint(run),
        # by content: another file under an old name is another experiment
        "cells": file_hash(cells),
        "latent": latent,
        "seed": seed,
        "samplers": None if samplers is None else file_hash(samplers, "sampler"),
        "conditions": hashlib.sha256(labels.encode()).hexdigest(),
    }
    # Asked before any work; nothing is written until all input has been checked.
    folder = ReplicateFolder(out, about)
    folder.require()
    adata = load(cells, columns=columns, layer=layer, vehicle=vehicle, run=trained)
    validate(adata)
    # the samplers of an honest prediction have not seen what they foretell
    adata = without(trained.in_genes(adata), wanted)
    sampler = CellSampler.load(samplers) if samplers else CellSampler.of(adata, seed=seed)
    sampler.require_unseen(wanted)
    wells = Wells.of(trained, adata, sampler, wanted, latent=latent, seed=seed)
    paths = folder.write(wells.generator, wells.plan, wells.wells, replicates=replicates)
    rows = [_replicate_row(path) for path in paths]
    title = f"{len(wanted)} conditions in {len(wells.wells)} wells, in {out}"
    show_table(rows, title=title, as_json=as_json)


def _replicate_row(path: Path) -> dict[str, object]:
    """What a replicate holds, read from its file a block at a time."""
    import h5py

    with h5py.File(path, "r") as file:
        counts = file["X/data"]
        # a block at a time: a replicate may be larger than memory
        total = sum(int(counts[i : i + _BLOCK].sum()) for i in range(0, len(counts), _BLOCK))
        cells = len(file["X/indptr"]) - 1
    # each well may have drawn none
    return {"file": str(path), "cells": cells, "counts_per_cell": total / max(cells, 1)}


VERBS = {"samplers": _samplers, "generate": _generate}
