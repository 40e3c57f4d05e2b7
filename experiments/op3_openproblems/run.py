"""The same task from the Open Problems files to their prediction.h5ad, checked.

    python experiments/op3_openproblems/run.py neurips-2023-data python
    experiments/op3_openproblems/run.py --simulated tiny     # the same road without the files

The folder has de_train.h5ad, de_test.h5ad, id_map.csv and the cells.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "op3"))
import road

from perturbgen.cli import run_experiment
from perturbgen.core.console import say
from perturbgen.core.errors import InputError
from perturbgen.core.runs import file_hash

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

HERE = Path(__file__).parent
FILES = ("de_train.h5ad", "id_map.csv")
# the first that is there
CELLS = ("sc_train.h5ad", "sc_counts.h5ad", "sc_counts_reannotated_with_counts.h5ad")
METHOD = "perturbgen"
WHERE = (
    "`perturbgen data get op3-de --out DIR` and `perturbgen data get op3-cells --out DIR` (3.5 GB) "
    "fetch them; or "
    "--simulated tiny"
)


def main(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the Open Problems files.")
    ] = None,
    config: road.Config = HERE / "config.toml",
    overrides: road.Overrides = None,
    simulated: road.Simulated = None,
    curated: Annotated[
        bool, typer.Option(help="Drop the conditions that the benchmark drops from raw cells.")
    ] = True,
    out: road.Out = Path("runs/op3-openproblems"),
    dry_run: road.DryRun = False,
    as_json: road.AsJson = False,
) -> None:
    """Ingest, train twice (once to calibrate), predict, write prediction.h5ad, check; score where
    de_test is there.

    Example: python experiments/op3_openproblems/run.py --simulated tiny
    --set train.training.epochs=24
    """
    from simulated import simulate_openproblems

    settings = road.ChallengeSettings.load(config, overrides=overrides or [])
    if dry_run:
        say(settings.to_toml())
        return
    made = None if simulated is None else out / f"openproblems-{simulated}-s{settings.seed}"
    folder = road.find_folder(
        folder,
        made,
        lambda path: simulate_openproblems(str(simulated), seed=settings.seed, out=path),
        FILES,
        fix=WHERE,
    )
    challenge = read_challenge(folder, out, curated=curated and simulated is None)
    about = {"dataset_id": dataset_of(folder), "method_id": METHOD}
    road.follow(challenge, settings, out / "prediction.h5ad", about=about, as_json=as_json)


def read_challenge(folder: Path, out: Path, *, curated: bool) -> road.Challenge:
    """Everything the folder holds; the cells are written once, with the genes of the DE tables, for
    training.
    """
    from perturbgen.data import read_h5ad, read_openproblems_de, write_h5ad

    source = find_cells(folder)
    measured = read_openproblems_de(folder / "de_train.h5ad")
    ids = road.read_ids(folder)
    path = out / f"counts-{file_hash(source).removeprefix('sha256:')[:12]}.h5ad"
    if path.exists():
        cells = read_h5ad(path)
    else:
        cells = read_cells(source, measured.columns, ids, curated=curated)
        write_h5ad(cells, path)
    truth = folder / "de_test.h5ad"
    return road.Challenge(
        cells=cells,
        path=path,
        measured=measured,
        ids=ids,
        genes=measured.columns.tolist(),
        truth=read_openproblems_de(truth) if truth.exists() else None,
    )


def find_cells(folder: Path) -> Path:
    """The file of single cells."""
    found = [folder / name for name in CELLS if (folder / name).is_file()]
    if not found:
        raise InputError(f"{folder} has no single cells", expected=" or ".join(CELLS), fix=WHERE)
    return found[0]


def read_cells(source: Path, genes: pd.Index, ids: pd.DataFrame, *, curated: bool) -> AnnData:
    """Cells with the genes of the DE tables; those of the rows to predict are taken out."""
    from perturbgen.data import read_openproblems, validate
    from perturbgen.predict import read_wanted, without

    cells = read_openproblems(source, curated=curated)
    absent = genes.difference(cells.var_names)
    if len(absent):
        raise InputError(
            f"{source} lacks {len(absent)} genes of de_train.h5ad, {absent[0]} first", fix=WHERE
        )
    cells = without(cells[:, genes].copy(), read_wanted(ids))
    validate(cells)
    return cells


def dataset_of(folder: Path) -> str:
    """The id that de_train.h5ad gives its data set."""
    import anndata

    return str(
        anndata.read_h5ad(folder / "de_train.h5ad", backed="r").uns.get(
            "dataset_id", "neurips-2023-data"
        )
    )


if __name__ == "__main__":
    run_experiment(main)
