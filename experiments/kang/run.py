"""Stimulated cells of a cell type that was only ever seen unstimulated: predicted, tested, compared
with the real ones.

python experiments/kang/run.py                 # seeds 0, 1, 2 of five cell types and two models
python experiments/kang/run.py --seeds 1       # a first look
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import numpy as np
import pandas as pd
import typer
from pictures import draw_page
from pydantic import Field

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.core.config import Settings, merge
from perturbgen.core.console import say, show_table, track
from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path, require_file, slug
from perturbgen.predict import Wells

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun

HERE = Path(__file__).parent
SAMPLE: Final = ["cell_type", "compound", "donor"]
WELLS: Final = 4  # that a sample's cells are dealt out to
OTHERS: Final = "mean of the other types"
NAMES: Final = {"nbvae": "cNB-VAE", "dgd": "cDGD"}
log = logging.getLogger("perturbgen.experiments.kang")


class Experiment(Settings):
    """The whole of config.toml; ``train`` and ``models`` are what `perturbgen train` takes, but for
    the data.
    """

    stimulus: str
    replicates: int = Field(ge=1)
    likelihood_samples: int = Field(ge=1)
    top: int = Field(ge=1)
    validation: float = Field(gt=0, lt=1)
    train: dict[str, Any]
    models: dict[str, dict[str, Any]]


class Result(NamedTuple):
    """t of the hidden condition by estimator; how likely its cells are as what they are, and as
    control cells.
    """

    t: dict[str, pd.Series]
    nll: float
    nll_as_control: float


@dataclass(frozen=True)
class Fold:
    """A cell type of which the stimulated cells are withheld until the end."""

    cells: AnnData
    kind: str
    stimulus: str

    @property
    def condition(self) -> pd.MultiIndex:
        """What is to be predicted."""
        return pd.MultiIndex.from_tuples(
            [(self.kind, self.stimulus)], names=["cell_type", "compound"]
        )

    @cached_property
    def hidden(self) -> np.ndarray:
        """Which cells are hidden (cells,)."""
        obs = self.cells.obs
        return ((obs["cell_type"] == self.kind) & (obs["compound"] == self.stimulus)).to_numpy()

    @cached_property
    def seen(self) -> AnnData:
        """All other cells."""
        return self.cells[~self.hidden].copy()

    @cached_property
    def sampler(self) -> CellSampler:
        """Numbers of cells and library sizes, learnt from them."""
        from perturbgen.generate import CellSampler

        return CellSampler.of(self.seen, seed=0)


def main(
    config: Annotated[Path, typer.Argument(help="Configuration file.")] = HERE / "config.toml",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: replicates=5")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="kang_ifnb.h5ad; of the real data, unless given.")
    ] = None,
    columns: Annotated[Path, typer.Option(help="Its column map.")] = HERE.parent
    / "columns"
    / "kang.toml",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 3,
    out: Annotated[
        Path, typer.Option(help="Runs and results; what is there is not computed again.")
    ] = Path("runs/kang"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Hide one cell type's stimulated cells, predict them from all the rest, compare their DE with
    the real one.

    Example: python experiments/kang/run.py --seeds 1 --set replicates=5
    """
    settings = Experiment.load(config, overrides=overrides or [])
    if dry_run:
        say(settings.to_toml())
        return
    cells = read_cells(
        require_file(data or data_folder() / "counts" / "kang_ifnb.h5ad", "real cells"), columns
    )
    folds = [
        Fold(cells, kind, settings.stimulus)
        for kind in sorted(cells.obs["cell_type"].astype(str).unique())
    ]
    path = save_cells(cells, out)
    jobs = [
        (fold, model, seed) for seed in range(seeds) for fold in folds for model in settings.models
    ]
    found: dict[tuple[str, str], list[Result]] = {}
    for fold, model, seed in track(jobs, "hidden cell types x models x seeds"):
        found.setdefault((fold.kind, model), []).append(
            result(settings, fold, path, model, seed, out)
        )
    real = de_table(cells).t
    rows = [
        row
        for fold in folds
        for row in fold_rows(settings, fold, real.loc[fold.condition[0]], found)
    ]
    show_table(rows, title=f"hidden stimulated cells, {seeds} seeds", as_json=as_json)
    write_table(pd.DataFrame(rows), out / "scores.csv")
    summarise(settings, rows, as_json=as_json)
    predicted = {
        (kind, NAMES[model]): results[0].t["plug-in t"] for (kind, model), results in found.items()
    }
    say(f"wrote {draw_page(rows, real, predicted).write(out / 'kang.html')}")


