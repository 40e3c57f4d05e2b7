"""Real drug signatures as ranks: 122 drugs in B and myeloid cells, told from NK and T cells and 13
known drugs.

    python experiments/real_ranks/run.py
    python experiments/real_ranks/run.py --only transfer --no-ideas

It needs the real data (see perturbgen doctor). Settings are chosen on the 13 known drugs alone
(folds that withhold some of them in both cell types). The 122 are scored once for each seed, after
the choice.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from pydantic import Field
from scipy.special import ndtri
from scipy.stats import rankdata

from perturbgen.baselines import (
    REGISTRY,
    Predictor,
    blend_weights,
    crossed,
    make,
    mimic_folds,
    nested_choice,
    out_of_fold,
    row_spearman,
)
from perturbgen.baselines.features import Components
from perturbgen.baselines.linear import bilinear_ridge
from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.core.config import Settings
from perturbgen.core.console import show_table, track
from perturbgen.core.tables import CONDITION
from perturbgen.data import KNOWN_IN_TARGETS

log = logging.getLogger("perturbgen.experiments.real_ranks")

TARGETS = ["b", "myeloid"]
PUBLISHED = {
    "cell-type mean": (0.256, 0.198),
    "compound mean": (0.247, 0.213),
    "additive": (0.301, 0.253),
    "0.3 compound mean + 0.7 cell-type mean": (0.331, 0.284),
    "ridge on 10 components": (0.315, 0.282),
}
# closed forms
BLENDED = ("transfer", "bilinear_ridge", "kernel_ridge", "neighbours", "shrunken_additive")


class Method(Settings):
    """A baseline, the settings all its candidates share, and the grid they are crossed from."""

    settings: dict[str, Any] = Field({})
    grid: dict[str, list[Any]] = Field({})


class Idea(Settings):
    """One variant, to see what an idea is worth."""

    name: str
    base: str
    settings: dict[str, Any] = Field({})
    normal_scores: bool = False


class Experiment(Settings):
    """The whole of config.toml."""

    folds: int = Field(7, ge=2)
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    methods: dict[str, Method] = Field({})
    ideas: list[Idea] = Field([])


class Task:
    """The rows that are known, the rows to predict, the folds for choosing, and what was predicted
    so far.
    """

    def __init__(
        self,
        train: pd.DataFrame,
        test: pd.DataFrame,
        smiles: pd.Series,
        folds: dict[str, pd.MultiIndex],
    ) -> None:
        self.train, self.test, self.smiles, self.folds = train, test, smiles, folds
        self.rows: list[dict[str, Any]] = []
        self.unseen: dict[
            str, pd.DataFrame
        ] = {}  # out-of-fold predictions of the known drugs, by method
        self.final: dict[str, pd.DataFrame] = {}  # predictions of the 122, mean over seeds

    def known(self, prediction: pd.DataFrame) -> float:
        """Mean Spearman of out-of-fold predictions of the known drugs."""
        return float(row_spearman(self.train.loc[list(prediction.index)], prediction).mean())

    def scores(self, prediction: pd.DataFrame) -> list[float]:
        """Mean Spearman over the 122 drugs in B and in myeloid cells."""
        return [
            float(row_spearman(self.test.loc[[c]], prediction.loc[[c]]).mean()) for c in TARGETS
        ]

    def add(
        self, name: str, known: float | None, finals: list[pd.DataFrame], chosen: str = ""
    ) -> None:
        """A line of the table, with the spread over seeds."""
        found = np.array([self.scores(final) for final in finals])
        spread = found.std(axis=0, ddof=1) if len(found) > 1 else None
        (b, myeloid), sd = (
            found.mean(axis=0),
            "" if spread is None else "/".join(f"{v:.3f}" for v in spread),
        )
        row = {
            "method": name,
            "known, out of fold": known,
            "b": b,
            "myeloid": myeloid,
            "SD": sd,
            "chosen": chosen,
        }
        self.rows.append(row)
        log.info("%s: b %.3f, myeloid %.3f", name, b, myeloid)


def main(
    config: Annotated[Path, typer.Option(help="What is tried.")] = Path(__file__).parent
    / "config.toml",
    only: Annotated[list[str] | None, typer.Option(help="Only this method; repeatable.")] = None,
    ideas: Annotated[bool, typer.Option(help="Also what each idea is worth.")] = True,
    plain: Annotated[bool, typer.Option(help="Also XGBoost out of the box (minutes).")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value, over the file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Reproduce the published anchors, then judge every strong baseline with settings chosen out of
    fold.
    """
    experiment = Experiment.load(config, overrides=overrides or ())
    task = load_task(experiment)
    if not only:
        add_anchors(task)
    for name, method in experiment.methods.items():
        if not only or name in only:
            judge(task, name, method, experiment.seeds)
    if set(BLENDED) <= set(task.final):
        add_blend(task)
    if plain:
        task.add("xgboost_plain", None, [fitted(task, make("xgboost_plain"))])
    show_table(
        rounded(task.rows), title="mean Spearman over the 122 unknown drugs", as_json=as_json
    )
    if ideas:
        show_table(
            rounded(worth(task, experiment.ideas)),
            title="what the ideas are worth",
            as_json=as_json,
        )


