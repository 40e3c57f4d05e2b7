"""From simulated competition files to a scored submission: cDGD and cNB-VAE against zeros, means and the seed's way.

python experiments/op3_semireal/run.py                         # preset small
python experiments/op3_semireal/run.py --set preset=op3        # the real layout, baseline means and signatures
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
from pydantic import Field

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.config import Settings, create_run, load_settings, to_toml
from perturbgen.console import say, show_table
from perturbgen.predict.bench import Wells
from perturbgen.predict.pipeline import predict
from perturbgen.predict.settings import PredictSettings
from perturbgen.predict.source import in_run_genes, make_sampler, read_wanted, without
from perturbgen.predict.task import Task, make_task
from perturbgen.sampling.plan import Plan

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.sampling import CellSampler
    from perturbgen.train import TrainedRun

HERE = Path(__file__).parent
KEY = ["cell_type", "compound"]
NAMES = {"nbvae": "cNB-VAE", "dgd": "cDGD"}
ROUTES = ("prior", "posterior", "control")
log = logging.getLogger("perturbgen.experiments.op3_semireal")


class Experiment(Settings):
    """The whole of config.toml; ``train`` is what `perturbgen train` takes, but for the data and the kind of model."""

    preset: str
    genes: int = Field(ge=100)
    seed: int = Field(ge=0)
    simulation: list[str]
    replicates: int = Field(ge=2)
    latent: str
    models: list[str]
    withheld_known: float = Field(gt=0, lt=1)
    baselines: list[str]
    train: dict[str, Any]


def main(
    config: Annotated[Path, typer.Argument(help="Configuration file.")] = HERE / "config.toml",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key: seed=3")] = None,
    runs: Annotated[Path, typer.Option(help="Where the run directory is made.")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate, train, predict the withheld conditions by every estimator, score, submit, report.

    Example: python experiments/op3_semireal/run.py --set seed=1 --set replicates=20
    """
    settings = load_settings(Experiment, config, overrides=overrides or [])
    if dry_run:
        say(to_toml(settings))
        return
    run = create_run(runs, "op3-semireal", settings, seed=settings.seed)
    folder = simulated(settings, run / "competition")
    truth, predictions = predict_all(settings, run, folder)
    rows = scores(truth, predictions)
    show_table(rows, title=f"withheld conditions, preset {settings.preset}, seed {settings.seed}", as_json=as_json)
    pd.DataFrame(rows).to_csv(run / "scores.csv", index=False)
    report(run, folder, truth, predictions)


def simulated(settings: Experiment, folder: Path) -> Path:
    """The competition's files, made up."""
    from perturbgen.simulate import simulate

    if settings.preset != "op3":
        return simulate(settings.preset, seed=settings.seed, overrides=settings.simulation, out=folder)
    op3 = data_folder() / "op3"
    sources = {
        "layout": op3,
        "baseline": op3 / "celltype_baseline_means.csv",
        "signatures": op3 / "de_ranks_4x135x6349.npz",
    }
    overrides = [f"expression.genes={settings.genes}", "depth.zero_fraction=0.85", *settings.simulation]
    return simulate("op3", seed=settings.seed, overrides=overrides, out=folder, **sources)


