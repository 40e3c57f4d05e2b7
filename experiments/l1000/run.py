"""Embeddings of L1000 profiles against what they must beat: a simulated screen, a real plate,
ablations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
from methods import (
    Overrides,
    learn,
    linear_rows,
    made,
    network_row,
    parts_of,
    with_mechanisms,
    write_split,
)
from transfer import transfer_rows

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table, track
from perturbgen.core.errors import ConfigError
from perturbgen.core.export import write_table

if TYPE_CHECKING:
    from perturbgen.l1000.embedder import EmbedSettings

Array = np.ndarray[Any, Any]

# Of the plate, 59 drugs: --nested decides on training drugs alone which of these is used, anew in
# every fold.
PLATE_CHOICES: dict[str, Overrides] = {
    "one layer of 256, noise .5": {
        "model": {"noise": 0.5, "encoder": {"kind": "mlp", "widths": [256]}}
    },
    "one layer of 256, noise 1": {
        "model": {"noise": 1.0, "encoder": {"kind": "mlp", "widths": [256]}}
    },
}
# its four positive controls are drugs in six doses as the others are
PLATE_TYPES = ("trt_cp", "trt_poscon")
# without --nested: the same in every fold (see README)
NAMED, EPOCHS = ("one layer of 256, noise .5", 30)
PLATE: Overrides = {
    "model": {"head": {"margin_rate": None}},
    "training": {"epochs": 60, "batch_size": 64, "learning_rate": 5e-4, "head_rate": 5e-3},
    "stopping": {"patience": 12},
}
SCREEN: Overrides = {
    "training": {"epochs": 40, "batch_size": 256},
    "model": {"head": {"margin_rate": 1e-3}},
}

# The sweeps of the paper's supplement, one change each from SCREEN.
ABLATIONS: dict[str, Overrides] = {
    "as it is (CosFace .25, noise .3, 4 x 128, 32-d)": {},
    "margin 0": {"model": {"head": {"margin": 0.0}}},
    "margin .5": {"model": {"head": {"margin": 0.5}}},
    "ArcFace": {"model": {"head": {"kind": "arcface"}}},
    "sub-center ArcFace, 3": {"model": {"head": {"kind": "arcface", "centers": 3}}},
    "AdaCos": {"model": {"head": {"kind": "adacos", "margin_rate": 2e-4}}},
    "CurricularFace": {"model": {"head": {"kind": "curricular"}}},
    "Poincaré": {"model": {"head": {"kind": "poincare"}}},
    "noise 0": {"model": {"noise": 0.0}},
    "noise .5": {"model": {"noise": 0.5}},
    "depth 2 (2 x 256)": {"model": {"encoder": {"depth": 2, "growth": 256}}},
    "depth 64 (64 x 16)": {"model": {"encoder": {"depth": 64, "growth": 16}}},
    "size 4": {"model": {"size": 4}},
    "size 128": {"model": {"size": 128}},
    "plain MLP 512-256": {"model": {"encoder": {"kind": "mlp"}}},
    "three stages": {"model": {"encoder": {"kind": "three_stage"}}},
    "soft ordering": {"model": {"encoder": {"kind": "soft_ordering"}}},
    "TabNet": {"model": {"encoder": {"kind": "tabnet", "width": 64}}},
    "balanced batches, 4 a class": {"training": {"sampler": "balanced"}},
}


def main(
    what: Annotated[str, typer.Argument(help="screen, ablation, transfer or plate.")],
    data: Annotated[
        Path | None, typer.Option(help="plate: the GCTX of LJP005. Else: a screen's h5ad.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("runs/l1000"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of splits and networks.")] = 5,
    nested: Annotated[
        bool, typer.Option("--nested", help="plate: choose network and length within each fold.")
    ] = False,
    compounds: Annotated[
        int, typer.Option(min=20, help="Compounds of the simulated screen.")
    ] = 200,
) -> None:
    """Train embeddings and rank the profiles of compounds that were never trained on, beside the
    linear baselines.

    Example: python experiments/l1000/run.py screen --seeds 3

    Example: python experiments/l1000/run.py plate --data
    ../shared/data/l1000/plates/LJP005_A375_24H_X1_B19_level4_n377x978.gctx
    """
    with TemporaryDirectory() as work:
        folder = Path(work)
        if what == "plate":
            if data is None:
                raise ConfigError(
                    "plate needs --data", fix="--data LJP005_A375_24H_X1_B19_level4_n377x978.gctx"
                )
            rows = list(plate_rows(data, folder, seeds, nested=nested))
        elif what in ("screen", "ablation"):
            source = data or simulate(folder, compounds)
            choices = ABLATIONS if what == "ablation" else {"embedding": {}}
            rows = list(screen_rows(source, folder, seeds, choices, linear=what == "screen"))
        elif what == "transfer":
            source = data or simulate(folder, compounds, genetic=2 * compounds)
            rows = list(transfer_rows(source, folder, seeds, SCREEN))
        else:
            raise ConfigError(
                f"no experiment {what!r}", expected="screen, ablation, transfer or plate"
            )
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    write_table(table, out / f"{what}.csv")
    show_table(
        summary(table), title=f"{what}: compounds never trained on, mean and SD over {seeds} seeds"
    )
    say(f"wrote {out / what}.csv")


def summary(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per method, the best mAP first: mean and SD over seeds of each seed's means over
    queries.
    """
    about = ("method", "seed", "fold", "choice", "epochs", "queries")
    columns = [name for name in table if name not in about]
    per_seed = table.groupby(["method", "seed"], sort=False)[columns].mean()
    grouped = per_seed.groupby("method", sort=False)
    mean, sd = grouped.mean().sort_values("map", ascending=False), grouped.std().fillna(0)
    return [
        {
            "method": name,
            **{
                k: None
                if np.isnan(mean.loc[name, k])
                else f"{mean.loc[name, k]:.3f} ± {sd.loc[name, k]:.3f}"
                for k in mean
            },
        }
        for name in mean.index
    ]


