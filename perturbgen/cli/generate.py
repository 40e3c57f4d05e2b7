"""``perturbgen generate``: cells of conditions that nobody measured."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perturbgen.cli.data import load
from perturbgen.cli.options import Columns, Device, Json, Layer, RunFolder, Vehicle
from perturbgen.cli.samplers import read_conditions
from perturbgen.core.console import show_table

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from perturbgen.generate import CellSampler

CellsFile = Annotated[
    Path, typer.Option(help="The measured cells: an h5ad file, or a folder of competition files.")
]
Conditions = Annotated[Path, typer.Option(help="id_map.csv, or a csv of cell_type and compound.")]
Latent = Annotated[
    str,
    typer.Option(
        help="Latent points from the prior, from cells of the type (posterior), or from "
        "vehicle cells of the same plate and type (control)."
    ),
]
Samplers = Annotated[
    Path | None, typer.Option(help="What perturbgen samplers wrote; fitted anew otherwise.")
]
_BLOCK = 1 << 22  # counts read at a time


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("generate")(_generate)


def _generate(
    run: RunFolder,
    cells: CellsFile,
    conditions: Conditions,
    out: Annotated[Path, typer.Option(help="Folder for replicate-0001.h5ad, ... and wells.csv.")],
    replicates: Annotated[int, typer.Option(min=1, help="How many experiments to draw.")] = 1,
    latent: Latent = "control",
    samplers: Samplers = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same cells.")
    ] = 0,
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Draw cells for every condition and each of its compound's wells: how many, how deep, and their raw counts.

    One h5ad a replicate, written as it is drawn; a folder that was interrupted is completed by the same command. Wells
    for which no cell was drawn have a zero in wells.csv: that donor is missing, as it happens in a real experiment.

    Example: [bold]perturbgen generate runs/0001-op3-s0 --cells counts.h5ad --conditions id_map.csv --replicates 5
    --out generated[/bold]
    """
    from perturbgen.core.runs import file_hash
    from perturbgen.generate.latents import require_route
    from perturbgen.generate.replicates import require_ours, write_replicates
    from perturbgen.predict.conditions import (
        make_generator,
        make_plan,
        read_wanted,
        require_blind,
        run_fingerprint,
    )
    from perturbgen.train import load_run

    require_route(latent)
    trained = load_run(run, device=device)
    wanted = read_wanted(read_conditions(conditions))
    about = {
        "run": str(run),
        "model": run_fingerprint(run),
        "cells": file_hash(cells),
        "latent": latent,
        "seed": seed,
        "samplers": None if samplers is None else file_hash(samplers, "sampler"),
        "conditions": hashlib.sha256(
            "\n".join(sorted("\t".join(key) for key in wanted)).encode()
        ).hexdigest(),
    }
    require_ours(out, about)
    adata = _open_cells(trained, cells, wanted, columns=columns, layer=layer, vehicle=vehicle)
    sampler = open_sampler(samplers, adata, seed=seed)
    require_blind(sampler, wanted)
    plan, wells = make_plan(trained, adata, sampler, wanted, seed=seed)
    generator = make_generator(trained, adata, wells, latent=latent, seed=seed)
    paths = write_replicates(generator, plan, wells, out, replicates=replicates, about=about)
    rows = [_describe(path) for path in paths]
    show_table(
        rows, title=f"{len(wanted)} conditions in {len(wells)} wells, in {out}", as_json=as_json
    )


def _open_cells(
    run: object,
    path: Path,
    wanted: pd.MultiIndex,
    *,
    columns: Path | None,
    layer: str | None,
    vehicle: str | None,
) -> AnnData:
    """The measured cells with the run's genes, without those of the conditions to predict."""
    from perturbgen.data import validate
    from perturbgen.predict.conditions import in_run_genes, without

    adata = load(path, columns=columns, layer=layer, vehicle=vehicle)
    validate(adata)
    return without(in_run_genes(run, adata), wanted)  # type: ignore[arg-type]


def open_sampler(path: Path | None, cells: AnnData, *, seed: int) -> CellSampler:
    """The sampler of a file or folder, or one fitted on the cells."""
    from perturbgen.generate import CellSampler
    from perturbgen.predict.conditions import make_sampler

    if path is None:
        return make_sampler(cells, seed=seed)
    return CellSampler.load(path / "sampler.npz" if path.is_dir() else path)


def _describe(path: Path) -> dict[str, object]:
    """What a replicate holds, read from its file."""
    import h5py

    with h5py.File(path, "r") as file:
        counts = file["X/data"]
        total = sum(int(counts[i : i + _BLOCK].sum()) for i in range(0, len(counts), _BLOCK))
        cells = len(file["X/indptr"]) - 1
    return {"file": str(path), "cells": cells, "counts_per_cell": total / max(cells, 1)}
