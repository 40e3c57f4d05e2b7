"""``perturbgen predict``: differential expression of conditions that nobody measured, by a generative model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.data import load
from perturbgen.cli.generate import CellsFile, Conditions, Latent, Samplers, open_sampler
from perturbgen.cli.options import Columns, Device, Json, Layer, RunFolder, Vehicle
from perturbgen.cli.samplers import read_conditions
from perturbgen.core.console import show_table
from perturbgen.core.errors import ConfigError
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.predict.pipeline import Prediction
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("predict")(_predict)


def _predict(
    run: RunFolder,
    cells: CellsFile,
    conditions: Conditions,
    out: Annotated[
        Path, typer.Option(help="predictions.parquet: cell_type, sm_name, a column for each gene.")
    ],
    estimator: Annotated[
        str,
        typer.Option(
            help="mean_t, anchored_t, plug_in, shrunk (anchored_t, shrunk) or shrunk_plug_in."
        ),
    ] = "shrunk",
    replicates: Annotated[
        str,
        typer.Option(
            help="Experiments to draw, or auto: until calibration conditions gain no more, 20 at most."
        ),
    ] = "auto",
    latent: Latent = "control",
    flavour: Annotated[str, typer.Option(help="The recipe of the DE: kaggle or op3.")] = "kaggle",
    calibration_run: Annotated[
        Path | None,
        typer.Option(
            help="A run that withheld measured conditions of these cell types, to calibrate on."
        ),
    ] = None,
    calibration_out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the predictions of the calibration conditions, for an ensemble."
        ),
    ] = None,
    withheld: Annotated[
        Path | None,
        typer.Option(
            help="Cells of the conditions, if you have them: their likelihood is reported, too."
        ),
    ] = None,
    samplers: Samplers = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same prediction.")
    ] = 0,
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Predict signed -log10 p: draw the wells of each condition, fit them among the real ones, estimate, shrink.

    mean_t averages t over replicates; anchored_t compares with vehicle wells that are generated, too, so that what the
    model gets wrong of a cell type cancels; plug_in puts the noise-free fold change over the standard error of real
    conditions; the shrunk ones shrink weak conditions, and each level of expression by a factor, as measured conditions
    of the same cell types ask for, best those that the run (or --calibration-run) did not train on. Real controls and
    measured compounds join every fit.

    Example: [bold]perturbgen predict runs/0001-op3-s0 --cells counts.h5ad --conditions id_map.csv
    --out predictions.parquet[/bold]
    """
    from perturbgen.cli.baselines import write_predictions
    from perturbgen.data import validate
    from perturbgen.predict.pipeline import predict as predict_conditions
    from perturbgen.train import load_run

    check_output(out, ".parquet")
    if calibration_out is not None:
        check_output(calibration_out, ".parquet")
    settings = _read_settings(estimator, replicates, latent=latent, flavour=flavour, seed=seed)
    if calibration_out is not None and not settings.calibrates:
        raise ConfigError(
            f"--calibration-out: {estimator} with a fixed number of replicates calibrates on nothing",
            fix="--replicates auto, or the estimator shrunk or shrunk_plug_in",
        )
    trained = load_run(run, device=device)
    judge = None if calibration_run is None else load_run(calibration_run, device=device)
    wanted = read_conditions(conditions)
    adata = load(cells, columns=columns, layer=layer, vehicle=vehicle)
    validate(adata)
    sampler = None if samplers is None else open_sampler(samplers, adata, seed=seed)
    found = predict_conditions(
        trained, adata, wanted, settings, sampler=sampler, calibration_run=judge
    )
    values = found.values[estimator]
    write_predictions(values, out)
    if calibration_out is not None:
        write_predictions(found.calibrated[estimator], calibration_out)
    rows = _summary(found, estimator)
    if withheld is not None:
        rows |= _likelihood_row(
            trained, withheld, wanted, layer=layer, columns=columns, vehicle=vehicle, seed=seed
        )
    show_table(
        [rows],
        title=f"wrote {out}: {values.shape[0]} conditions x {values.shape[1]:,} genes",
        as_json=as_json,
    )


def _read_settings(estimator: str, replicates: str, **options: Any) -> Any:
    """The settings, ``replicates`` being a number or ``auto``."""
    from perturbgen.core.config import load_settings
    from perturbgen.predict.estimators import PredictSettings

    if replicates != "auto" and not (replicates.isdigit() and int(replicates)):
        raise ConfigError(
            f"--replicates {replicates!r}", expected="auto, or a whole number from 1 on"
        )
    number = None if replicates == "auto" else int(replicates)
    base = {"estimators": [estimator], "replicates": number, **options}
    return load_settings(
        PredictSettings, base=base, fix="perturbgen predict --help names the choices"
    )


def _summary(found: Prediction, estimator: str) -> dict[str, Any]:
    """The calibration and the checks of a prediction, in a row."""
    row: dict[str, Any] = {"estimator": estimator, "replicates": None, "calibration_mrrmse": None}
    if len(found.scores):
        row |= {
            "replicates": int(found.scores.index[-1]),
            "calibration_mrrmse": float(found.scores.iloc[-1]),
        }
    if estimator in found.shrinkage:
        for kind, factors in found.shrinkage[estimator].factors.iterrows():
            row[f"factors {kind}"] = " ".join(f"{value:.2f}" for value in factors)
        row["noise"] = found.shrinkage[estimator].noise
    for kind, ratios in found.checks.iterrows():
        row |= {f"{name} {kind}": float(value) for name, value in ratios.items()}
    return row


def _likelihood_row(
    run: TrainedRun, path: Path, wanted: pd.DataFrame, *, seed: int, **options: Any
) -> dict[str, float]:
    """How likely the model holds the withheld cells of the wanted conditions, mean over conditions."""
    from perturbgen.predict.calibration import withheld_likelihood
    from perturbgen.predict.conditions import labels_of, read_wanted

    cells = load(path, **options)
    cells = cells[labels_of(cells.obs).isin(read_wanted(wanted))]
    table = withheld_likelihood(run, cells.copy(), seed=seed)
    log.info("likelihood of %d withheld cells of %d conditions", table["cells"].sum(), len(table))
    return {
        "withheld_nll_per_gene": float(table["nll"].mean()),
        "gain_over_vehicle": float(table["gain"].mean()),
    }
