"""From simulated competition files to a scored submission: cDGD and cNB-VAE against zeros, means
and the seed's way.

    python experiments/op3_semireal/run.py                       # preset small, three seeds
    python experiments/op3_semireal/run.py --set preset=op3      # the real layout

The real layout comes with real baseline means and signatures.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
from pydantic import Field

sys.path.insert(0, str(Path(__file__).parent))
from ceilings import CEILINGS, ceilings
from generative import CALIBRATION, KEY, NAMES, Generative, Predictions, is_wanted, kept
from tables import contributions, score_rows

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.core.config import Settings
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError
from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path, require_folder
from perturbgen.core.runs import create_run, find_run
from perturbgen.core.tables import read_frame, with_compound
from perturbgen.generate import CellSampler
from perturbgen.predict import fit_ensemble, mrrmse, read_wanted, without

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.train import TrainedRun

HERE = Path(__file__).parent
ENSEMBLE = "ensemble"
log = logging.getLogger("perturbgen.experiments.op3_semireal")


class Experiment(Settings):
    """The whole of config.toml; ``train`` is what `perturbgen train` takes, but for the data and
    the kind of model.
    """

    preset: str
    genes: int = Field(ge=100)
    seeds: tuple[int, ...] = Field(min_length=1)
    simulation: list[str]
    replicates: int = Field(ge=2)
    latent: str
    models: list[str]
    withheld_known: float = Field(gt=0, lt=1)
    baselines: list[str]
    ensemble: list[str]
    train: dict[str, Any]


def main(
    config: Annotated[Path, typer.Argument(help="Configuration file.")] = HERE / "config.toml",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: seeds=[3]")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where the run directory is made.")] = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run directory, with its own settings.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate, train, predict the withheld conditions by every estimator, score, submit, report;
    for each seed.

    What is done is kept: after an interrupt, --resume takes it up again.

    Example: python experiments/op3_semireal/run.py --set preset=tiny --set seeds=[0]
    --set replicates=6
    """
    if resume is not None:
        if overrides:
            raise ConfigError(
                "--set does not go with --resume, which keeps what was made",
                fix="leave one of them out",
            )
        resume = find_run(resume)
        config = require_folder(resume, "run directory") / "config.toml"
    settings = Experiment.load(config, overrides=overrides or [])
    if dry_run:
        say(settings.to_toml())
        return
    run = resume or create_run(runs, "op3-semireal", settings, seed=settings.seeds[0])
    ratios = {}
    for seed in settings.seeds:
        truth, predictions = one_seed(settings, run / f"seed-{seed}", seed)
        ratios[seed] = {name: mrrmse(values, truth) for name, values in predictions.items()}
    scores = pd.DataFrame(ratios)
    write_table(scores.rename_axis("prediction"), run / "scores.csv", index=True)
    title = f"MRRMSE on the withheld conditions, preset {settings.preset}; ratio is to zeros"
    show_table(score_rows(scores), title=title, as_json=as_json)
    if not as_json:
        models = [NAMES[kind] for kind in settings.models]
        steps = contributions(scores, models, settings.replicates)
        show_table(steps, title="what each step contributes to the ratio; negative is better")


def one_seed(settings: Experiment, folder: Path, seed: int) -> tuple[pd.DataFrame, Predictions]:
    """The truth of the withheld conditions and all predictions of it, with a report and a
    submission.
    """
    from perturbgen.data import read_competition, write_h5ad

    competition = simulated(settings, folder, seed)
    truth, measured = (
        read_de(competition / "de_truth.parquet"),
        read_de(competition / "de_train.parquet"),
    )
    wanted = truth.index.to_frame(index=False)
    cells = without(read_competition(competition), read_wanted(wanted))
    vehicle = str(cells.uns["vehicle"])
    hidden = hidden_known(settings, cells, measured.index, wanted, seed)
    if not (folder / "counts.h5ad").exists():
        write_h5ad(cells, folder / "counts.h5ad")
    sampler = CellSampler.of(cells, seed=seed)
    found = dict(baseline_predictions(settings, measured, truth.index, hidden, seed))
    for kind in settings.models:
        trained = train(settings, folder, cells, hidden, kind, seed)
        options = {"latent": settings.latent, "replicates": settings.replicates, "seed": seed}
        make = Generative(trained, cells, wanted, sampler, **options)
        found |= kept(folder / f"{kind}.parquet", make)
    found |= ceilings(competition, cells, truth, vehicle=vehicle)
    found[ENSEMBLE] = combined(settings, found, measured, seed)
    found = {
        name: values.loc[truth.index, truth.columns]
        for name, values in found.items()
        if is_wanted(name)
    }
    report(folder, competition, truth, found)
    return truth, {"zeros": truth * 0} | found


def simulated(settings: Experiment, folder: Path, seed: int) -> Path:
    """The competition's files, made up; once."""
    from perturbgen.simulation import simulate

    done = folder / "competition"
    if done.exists():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"overrides": settings.simulation}
    if settings.preset.startswith("op3"):
        op3 = data_folder() / "op3"
        options |= {
            "overrides": [f"expression.genes={settings.genes}", *settings.simulation],
            "layout": op3,
            "baseline": op3 / "celltype_baseline_means.csv",
            "signatures": op3 / "de_ranks_4x135x6349.npz",
        }
        if settings.preset == "op3":
            options["effects"] = op3 / "compound_effects.csv"
        else:
            # its genes are the best expressed ones, which have fewer zeros
            options["overrides"].insert(1, "depth.zero_fraction=0.85")
    with atomic_path(done) as part:
        simulate(settings.preset, seed=seed, out=part, **options)
    return done


