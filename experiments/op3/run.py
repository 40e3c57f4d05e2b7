"""The competition from Kaggle's folder to a submission that is checked.

python experiments/op3/run.py open-problems-single-cell-perturbations   # the unzipped download
python experiments/op3/run.py --simulated tiny                          # the same road without it
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent))
import road

from perturbgen.cli import run_experiment
from perturbgen.core.console import say
from perturbgen.core.runs import file_hash

HERE = Path(__file__).parent
COUNTS = "adata_train.parquet"
FILES = (
    COUNTS,
    "adata_obs_meta.csv",
    "adata_excluded_ids.csv",
    "de_train.parquet",
    "id_map.csv",
    "sample_submission.csv",
)
WHERE = (
    "accept the rules on "
    "https://www.kaggle.com/competitions/open-problems-single-cell-perturbations/data, then "
    "`kaggle competitions download -c open-problems-single-cell-perturbations` and unzip; or "
    "--simulated tiny"
)


def main(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the competition's files.")
    ] = None,
    config: road.Config = HERE / "config.toml",
    overrides: road.Overrides = None,
    simulated: road.Simulated = None,
    out: road.Out = Path("runs/op3"),
    dry_run: road.DryRun = False,
    as_json: road.AsJson = False,
) -> None:
    """Ingest, train twice (once to calibrate), predict, submit, check; score where the answer is
    known.

    Example: python experiments/op3/run.py --simulated tiny --set train.training.epochs=24
    """
    from perturbgen.simulation import simulate

    settings = road.ChallengeSettings.load(config, overrides=overrides or [])
    if dry_run:
        say(settings.to_toml())
        return
    made = None if simulated is None else out / f"competition-{simulated}-s{settings.seed}"
    folder = road.find_folder(
        folder,
        made,
        lambda path: simulate(str(simulated), seed=settings.seed, out=path),
        FILES,
        fix=WHERE,
    )
    road.follow(read_challenge(folder, out), settings, out / "submission.csv", as_json=as_json)


def read_challenge(folder: Path, out: Path) -> road.Challenge:
    """Everything the folder holds; the cells are written as an h5ad file once, which runs are
    trained from.
    """
    from perturbgen.data import read_competition, read_de, read_h5ad, validate, write_h5ad
    from perturbgen.submission import submission_genes

    path = out / f"counts-{file_hash(folder / COUNTS).removeprefix('sha256:')[:12]}.h5ad"
    if path.exists():
        cells = read_h5ad(path)
    else:
        cells = read_competition(folder)
        validate(cells)
        write_h5ad(cells, path)
    truth = folder / "de_truth.parquet"
    return road.Challenge(
        cells=cells,
        path=path,
        measured=read_de(folder),
        ids=road.read_ids(folder),
        genes=submission_genes(folder / "sample_submission.csv"),
        truth=read_de(truth) if truth.exists() else None,
    )


if __name__ == "__main__":
    run_experiment(main)