def simulate(folder: Path, compounds: int, *, genetic: int = 0) -> Path:
    """The screen whose mechanisms all turn around with the state of the cell, which no linear map
    can undo.
    """
    from perturbgen.data import write_h5ad
    from perturbgen.simulation.screen import screen_anndata, screen_settings

    settings = screen_settings(
        "nonlinear", overrides=[f"design.compounds={compounds}", f"design.genetic={genetic}"]
    )
    adata = screen_anndata(settings, seed=0)
    write_h5ad(adata, folder / "screen.h5ad")
    return folder / "screen.h5ad"


def screen_rows(
    source: Path, folder: Path, seeds: int, choices: Mapping[str, Overrides], *, linear: bool
) -> Iterator[dict[str, Any]]:
    """A fifth of the compounds is tested, an eighth of the others decides when to stop; a draw for
    each seed.
    """
    from perturbgen.core.config import merge

    todo = [(seed, name) for seed in range(seeds) for name in choices]
    for seed, name in track(todo, "networks", len(todo)):
        base = {
            "data": {"path": str(source), "types": ["trt_cp"], "validation": 0.1, "test": 0.2},
            "seed": seed,
        }
        settings = made(merge(base, SCREEN, choices[name]))
        embedder, _ = learn(settings, folder / f"{seed}-{name}")
        train, judged = parts_of(settings, "train"), parts_of(settings, "test")
        rows = [network_row(name, embedder, judged, seed)]
        if linear:
            rows = with_mechanisms(
                [*linear_rows(train, judged, seed), *rows], embedder, train, judged, seed
            )
        yield from rows


def plate_rows(source: Path, folder: Path, seeds: int, *, nested: bool) -> Iterator[dict[str, Any]]:
    """Five folds of drugs for each seed; ``nested``: network and length are chosen within each, on
    training drugs.
    """
    todo = [(seed, fold) for seed in range(seeds) for fold in range(5)]
    for seed, fold in track(todo, "folds", len(todo)):
        here = folder / f"{seed}-{fold}"
        drug = labels_of(source)
        home = fold_of(drug, np.random.default_rng(seed))
        tested = home == fold
        choice, epochs = choose(source, here, drug, tested, seed) if nested else (NAMED, EPOCHS)
        split = write_split(here / "whole.csv", drug.index, np.where(tested, "test", "train"))
        settings = plate_settings(source, split, seed, PLATE_CHOICES[choice], epochs=epochs)
        embedder, _ = learn(settings, here / "whole", which="last")
        train, judged = parts_of(settings, "train"), parts_of(settings, "test")
        for row in linear_rows(train, judged, seed):
            yield {**row, "fold": fold}
        yield {
            **network_row("embedding", embedder, judged, seed),
            "fold": fold,
            "choice": choice,
            "epochs": epochs,
        }


def choose(
    source: Path, folder: Path, drug: pd.Series, tested: Array, seed: int
) -> tuple[str, int]:
    """The choice and the number of epochs that serve a quarter of the training drugs best, not
    trained on here.
    """
    names = np.sort(drug[~tested].unique())
    held = np.random.default_rng([seed, 1]).permutation(names)[: len(names) // 4]
    part = np.where(tested, "test", np.where(drug.isin(held), "validation", "train"))
    split = write_split(folder / "inner.csv", drug.index, part)
    found = {}
    for name, choice in PLATE_CHOICES.items():
        _, state = learn(plate_settings(source, split, seed, choice), folder / name)
        found[name] = (state.best, state.best_epoch + 1)
    best = min(found, key=lambda name: found[name][0])
    return best, found[best][1]


def plate_settings(
    source: Path, split: Path, seed: int, choice: Overrides, *, epochs: int | None = None
) -> EmbedSettings:
    """One network on the plate; all wells but the vehicle's have a class."""
    from perturbgen.core.config import merge

    data = {"path": str(source), "label": "pert_id", "types": PLATE_TYPES, "split": str(split)}
    base = {"data": data, "seed": seed}
    length = {"training": {"epochs": epochs}} if epochs else {}
    return made(merge(base, PLATE, choice, length))


def labels_of(source: Path) -> pd.Series:
    """The drug of every treated well."""
    from perturbgen.l1000.embedder.data import EmbedProfiles
    from perturbgen.l1000.embedder.settings import ProfileData

    data = ProfileData(path=source, label="pert_id", types=PLATE_TYPES)
    return EmbedProfiles.read(source).treatments(data).meta["pert_id"].astype(str)


def fold_of(drug: pd.Series, rng: np.random.Generator) -> Array:
    """The fold of every well, drugs dealt to five folds at random."""
    names = pd.unique(drug)
    return drug.map(
        dict(zip(rng.permutation(names), np.arange(len(names)) % 5, strict=True))
    ).to_numpy()


if __name__ == "__main__":
    run_experiment(main)