def read_cells(path: Path, columns: Path) -> AnnData:
    """The cells, a plate for each patient; each sample's are dealt out to wells, from which the
    samplers learn.
    """
    from perturbgen.data import read_h5ad

    cells = read_h5ad(path, columns)
    obs = cells.obs
    obs["plate"] = obs["donor"].astype(str)
    number = obs.groupby(SAMPLE, observed=True).cumcount() % WELLS
    obs["well"] = obs["compound"].astype(str) + " " + number.astype(str)
    return cells


def save_cells(cells: AnnData, out: Path) -> Path:
    """The cells as a file that runs are trained from."""
    from perturbgen.data import write_h5ad

    path = out / "cells.h5ad"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_h5ad(cells, path)
    return path


def de_table(*parts: AnnData) -> DETable:
    """limma's table of cells or wells, summed by patient.

    One fit for all cell types: within a type, two patients leave a single residual degree of
    freedom.
    """
    import anndata

    from perturbgen.data import pseudobulk
    from perturbgen.de import limma_table
    from perturbgen.predict import vehicle_of

    bulk = pseudobulk(anndata.concat(parts), by=SAMPLE)
    design = "~0 + {group} + donor"
    return limma_table(
        bulk,
        design=design,
        group="compound",
        control=vehicle_of(parts[0]),
        by="cell_type",
        joint=True,
    )


def train(
    settings: Experiment, fold: Fold, path: Path, model: str, seed: int, out: Path
) -> TrainedRun:
    """A model that never saw the hidden cells; one that was trained with the same settings before
    is taken.
    """
    from perturbgen.data import Split
    from perturbgen.train import RunSettings, load_run, train_once

    rng = np.random.default_rng([seed, 1])
    parts = np.where(
        rng.random(fold.cells.n_obs) < settings.validation, "validation", "train"
    ).astype(object)
    parts[fold.hidden] = "hidden"
    split = out / "splits" / f"{slug(fold.kind)}-{settings.validation:g}-s{seed}.csv"
    Split(
        pd.Series(parts, fold.cells.obs_names.rename("cell")), f"{settings.stimulus} of {fold.kind}"
    ).write(split)
    ours = {
        "name": f"{model}-{slug(fold.kind)}",
        "seed": seed,
        "data": {"path": str(path), "split": str(split)},
    }
    base = merge(settings.train, settings.models[model], {**ours, "model": {"kind": model}})
    return load_run(train_once(RunSettings.load(base=base), runs=out / "runs", accelerator="cpu"))


def result(
    settings: Experiment, fold: Fold, path: Path, model: str, seed: int, out: Path
) -> Result:
    """What a model predicts; read from its file where it was computed before."""
    from perturbgen.predict import run_fingerprint

    run = train(settings, fold, path, model, seed, out)
    asked = f"{run_fingerprint(run.path)} {settings.replicates} {settings.likelihood_samples}"
    file = out / "results" / f"{run.path.name}-{sha256(asked.encode()).hexdigest()[:12]}.json"
    if not file.exists():
        t = predicted_t(fold, run, replicates=settings.replicates, seed=seed)
        nll = likelihood(fold, run, samples=settings.likelihood_samples, seed=seed)
        with atomic_path(file) as part:
            part.write_text(
                json.dumps({"t": {name: values.to_dict() for name, values in t.items()}, **nll})
            )
    found = json.loads(file.read_text())
    return Result({name: pd.Series(values) for name, values in found.pop("t").items()}, **found)


def predicted_t(fold: Fold, run: TrainedRun, *, replicates: int, seed: int) -> dict[str, pd.Series]:
    """t of the hidden condition from cells generated on the latent points of the type's control
    cells.
    """
    from perturbgen.predict import Wells, vehicle_of

    group = Wells.of(run, fold.seen, fold.sampler, fold.condition, latent="control", seed=seed)
    label = fold.condition[0]
    tables = [
        de_table(fold.seen, generate(group, fold, replicate=k)) for k in range(1, replicates + 1)
    ]
    error = pd.DataFrame([table.se.loc[label] for table in tables]).mean()
    logfc = group.logfc(vehicle=vehicle_of(fold.cells), genes=fold.cells.var_names).loc[label]
    averaged = pd.DataFrame([table.t.loc[label] for table in tables]).mean()
    return {"one draw": tables[0].t.loc[label], "t averaged": averaged, "plug-in t": logfc / error}