def read_de(path: Path) -> pd.DataFrame:
    """A DE file of the competition, conditions (cell_type, compound) x genes."""
    table = pd.read_parquet(path).rename(columns={"sm_name": "compound"})
    table = table.drop(
        columns=[name for name in ("id", "sm_lincs_id", "SMILES", "control") if name in table]
    )
    return table.set_index(KEY).astype(float)


def hidden_known(
    settings: Experiment, cells: AnnData, measured: pd.MultiIndex, wanted: pd.DataFrame, seed: int
) -> pd.MultiIndex:
    """Some of the known compounds in the target cell types, which models do not see, so that they
    calibrate on them.
    """
    kinds = wanted["cell_type"].unique()
    flagged = set(cells.obs.loc[cells.obs["control"].astype(bool), "compound"].astype(str))
    known = sorted({c for kind, c in measured if kind in kinds} - flagged)
    rng = np.random.default_rng([seed, 6])
    chosen = set(rng.permutation(known)[: max(2, round(settings.withheld_known * len(known)))])
    return pd.MultiIndex.from_tuples(
        [key for key in measured if key[0] in kinds and key[1] in chosen], names=KEY
    )


def baseline_predictions(
    settings: Experiment,
    measured: pd.DataFrame,
    wanted: pd.MultiIndex,
    hidden: pd.MultiIndex,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Means and simple models of the measured DE rows; those of the ensemble predict the hidden
    rows without them.
    """
    from perturbgen.baselines import make

    def fitted(name: str, rows: pd.DataFrame, asked: pd.MultiIndex) -> pd.DataFrame:
        return make(name).fit(rows, rng=np.random.default_rng(seed)).predict(asked)

    rest = measured[~measured.index.isin(hidden)]
    found = {name: fitted(name, measured, wanted) for name in settings.baselines}
    return found | {CALIBRATION + name: fitted(name, rest, hidden) for name in settings.ensemble}


def train(
    settings: Experiment, folder: Path, cells: AnnData, hidden: pd.MultiIndex, kind: str, seed: int
) -> TrainedRun:
    """A model that never saw the hidden conditions; one that was begun is gone on with."""
    from perturbgen.train import RunSettings, load_run, train_once

    make_split(cells, hidden, seed).write(folder / "split.csv")
    data = {"path": str(folder / "counts.h5ad"), "split": str(folder / "split.csv")}
    base = {**settings.train, "name": kind, "seed": seed, "data": data}
    base["model"] = {**base.get("model", {}), "kind": kind}
    if kind == "dgd":
        base.pop("annealing", None)  # of the VAE's KL term
    return load_run(
        train_once(RunSettings.load(base=base), runs=folder / "runs", accelerator="cpu")
    )


def make_split(cells: AnnData, hidden: pd.MultiIndex, seed: int) -> Any:
    """Most cells train, one in twenty validates, and those of the hidden conditions calibrate."""
    from perturbgen.core.tables import conditions_of
    from perturbgen.data import Split

    chance = np.random.default_rng([seed, 7]).random(cells.n_obs)
    parts = pd.Series(np.where(chance < 0.05, "validation", "train"), cells.obs.index, name="part")
    parts[conditions_of(cells.obs).isin(hidden)] = "calibration"
    return Split(parts.rename_axis("cell"), "known compounds hidden in the target cell types")


def combined(
    settings: Experiment, found: Predictions, measured: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """The weighted sum of shrunk models and some baselines, weights from the hidden known
    conditions.
    """
    shrunk = [
        f"{NAMES[kind]}: {name}, shrunk"
        for kind in settings.models
        for name in ("anchored t", "plug-in t")
    ]
    names = [*shrunk, *settings.ensemble]
    known = {name: found[CALIBRATION + name] for name in names}
    answered = known[shrunk[0]].index
    rng = np.random.default_rng([seed, 8])
    truth = measured.loc[answered]
    ensemble = fit_ensemble(
        {name: values.loc[answered] for name, values in known.items()}, truth, rng=rng
    )
    low, high = ensemble.interval
    log.info(
        "ensemble gains %.4f [%.4f, %.4f] on hidden conditions; weights\n%s",
        ensemble.gain,
        low,
        high,
        ensemble.weights.round(3),
    )
    return ensemble.apply({name: found[name] for name in names})


def report(folder: Path, competition: Path, truth: pd.DataFrame, predictions: Predictions) -> None:
    """The scorecard's page, and a generative prediction as a submission that is checked."""
    from perturbgen import submission
    from perturbgen.evaluate import report_page, scorecard

    everything = {"zeros": truth * 0} | dict(predictions)
    weak = [name for name in everything if ":" not in name and name not in (ENSEMBLE, *CEILINGS)]
    path = competition / "conditions.csv"
    places = with_compound(read_frame(path, text=("layout",)), path)
    about = {"conditions": places.set_index(KEY), "layout": "layout", "clusters": "compound"}
    card = replace(scorecard(truth, everything, baselines=weak, **about), references=CEILINGS)
    report_page(card, truth, everything, title="op3_semireal").write(folder / "report.html")
    write_table(card.table, folder / "scorecard.csv")
    write_table(card.stratum_table, folder / "strata.csv")
    chosen = next(name for name in predictions if name.endswith("anchored t, shrunk"))
    ids, like = competition / "id_map.csv", competition / "sample_submission.csv"
    submission.write(predictions[chosen], ids, like, folder / "submission.csv")
    findings = submission.check(folder / "submission.csv", ids, like)
    log.info("report %s", folder / "report.html")
    log.info("submission %s (%s; %d findings)", folder / "submission.csv", chosen, len(findings))


if __name__ == "__main__":
    run_experiment(main)