def load_task(experiment: Experiment) -> Task:
    """The table of rank scores, divided as the competition was."""
    folder = data_folder() / "op3"
    with np.load(folder / "de_ranks_4x135x6349.npz") as file:
        labels = pd.MultiIndex.from_product(
            [file["cells"].astype(str), file["drugs"].astype(str)], names=CONDITION
        )
        table = pd.DataFrame(
            file["Z"].reshape(len(labels), -1).astype(float), labels, file["genes"]
        )
    cell, compound = (labels.get_level_values(name) for name in CONDITION)
    hidden = cell.isin(TARGETS) & ~compound.isin(KNOWN_IN_TARGETS)
    train, test = table[~hidden], table[hidden]
    smiles = pd.read_parquet(folder / "compounds_147.parquet").set_index("sm_name")["smiles"]
    folds = mimic_folds(train.index, folds=experiment.folds, rng=np.random.default_rng(0))
    return Task(train, test, smiles, folds)


def add_anchors(task: Task) -> None:
    """The published lines, computed anew."""
    found = {
        name: fitted(task, make(name)) for name in ("cell_type_mean", "compound_mean", "additive")
    }
    mixture = 0.3 * found["compound_mean"] + 0.7 * found["cell_type_mean"]
    lines = [
        *(found[n] for n in ("cell_type_mean", "compound_mean", "additive")),
        mixture,
        ten_component_ridge(task),
    ]
    for (name, (b, myeloid)), line in zip(PUBLISHED.items(), lines, strict=True):
        task.add(name, None, [line], f"published {b:.3f}/{myeloid:.3f}")


def ten_component_ridge(task: Task) -> pd.DataFrame:
    """Ten principal components of the drugs' mean profile in nk and t, ridge to the target's known
    drugs.

    The penalty of the published line is not known; one unit of variance in every gene comes within
    .001 of it.
    """
    profile = (task.train.loc["nk"] + task.train.loc["t"]) / 2
    components = Components.fit(profile.to_numpy(), 10)
    scores = pd.DataFrame(components.scores(profile.to_numpy()), profile.index)
    parts = []
    for cell in TARGETS:
        values = task.train.loc[cell]
        centre, mean = scores.loc[values.index].mean(), values.mean()
        left = (scores.loc[values.index] - centre).to_numpy()
        genes = Components.fit((values - mean).to_numpy(), len(values), centre=False)
        slopes = bilinear_ridge(
            (values - mean).to_numpy(), left, genes.loadings, ridge=values.shape[1]
        )
        wanted = task.test.loc[[cell]].index
        found = (
            (scores.loc[wanted.get_level_values("compound")] - centre).to_numpy()
            @ slopes
            @ genes.loadings
        )
        parts.append(pd.DataFrame(found + mean.to_numpy(), wanted, values.columns))
    return pd.concat(parts)


def judge(task: Task, name: str, method: Method, seeds: list[int]) -> None:
    """Choose the settings on the known drugs, fit with them, predict the others."""
    candidates = crossed(name, method.grid, method.settings)
    rng = np.random.default_rng(0)
    best, score, unseen = nested_choice(
        candidates, task.train, task.folds, rng=rng, score="spearman"
    )
    used = seeds if REGISTRY[name].random else seeds[:1]
    finals = [fitted(task, candidates[best](), seed) for seed in used]
    task.unseen[name] = unseen
    task.final[name] = sum(finals[1:], finals[0]) / len(finals)
    task.add(name, score, finals, best)


def fitted(task: Task, model: Predictor, seed: int = 0) -> pd.DataFrame:
    """Predictions of the unknown drugs."""
    return model.fit(task.train, rng=np.random.default_rng(seed)).predict(task.test.index)


def add_blend(task: Task) -> None:
    """Methods weighted by their out-of-fold predictions of the known drugs, whose settings were
    chosen on these too.
    """
    members = [name for name in BLENDED if name in task.unseen]
    weights = blend_weights(task.train, {name: task.unseen[name] for name in members})
    unseen, final = (
        sum(
            (weights[n] * part[n].loc[part[members[0]].index] for n in members[1:]),
            weights[members[0]] * part[members[0]],
        )
        for part in (task.unseen, task.final)
    )
    told = ", ".join(f"{weight:.2f} {name}" for name, weight in weights.items() if weight > 0.005)
    task.add("blend", task.known(unseen), [final], told)


def worth(task: Task, ideas: list[Idea]) -> list[dict[str, Any]]:
    """Every idea's score on the known drugs, out of fold, and on the others."""
    rows = []
    for idea in track(ideas, "ideas"):
        train = normal_scores(task.train) if idea.normal_scores else task.train
        shared = {"smiles": task.smiles} if idea.settings.get("fingerprints") else {}
        made = partial(make, idea.base, **idea.settings, **shared)
        unseen = out_of_fold(made, train, task.folds, rng=np.random.default_rng(0))
        b, myeloid = task.scores(
            made().fit(train, rng=np.random.default_rng(0)).predict(task.test.index)
        )
        rows.append(
            {
                "idea": idea.name,
                "known, out of fold": task.known(unseen),
                "b": b,
                "myeloid": myeloid,
            }
        )
    return rows


def normal_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Each row as the normal quantiles of its ranks."""
    ranks = rankdata(table.to_numpy(), axis=1)
    return pd.DataFrame(ndtri((ranks - 0.5) / table.shape[1]), table.index, table.columns)


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores to three decimals."""
    return [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]


if __name__ == "__main__":
    run_experiment(main)
