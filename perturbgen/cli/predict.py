"""``perturbgen predict`` and ``perturbgen ensemble``: differential expression that nobody measured.

``predict`` takes a generative model's; ``ensemble`` is a weighted sum of several predictions, with
weights that withheld conditions, which were measured, ask for.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from perturbgen.cli.data import load
from perturbgen.cli.generate import CellsFile, Latent, SamplersFile
from perturbgen.cli.options import (
    Columns,
    Conditions,
    Device,
    Json,
    Layer,
    RunFolder,
    Seed,
    Vehicle,
    found_run,
    write_predictions,
)
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from perturbgen.core.page import Page
    from perturbgen.predict import Prediction, PredictSettings
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

# columns of var in which others keep the names that people use
_SYMBOLS: Final = ("symbol", "gene_symbol", "gene_symbols", "gene_name", "feature_name")
_Predictions = Annotated[
    Path,
    typer.Option(help="Output: a parquet file of cell_type, sm_name and a column for each gene."),
]


def _predict(
    run: RunFolder,
    cells: CellsFile,
    conditions: Conditions,
    out: _Predictions,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="mean_t, anchored_t, plug_in, shrunk (anchored_t, shrunk), shrunk_mean or "
            "shrunk_plug_in \\[default: shrunk, or anchored_t where nothing measured calibrates]."
        ),
    ] = None,
    replicates: Annotated[
        str,
        typer.Option(
            help="How many experiments to draw, or auto: until calibration conditions gain no "
            "more, 20 at most."
        ),
    ] = "auto",
    latent: Latent = "control",
    flavour: Annotated[
        str | None, typer.Option(help="A published recipe of the DE: kaggle or op3.")
    ] = None,
    design: Annotated[
        str | None,
        typer.Option(
            help='The design as an R formula, e.g. "~0 + {group} + donor" '
            "\\[default: flavour kaggle for cells with donor, plate and row; else the group and "
            "what tells samples apart]."
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="A page (.html): which genes respond, how often that is right."),
    ] = None,
    calibration_run: Annotated[
        Path | None,
        typer.Option(
            help="A run that withheld measured conditions of these cell types, to calibrate on.",
            callback=found_run,
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
    samplers: SamplersFile = None,
    seed: Seed = 0,
    columns: Columns = None,
    layer: Layer = None,
    vehicle: Vehicle = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict signed -log10 p: draw the wells of each condition, fit them among the real ones,
    estimate, shrink.

    mean_t averages t over replicates; anchored_t compares with vehicle wells that are generated,
    too, so that what the model gets wrong of a cell type cancels; plug_in puts the noise-free fold
    change over the standard error of real conditions; the shrunk ones shrink weak conditions, and
    each level of expression by a factor, as measured conditions of the same cell types ask for,
    best those that the run (or --calibration-run) did not train on. Real controls and measured
    compounds join every fit.

    Example: [bold]perturbgen predict runs/latest --cells counts.h5ad --conditions id_map.csv
    --out predictions.parquet[/bold]
    """
    from perturbgen.data import read_conditions, validate
    from perturbgen.generate import CellSampler
    from perturbgen.predict import PredictSettings, prediction_answer
    from perturbgen.predict import predict as predict_conditions
    from perturbgen.train import load_run

    for path in filter(None, (out, calibration_out)):
        check_output(path, ".parquet")
    if plots is not None:
        check_output(plots, ".html", option="--plots")
    if replicates != "auto" and not (replicates.isdigit() and int(replicates)):
        raise ConfigError(
            f"--replicates {replicates!r}", expected="auto, or a whole number from 1 on"
        )
    asked: dict[str, Any] = {
        "estimators": [estimator or "shrunk"],
        "replicates": None if replicates == "auto" else int(replicates),
        "latent": latent,
        "flavour": flavour,
        "design": design,
        "seed": seed,
    }
    # the usual advice is --dry-run, which this command does not have
    settings = PredictSettings.load(base=asked, fix="perturbgen predict --help names the choices")
    # Said now, not after minutes of drawing.
    if calibration_out is not None and not settings.calibrates:
        raise ConfigError(
            f"--calibration-out: {settings.estimators[0]} with a fixed number of replicates "
            "calibrates on nothing",
            fix="--replicates auto, or the estimator shrunk or shrunk_plug_in",
        )
    trained = load_run(run, device=device)
    other = None if calibration_run is None else load_run(calibration_run, device=device)
    wanted = read_conditions(conditions)
    adata = load(cells, columns=columns, layer=layer, vehicle=vehicle, run=trained)
    validate(adata)
    given = {"asked": estimator is not None, "calibration": calibration_out is not None}
    settings = _known_estimator(settings, adata, wanted, **given)
    estimator = settings.estimators[0]
    # predict fits its own, once the cells of the wanted conditions are taken out.
    sampler = CellSampler.load(samplers) if samplers else None
    found = predict_conditions(
        trained, adata, wanted, settings, sampler=sampler, calibration_run=other
    )
    write_predictions(found.values[estimator], out)
    if calibration_out is not None:
        write_predictions(found.calibrated[estimator], calibration_out)
    if plots is not None:
        _page(found, estimator, other or trained, adata).write(plots)
    row = _prediction_row(found, settings)
    if withheld is not None:
        read = {"layer": layer, "columns": columns, "vehicle": vehicle}
        row |= _withheld_row(trained, withheld, wanted, seed=seed, **read)
    title = "wrote {}: {} conditions x {:,} genes".format(out, *found.values[estimator].shape)
    show_table([row], title=title, as_json=as_json)
    if not as_json:
        known = found.measured, found.calibrated.get(estimator, found.measured.head(0))
        say(f"{prediction_answer(*known)} No value is a p-value: nothing was measured.")