def generate(group: Wells, fold: Fold, *, replicate: int) -> AnnData:
    """Wells of drawn cells, summed."""
    from anndata import AnnData

    sums, cells = group.generator.drawn_sums(group.plan, group.wells, replicate=replicate)
    obs = group.wells.set_axis([f"generated {i}" for i in range(len(cells))])
    return AnnData(sums, obs=obs, var=pd.DataFrame(index=fold.cells.var_names))[cells > 0].copy()


def likelihood(fold: Fold, run: TrainedRun, *, samples: int, seed: int) -> dict[str, float]:
    """Negative log-likelihood of the hidden cells, nats per gene and cell: as what they are, and as
    control cells.
    """
    from perturbgen.predict import withheld_likelihood

    cells = fold.cells[fold.hidden].copy()
    row = withheld_likelihood(run, cells, samples=samples, most=cells.n_obs, seed=seed).iloc[0]
    return {
        "nll": float(row["nll"]),
        "nll_as_control": float(row["nll"] + row["gain"] / cells.n_vars),
    }


def baselines(fold: Fold) -> dict[str, pd.Series]:
    """What the other cell types say: their t, or their log fold changes, averaged."""
    table = de_table(fold.seen)
    others = [
        label for label in table.t.index if label[1] == fold.stimulus and label[0] != fold.kind
    ]
    return {
        f"{OTHERS}: t": table.t.loc[others].mean(),
        f"{OTHERS}: log fold change": table.logfc.loc[others].mean(),
    }


def agreement(t: pd.Series, real: pd.Series, top: int) -> dict[str, float]:
    """Spearman's correlation with the real t, and the share of its top genes that are top genes of
    t, too.
    """
    best = t.abs().nlargest(top).index.intersection(real.abs().nlargest(top).index)
    return {
        "Spearman": t.reindex(real.index).corr(real, method="spearman"),
        "top genes": len(best) / top,
    }


def fold_rows(
    settings: Experiment, fold: Fold, real: pd.Series, found: dict[tuple[str, str], list[Result]]
) -> list[dict[str, Any]]:
    """The rows of a cell type, means over seeds."""
    empty = dict.fromkeys(
        ["cell type", "prediction", "Spearman", "SD", "top genes", "NLL", "NLL as control"]
    )
    nothing = {
        "prediction": "stimulated = control",
        "Spearman": 0.0,
        "top genes": settings.top / len(real),
    }
    rows = [
        nothing,
        *(
            {"prediction": k, **agreement(t, real, settings.top)}
            for k, t in baselines(fold).items()
        ),
    ]
    for model in settings.models:
        results = found[fold.kind, model]
        nll = {
            "NLL": np.mean([r.nll for r in results]),
            "NLL as control": np.mean([r.nll_as_control for r in results]),
        }
        for name in results[0].t:
            values = pd.DataFrame([agreement(r.t[name], real, settings.top) for r in results])
            spread = values["Spearman"].std() if len(values) > 1 else None
            rows.append(
                {"prediction": f"{NAMES[model]}: {name}", **values.mean(), "SD": spread, **nll}
            )
    return [{**empty, "cell type": fold.kind, **row} for row in rows]


def summarise(settings: Experiment, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """In how many cell types a prediction is better than both baselines of the other types'
    responses.
    """
    table = pd.DataFrame(rows)
    is_bar = table["prediction"].str.startswith(OTHERS)
    bar = table[is_bar].groupby("cell type")[["Spearman", "top genes"]].max()
    ours = table[table["NLL"].notna()]
    better = ours.set_index("cell type")[["Spearman", "top genes"]] > bar.loc[ours["cell type"]]
    counts = better.set_axis(ours["prediction"]).groupby(level=0, sort=False).sum()
    shown = [
        {"prediction": name, **row, "of": len(bar)} for name, row in counts.to_dict("index").items()
    ]
    show_table(
        shown, title="cell types in which both means of the other types are beaten", as_json=as_json
    )


if __name__ == "__main__":
    run_experiment(main)
