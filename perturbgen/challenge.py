"""The competition as one road: cells and rows to predict in, a checked submission out.

What the two forms of the competition (Kaggle's folder, Open Problems' h5ad files) have in common; the scripts under
``experiments`` read the one or the other and call :func:`predict_rows` and :func:`hand_in`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.core.config import Settings, load_settings, merge
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import InputError, shorten
from perturbgen.generate.latents import Route
from perturbgen.predict.estimators import Estimator

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.predict.pipeline import Prediction
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

NAMES: Final = ["cell_type", "compound"]
LABELS: Final = {"nbvae": "cNB-VAE", "dgd": "cDGD"}
METRIC: Final = "mean_rowwise_rmse"


class ChallengeSettings(Settings):
    """How the rows are predicted; ``train`` is what `perturbgen train` takes, but for the data and the seed."""

    seed: Annotated[int, Field(ge=0)]
    estimator: Estimator
    replicates: Annotated[int, Field(ge=1)] | None = (
        None  # None: until calibration conditions gain no more
    )
    latent: Route
    flavour: Literal["kaggle", "op3"]
    validation: Annotated[float, Field(gt=0, lt=1)]
    calibration: Annotated[
        float, Field(gt=0, lt=1)
    ]  # share of the known compounds that the calibration run hides
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
    """The released ``cells`` and where they lie, the ``measured`` DE rows, the rows of ``ids``, the ``genes`` wanted.

    ``measured`` and ``truth`` (None where nobody knows it) are conditions (cell_type, compound) x genes, ``ids`` has
    the columns id, cell_type and sm_name.
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
        return self.ids[["cell_type", "sm_name"]].astype(str).set_axis(NAMES, axis=1)


def require_files(folder: Path, names: Sequence[str], *, fix: str) -> None:
    """All files are there; those that are not are named at once."""
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"{folder} has no {shorten(absent, len(absent))}"
            if folder.is_dir()
            else f"there is no folder {folder}",
            expected=f"a folder with {shorten(names, len(names))}",
            fix=fix,
        )


def predict_rows(challenge: Challenge, settings: ChallengeSettings, out: Path) -> pd.DataFrame:
    """Predictions (cell_type, compound) x genes by a run on all cells, calibrated by one that hid known compounds.

    Runs lie under ``out/runs``; what was trained before is taken. ``out/predictions.parquet`` is written.
    """
    from perturbgen.core.files import atomic_path
    from perturbgen.predict.estimators import PredictSettings
    from perturbgen.predict.pipeline import predict

    everything, judge = (train(challenge, settings, out, hide=hide) for hide in (False, True))
    asked = PredictSettings(
        estimators=(settings.estimator,),
        replicates=settings.replicates,
        latent=settings.latent,
        flavour=settings.flavour,
        seed=settings.seed,
    )
    found = predict(everything, challenge.cells, challenge.wanted, asked, calibration_run=judge)
    tell(found, settings)
    values = found.values[settings.estimator]
    with atomic_path(out / "predictions.parquet") as part:
        values.rename_axis(["cell_type", "sm_name"]).reset_index().to_parquet(part, index=False)
    return values


def tell(found: Prediction, settings: ChallengeSettings) -> None:
    """How the prediction came about, in the log."""
    if len(found.scores):
        log.info(
            "calibration conditions: MRRMSE %.3f after %d replicates",
            found.scores.iloc[-1],
            found.scores.index[-1],
        )
    if settings.estimator in found.shrinkage:
        log.info(
            "factors by expression level\n%s", found.shrinkage[settings.estimator].factors.round(2)
        )


def train(
    challenge: Challenge, settings: ChallengeSettings, out: Path, *, hide: bool
) -> TrainedRun:
    """A run on the released cells, or with ``hide`` on those that do not calibrate."""
    from perturbgen.data.splits import Split
    from perturbgen.train import RunSettings, load_run
    from perturbgen.train import run as running

    kind = "calibration" if hide else "full"
    share = settings.calibration if hide else 0.0
    split = Split.for_calibration(
        challenge.cells.obs,
        challenge.wanted,
        rng=np.random.default_rng([settings.seed, 6]),
        share=share,
        validation=settings.validation,
    )
    path = (
        out / f"split-{kind}-{share:g}-{settings.validation:g}-s{settings.seed}.csv"
    )  # older runs keep theirs
    split.write(path)
    ours = {
        "name": kind,
        "seed": settings.seed,
        "data": {"path": str(challenge.path), "split": str(path)},
    }
    theirs = settings.train
    if settings.kind == "dgd":
        theirs = {
            name: value for name, value in theirs.items() if name != "annealing"
        }  # of the VAE's KL term
    asked = load_settings(RunSettings, base=merge(theirs, ours))
    return load_run(running.train_once(asked, runs=out / "runs", accelerator=settings.accelerator))


def hand_in(
    predictions: pd.DataFrame,
    challenge: Challenge,
    path: Path,
    *,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a submission (.csv or .h5ad) and check it as a stranger would."""
    from perturbgen import submission

    submission.write(predictions, challenge.ids, challenge.genes, path, about=about)
    findings = submission.check(path, challenge.ids, challenge.genes)
    for finding in findings:
        log.warning("%s", finding)
    if any(finding.severity == "error" for finding in findings):
        raise submission.SubmissionError(f"{path} is not valid", findings)
    rows, columns = len(challenge.ids), len(challenge.genes)
    say(f"submission   {path}: {rows} rows x {columns:,} genes, valid, {len(findings)} warnings")
    return path


def show_scores(
    predictions: pd.DataFrame, challenge: Challenge, settings: ChallengeSettings, *, as_json: bool
) -> None:
    """The table of :func:`scores`, where the answer is known."""
    if challenge.truth is None:
        log.info("nobody here knows the answer for these rows: no scores")
        return
    rows = scores(predictions, challenge.truth, challenge, settings)
    show_table(rows, title=f"rows to predict, seed {settings.seed}", as_json=as_json)


def scores(
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    challenge: Challenge,
    settings: ChallengeSettings,
) -> list[dict[str, Any]]:
    """MRRMSE of predictions and of zeros and simple baselines beside them, and the ratio to zeros."""
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
        name: score(truth, t, metrics=[METRIC], name=name).to_numpy().mean()
        for name, t in tables.items()
    }
    return [
        {"prediction": name, "MRRMSE": value, "ratio": value / found["zeros"]}
        for name, value in found.items()
    ]