def _known_estimator(
    settings: PredictSettings,
    adata: AnnData,
    wanted: pd.DataFrame,
    *,
    asked: bool,
    calibration: bool,
) -> PredictSettings:
    """The settings with an estimator that these cells allow, where none was asked for."""
    from perturbgen.predict import read_wanted, vehicle_of

    if not asked:
        settings = settings.feasible(adata.obs, read_wanted(wanted), vehicle=vehicle_of(adata))
    if calibration and not settings.calibrates:
        raise ConfigError(
            "--calibration-out: no other compound was measured in a cell type to predict",
            fix="leave it out",
        )
    return settings


def _page(found: Prediction, estimator: str, judge: TrainedRun, cells: AnnData) -> Page:
    """The page of a prediction; ``judge`` is the run whose measured conditions it is judged by."""
    import pandas as pd

    from perturbgen.predict import prediction_page, trained_conditions

    calibrated = found.calibrated.get(estimator, pd.DataFrame())
    seen = trained_conditions(judge, cells.obs)
    symbols = next((cells.var[name] for name in _SYMBOLS if name in cells.var), None)
    return prediction_page(
        found.values[estimator],
        measured=found.measured,
        calibrated=calibrated,
        remembered=int(calibrated.index.isin(seen).sum()),
        symbols=None if symbols is None else symbols.astype(str).to_dict(),
    )


def _prediction_row(found: Prediction, settings: PredictSettings) -> dict[str, Any]:
    """The calibration and the checks of a prediction, in a row; nothing of what was not done."""
    estimator = settings.estimators[0]
    row: dict[str, Any] = {"estimator": estimator}
    if settings.draws and settings.replicates is not None:
        row["replicates"] = settings.replicates
    if len(found.scores):
        row["replicates"] = int(found.scores.index[-1])
        row["calibration_mrrmse"] = float(found.scores.iloc[-1])
    if estimator in found.shrinkage:
        for kind, factors in found.shrinkage[estimator].factors.iterrows():
            row[f"factors {kind}"] = " ".join(f"{value:.2f}" for value in factors)
        row["noise"] = found.shrinkage[estimator].noise
    for kind, ratios in found.checks.iterrows():
        row |= {f"{name} {kind}": float(value) for name, value in ratios.dropna().items()}
    return row


