"""The competition as one road: cells and rows to predict in, a checked submission out.

What its two forms have in common: ``op3`` reads Kaggle's folder, ``op3_openproblems`` the h5ad
files of Open Problems, and both let :func:`follow` predict, hand in and score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
import pandas as pd
import typer
from pydantic import Field

from perturbgen.core.config import Settings, merge
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import InputError, shorten
from perturbgen.core.export import write_table
from perturbgen.generate import Route
from perturbgen.predict import Estimator

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.train import TrainedRun

log = logging.getLogger("perturbgen.experiments.op3")

LABELS: Final = {"nbvae": "cNB-VAE", "dgd": "cDGD"}
METRIC: Final = "mean_rowwise_rmse"

# The options that both forms of the road take.
Config = Annotated[Path, typer.Option(help="Configuration file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: seed=3")]
Simulated = Annotated[
    str | None, typer.Option(help="Simulate the files instead, by this preset: tiny, small or op3.")
]
Out = Annotated[Path, typer.Option(help="Where all is written; trained runs there are taken.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class ChallengeSettings(Settings):
    """How the rows are predicted; ``train`` is what `perturbgen train` takes, but for the data and
    the seed.
    """

    seed: Annotated[int, Field(ge=0)]
    estimator: Estimator
    # None: draw replicates until the calibration conditions gain no more.
    replicates: Annotated[int, Field(ge=1)] | None = None
    latent: Route
    flavour: Literal["kaggle", "op3"]
    validation: Annotated[float, Field(gt=0, lt=1)]
    # The share of the known compounds that the calibration run never sees.
    calibration: Annotated[float, Field(gt=0, lt=1)]
    accelerator: str
    baselines: tuple[str, ...]
    train: dict[str, Any]

    @property
    def kind(self) -> str:
        """The model's kind."""
        return str(self.train.get("model", {}).get("kind", "nbvae"))

    @property
    def label(self) -> str:
        """What the prediction is called in tables."""
        return f"{LABELS.get(self.kind, self.kind)}: {self.estimator}"


@dataclass(frozen=True)
class Challenge:
    """The released ``cells`` and where they lie, the ``measured`` DE rows, the rows of ``ids``, the
    ``genes`` wanted.

    ``measured`` and ``truth`` (None where it is not known) are conditions (cell_type, compound) x
    genes, ``ids`` has the columns id, cell_type and sm_name.
    """

    cells: AnnData
    path: Path
    measured: pd.DataFrame
    ids: pd.DataFrame
    genes: Sequence[str]
    truth: pd.DataFrame | None = None

    @property
    def wanted(self) -> pd.DataFrame:
        """The conditions to predict."""
        names = ["cell_type", "compound"]
        return self.ids[["cell_type", "sm_name"]].astype(str).set_axis(names, axis=1)


def find_folder(
    folder: Path | None,
    made: Path | None,
    simulate: Callable[[Path], Path],
    files: Sequence[str],
    *,
    fix: str,
) -> Path:
    """The ``folder`` given, with all its ``files``, or one that is simulated at ``made`` once and
    kept.
    """
    if folder is None and made is not None:
        return made if made.exists() else simulate(made)
    if folder is None or made is not None:
        raise InputError(
            "this reads either a folder of released files or --simulated ones", fix=fix
        )
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        there = folder.is_dir()
        raise InputError(
            f"{folder} has no {shorten(absent, len(absent))}"
            if there
            else f"there is no folder {folder}",
            expected=f"a folder with {shorten(files, len(files))}",
            fix=fix,
        )
    return folder


def read_ids(folder: Path) -> pd.DataFrame:
    """The rows to predict: id, cell_type, sm_name."""
    from perturbgen.core.tables import read_frame

    names = ["cell_type", "sm_name"]
    return read_frame(folder / "id_map.csv", columns=["id", *names], text=names)


def follow(
    challenge: Challenge,
    settings: ChallengeSettings,
    submission: Path,
    *,
    about: Mapping[str, str] | None = None,
    as_json: bool = False,
) -> None:
    """Predict the rows, write and check the submission, and score it where the answer is known."""
    predictions = predict_rows(challenge, settings, submission.parent)
    hand_in(predictions, challenge, submission, about=about)
    if challenge.truth is None:
        log.info("the answer for these rows is not known here: no scores")
        return
    rows = scores(predictions, challenge.truth, challenge, settings)
    show_table(rows, title=f"rows to predict, seed {settings.seed}", as_json=as_json)