def predict_all(settings: Experiment, run: Path, folder: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The truth of the withheld conditions, and every prediction of it by name."""
    from perturbgen.data import read_competition, write_h5ad

    truth, de_train = read_de(folder / "de_truth.parquet"), read_de(folder / "de_train.parquet")
    predictions = {"zeros": truth * 0} | baseline_predictions(settings, de_train, truth.index)
    cells = read_competition(folder)
    write_h5ad(cells, run / "counts.h5ad")
    wanted = truth.index.to_frame(index=False)
    cells = without(cells, read_wanted(wanted))
    sampler = make_sampler(cells, seed=settings.seed)
    for kind in settings.models:
        trained = train(settings, run, cells, de_train.index, wanted, kind)
        found = generative(settings, trained, cells, wanted, sampler, truth)
        predictions |= {f"{NAMES[kind]}: {name}": values for name, values in found.items()}
    return truth, predictions


def read_de(path: Path) -> pd.DataFrame:
    """A DE file of the competition, conditions (cell_type, compound) x genes."""
    table = pd.read_parquet(path).rename(columns={"sm_name": "compound"})
    table = table.drop(columns=[name for name in ("id", "sm_lincs_id", "SMILES", "control") if name in table])
    return table.set_index(KEY).astype(float)


def baseline_predictions(settings: Experiment, train: pd.DataFrame, wanted: pd.MultiIndex) -> dict[str, pd.DataFrame]:
    """Means and simple models of the measured DE rows."""
    from perturbgen.baselines import make

    return {
        name: make(name).fit(train, rng=np.random.default_rng(settings.seed)).predict(wanted)
        for name in settings.baselines
    }


def train(
    settings: Experiment, run: Path, cells: AnnData, measured: pd.MultiIndex, wanted: pd.DataFrame, kind: str
) -> TrainedRun:
    """A model that never saw some of the known compounds in the target cell types, so that they calibrate it."""
    from perturbgen.train import RunSettings, load_run
    from perturbgen.train import run as running

    split = run / "split.csv"
    hide_known(settings, cells, measured, wanted).write(split)
    data = {"path": str(run / "counts.h5ad"), "split": str(split)}
    base = {**settings.train, "name": kind, "seed": settings.seed, "data": data}
    base["model"] = {**base.get("model", {}), "kind": kind}
    if kind == "dgd":
        base.pop("annealing", None)  # of the VAE's KL term
    return load_run(running.train(load_settings(RunSettings, base=base), runs=run / "runs", accelerator="cpu"))


def hide_known(settings: Experiment, cells: AnnData, measured: pd.MultiIndex, wanted: pd.DataFrame) -> Any:
    """A split of cells: most train, one in twenty validates, and those of some known conditions calibrate."""
    from perturbgen.data.splits import Split

    kinds = wanted["cell_type"].unique()
    flagged = set(cells.obs.loc[cells.obs["control"].astype(bool), "compound"].astype(str))
    known = sorted({c for kind, c in measured if kind in kinds} - flagged)
    rng = np.random.default_rng([settings.seed, 6])
    hidden = set(rng.permutation(known)[: max(2, round(settings.withheld_known * len(known)))])
    obs = cells.obs
    parts = pd.Series(np.where(rng.random(len(obs)) < 0.05, "validation", "train"), obs.index, name="part")
    parts[(obs["cell_type"].isin(kinds) & obs["compound"].astype(str).isin(hidden)).to_numpy()] = "calibration"
    return Split(parts.rename_axis("cell"), "known compounds hidden in the target cell types")


def generative(
    settings: Experiment, trained: TrainedRun, cells: AnnData, wanted: pd.DataFrame, sampler: CellSampler,
    truth: pd.DataFrame,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Predictions of a run by all estimators, by every latent route, and in the seed's way."""
    k = settings.replicates
    base = {"seed": settings.seed, "latent": settings.latent, "replicates": k}
    every = PredictSettings(estimators=("mean_t", "plug_in", "shrunk", "shrunk_plug_in"), **base)
    steps = tuple(sorted({1, 2, 6} & set(range(1, k))))
    full = predict(trained, cells, wanted, every, sampler=sampler, keep=steps)
    log.info("%s: checks\n%s\nfactors\n%s", trained.path.name, full.checks, full.factors["shrunk"])
    found = seed_ways(trained, cells, wanted, sampler, settings.seed)
    found |= {"one draw" if n == 1 else f"t averaged, K = {n}": values for n, values in full.by_replicates.items()}
    names = {
        "mean_t": f"t averaged, K = {k}", "plug_in": "plug-in t",
        "shrunk": f"t averaged, K = {k}, shrunk", "shrunk_plug_in": "plug-in t, shrunk",
    }  # fmt: skip
    found |= {names[name]: values for name, values in full.values.items()}
    for route in ROUTES:
        if route != settings.latent:
            other = PredictSettings(estimators=("mean_t",), **(base | {"latent": route, "replicates": 2}))
            found[f"t averaged, K = 2, latent {route}"] = predict(
                trained, cells, wanted, other, sampler=sampler
            ).values["mean_t"]
    return {name: values.loc[truth.index, truth.columns] for name, values in found.items()}


class MedianPlan(Plan):
    """Every well has its median number of cells, all of the median depth."""

    def libraries(self, replicate: int) -> list[np.ndarray]:
        """The same in every replicate."""
        counts = self.sampler.quantiles(self.wells, [0.5]).iloc[:, 0].to_numpy(int)
        depth = float(np.exp(np.median(self.sampler.table.log_libraries)))
        return [np.full(n, depth) for n in counts]


def seed_ways(
    trained: TrainedRun, cells: AnnData, wanted: pd.DataFrame, sampler: CellSampler, seed: int
) -> dict[str, pd.DataFrame]:
    """The seed's pipeline (decoder means of median cells, prior latents, short design), and means in our own design."""
    settings = PredictSettings(estimators=("mean_t",), replicates=1, latent="prior", seed=seed)
    index = read_wanted(wanted)
    task = make_task(trained, in_run_genes(trained, cells), index, settings, sampler=sampler, calibration_run=None)
    plan = MedianPlan(sampler, task.wanted.plan.conditions, seed)
    return {
        "the seed's way": noise_free(task, task.wanted._replace(plan=plan), design="~0 + {group} + donor"),
        "noise-free means": noise_free(task, task.wanted),
    }


def noise_free(task: Task, group: Wells, **options: Any) -> pd.DataFrame:
    """Signed -log10 p of the means of the wells' cells, as if they were counts."""
    sums = group.generator.expected_sums(group.plan, group.wells, replicate=1)
    cells = np.array([len(size) for size in group.plan.libraries(1)])
    table = task.bench.fit(task.bench.samples(group, sums, cells), allow_fractional=True, **options)
    return table.signed_log10_p.reindex(group.conditions).fillna(0.0)


def scores(truth: pd.DataFrame, predictions: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """MRRMSE of every prediction, and its ratio to that of zeros."""
    from perturbgen.evaluate import score

    metric = "mean_rowwise_rmse"
    found = {
        name: float(score(truth, values, metrics=[metric], name=name).loc[metric].mean())
        for name, values in predictions.items()
    }
    return [{"prediction": name, "MRRMSE": value, "ratio": value / found["zeros"]} for name, value in found.items()]


def report(run: Path, folder: Path, truth: pd.DataFrame, predictions: dict[str, pd.DataFrame]) -> None:
    """The scorecard's page, and the best generative prediction as a submission that is checked."""
    from perturbgen import submission
    from perturbgen.evaluate import scorecard
    from perturbgen.evaluate.report import write_report

    weak = ["zeros", *(name for name in predictions if ":" not in name and name != "zeros")]
    card = scorecard(truth, predictions, baselines=weak)
    write_report(run / "report.html", card, truth, predictions, title="op3_semireal")
    chosen = next(name for name in predictions if name.endswith("plug-in t, shrunk"))
    ids, like = folder / "id_map.csv", folder / "sample_submission.csv"
    submission.write(predictions[chosen], ids, like, run / "submission.csv")
    findings = submission.check(run / "submission.csv", ids, like)
    say(f"report       {run / 'report.html'}")
    say(f"submission   {run / 'submission.csv'} ({chosen}; {len(findings)} findings)")


if __name__ == "__main__":
    run_experiment(main)
