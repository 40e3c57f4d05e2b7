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
from road import Challenge, ChallengeSettings, find_folder, follow, read_ids

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
    config: Annotated[Path, typer.Option(help="Configuration file.")] = HERE / "config.toml",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: seed=3")
    ] = None,
    simulated: Annotated[
        str | None,
        typer.Option(help="Simulate the files instead, by this preset: tiny, small or op3."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where all is written; trained runs there are taken.")
    ] = Path("runs/op3"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ingest, train twice (once to calibrate), predict, submit, check; score where the answer is
    known.

    Example: python experiments/op3/run.py --simulated tiny --set train.training.epochs=24
    """
    from perturbgen.simulate import simulate

    settings = ChallengeSettings.load(config, overrides=overrides or [])
    if dry_run:
        say(settings.to_toml())
        return
    made = None if simulated is None else out / f"competition-{simulated}-s{settings.seed}"
    folder = find_folder(
        folder,
        made,
        lambda path: simulate(str(simulated), seed=settings.seed, out=path),
        FILES,
        fix=WHERE,
    )
    follow(read_challenge(folder, out), settings, out / "submission.csv", as_json=as_json)


def read_challenge(folder: Path, out: Path) -> Challenge:
    """Everything the folder holds; the cells are written as an h5ad file once, which runs are
    trained from.
    """
    from perturbgen.data import read_competition, read_de, read_h5ad, validate, write_h5ad
    from perturbgen.submission import submission_genes

    path = out / f"counts-{file_hash(folder / COUNTS).removeprefix('sha256:')[:12]}.h5ad"
    cells = read_h5ad(path) if path.exists() else read_competition(folder)
    if not path.exists():
        validate(cells)
        write_h5ad(cells, path)
    truth = folder / "de_truth.parquet"
    return Challenge(
        cells=cells,
        path=path,
        measured=read_de(folder),
        ids=read_ids(folder),
        genes=submission_genes(folder / "sample_submission.csv"),
        truth=read_de(truth) if truth.exists() else None,
    )


if __name__ == "__main__":
    run_experiment(main)