def predict_rows(challenge: Challenge, settings: ChallengeSettings, out: Path) -> pd.DataFrame:
    """Predictions (cell_type, compound) x genes by a run on all cells, calibrated by one without
    known compounds.

    Runs lie under ``out/runs``; what was trained before is taken. ``out/predictions.parquet`` is
    written.
    """
    from perturbgen.predict import PredictSettings, predict

    full, calibration = (train(challenge, settings, out, withhold=w) for w in (False, True))
    asked = PredictSettings(
        estimators=(settings.estimator,),
        **settings.model_dump(include={"replicates", "latent", "flavour", "seed"}),
    )
    found = predict(full, challenge.cells, challenge.wanted, asked, calibration_run=calibration)
    if len(found.scores):
        error, replicates = found.scores.iloc[-1], found.scores.index[-1]
        log.info("calibration conditions: MRRMSE %.3f after %d replicates", error, replicates)
    if settings.estimator in found.shrinkage:
        factors = found.shrinkage[settings.estimator].factors.round(2)
        log.info("factors by expression level\n%s", factors)
    values = found.values[settings.estimator]
    labelled = values.rename_axis(["cell_type", "sm_name"]).reset_index()
    write_table(labelled, out / "predictions.parquet")
    return values


def train(
    challenge: Challenge, settings: ChallengeSettings, out: Path, *, withhold: bool
) -> TrainedRun:
    """A run on the released cells, or with ``withhold`` on those that do not calibrate."""
    from perturbgen.data import Split
    from perturbgen.train import RunSettings, load_run, train_once

    kind = "calibration" if withhold else "full"
    share, validation = (settings.calibration if withhold else 0.0), settings.validation
    rng = np.random.default_rng([settings.seed, 6])
    split = Split.for_calibration(
        challenge.cells.obs, challenge.wanted, rng=rng, share=share, validation=validation
    )
    # The shares are part of the name: a run of other shares keeps the split that it was trained on.
    path = out / f"split-{kind}-{share:g}-{validation:g}-s{settings.seed}.csv"
    split.write(path)
    data = {"path": str(challenge.path), "split": str(path)}
    theirs = dict(settings.train)
    if settings.kind == "dgd":
        theirs.pop("annealing", None)  # of the KL term, which only the VAE has
    asked = RunSettings.load(
        base=merge(theirs, {"name": kind, "seed": settings.seed, "data": data})
    )
    return load_run(train_once(asked, runs=out / "runs", accelerator=settings.accelerator))


def hand_in(
    predictions: pd.DataFrame, challenge: Challenge, path: Path, *, about: Mapping[str, str] | None
) -> None:
    """Write a submission (.csv or .h5ad), read it again and check it from the file alone."""
    from perturbgen import submission

    submission.write(predictions, challenge.ids, challenge.genes, path, about=about)
    findings = submission.check(path, challenge.ids, challenge.genes)
    for finding in findings:
        log.warning("%s", finding)
    if any(finding.severity == "error" for finding in findings):
        raise submission.SubmissionError(f"{path} is not valid", findings)
    rows, columns = len(challenge.ids), len(challenge.genes)
    say(f"submission   {path}: {rows} rows x {columns:,} genes, valid, {len(findings)} warnings")


def scores(
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    challenge: Challenge,
    settings: ChallengeSettings,
) -> list[dict[str, Any]]:
    """MRRMSE of predictions, of zeros and of simple baselines, and the ratio to zeros."""
    from perturbgen.baselines import make
    from perturbgen.evaluate import score

    wanted = pd.MultiIndex.from_frame(challenge.wanted)
    truth = truth.loc[wanted, list(challenge.genes)]
    tables = {"zeros": truth * 0}
    for name in settings.baselines:
        fitted = make(name).fit(challenge.measured, rng=np.random.default_rng(settings.seed))
        tables[name] = fitted.predict(wanted)
    tables[settings.label] = predictions.loc[truth.index, truth.columns]
    found = {
        name: score(truth, table, metrics=[METRIC], name=name).to_numpy().mean()
        for name, table in tables.items()
    }
    return [
        {"prediction": name, "MRRMSE": value, "ratio": value / found["zeros"]}
        for name, value in found.items()
    ]