def _withheld_row(
    run: TrainedRun, path: Path, wanted: pd.DataFrame, *, seed: int, **options: Any
) -> dict[str, float]:
    """How likely the model finds the withheld cells of the wanted conditions, on average."""
    from perturbgen.core.tables import conditions_of
    from perturbgen.predict import read_wanted, withheld_likelihood

    cells = load(path, run=run, **options)
    cells = cells[conditions_of(cells.obs).isin(read_wanted(wanted))]
    table = withheld_likelihood(run, cells.copy(), seed=seed)
    log.info("likelihood of %d withheld cells of %d conditions", table["cells"].sum(), len(table))
    return {
        "withheld_nll_per_gene": float(table["nll"].mean()),
        "gain_over_vehicle": float(table["gain"].mean()),
    }


class _Member(NamedTuple):
    """A name, the predictions of wanted conditions, and of measured ones not shown to it."""

    name: str
    wanted: Path
    known: Path


def _ensemble(
    members: Annotated[
        list[str], typer.Argument(help="NAME=PREDICTIONS,CALIBRATION: two parquet files of each.")
    ],
    truth: Annotated[
        Path, typer.Option(help="The measured DE table: de_train.parquet or another one.")
    ],
    out: _Predictions,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Combine predictions by non-negative weights of any sum, found on withheld, measured
    conditions.

    CALIBRATION holds a member's predictions of measured conditions that it did not learn from, the
    same ones for every member: perturbgen predict --calibration-out writes them for a generative
    model; a baseline is fitted without them. The gain is over the best member, with weights found
    without the condition's compound, and has a 95 % interval.

    Example: [bold]perturbgen ensemble vae=vae.parquet,vae_known.parquet
    xgb=xgb.parquet,xgb_known.parquet --truth de_train.parquet --out predictions.parquet[/bold]
    """
    import numpy as np

    from perturbgen.compare import read_effects
    from perturbgen.predict import aligned, fit_ensemble

    check_output(out, ".parquet")
    chosen = _read_members(members)
    wanted = {member.name: read_effects(member.wanted) for member in chosen}
    known = {member.name: read_effects(member.known) for member in chosen}
    # A member that lacks a condition would silently count as less than it is.
    for name, table in wanted.items():
        aligned(table, wanted[chosen[0].name], name)
    first = known[chosen[0].name]
    measured = read_effects(truth)
    _require_truth(measured, first, truth, chosen[0].known)
    measured = measured.loc[first.index, first.columns]
    found = fit_ensemble(known, measured, rng=np.random.default_rng(seed))
    write_predictions(found.apply(wanted), out)
    show_table([found.summary(known, measured)], title=f"wrote {out}", as_json=as_json)


def _read_members(texts: list[str]) -> list[_Member]:
    """Members as they are typed, each name once."""
    members = []
    for text in texts:
        name, _, files = text.partition("=")
        wanted, _, known = files.partition(",")
        if not (name and wanted and known):
            raise ConfigError(f"member {text!r}", expected="NAME=PREDICTIONS,CALIBRATION")
        members.append(_Member(name, Path(wanted), Path(known)))
    # the weights go by name: a second one would take the place of the first
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"a name stands twice: {shorten(names)}", expected="another name for each member"
        )
    return members


def _require_truth(table: pd.DataFrame, known: pd.DataFrame, path: Path, known_path: Path) -> None:
    """The table of measured values has every calibration condition and gene."""
    conditions = known.index[~known.index.isin(table.index)]
    absent = {
        "conditions": [" | ".join(map(str, key)) for key in conditions],
        "genes": list(known.columns[~known.columns.isin(table.columns)]),
    }
    for what, names in absent.items():
        if names:
            raise SchemaError(
                f"{path} does not have {len(names)} {what} of {known_path}: {shorten(names)}",
                expected="the measured values of every calibration condition",
            )


VERBS = {"predict": _predict, "ensemble": _ensemble}
