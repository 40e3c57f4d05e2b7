"""BBBC021: does a network that learned to tell treatments apart place new compounds beside those of
their mechanism?
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table

if TYPE_CHECKING:
    from perturbgen.profiles import Profiles

SIMPLE, DRAWN, TRAINED, LEARNED = (
    "simple features",
    "network, not trained",
    "network, treatments",
    "network, mechanisms",
)
Rows = list[dict[str, Any]]


def main(
    data: Annotated[
        Path | None,
        typer.Argument(help="A folder of BBBC021: tables and images; without it fixtures."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and report.")] = Path(
        "runs/bbbc021-network"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Fixtures and networks.")] = 3,
    effect: Annotated[
        float,
        typer.Option(
            min=0, help="Of the fixtures: how far mechanisms are from DMSO; 0 must give chance."
        ),
    ] = 0.4,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: training.epochs=40")
    ] = None,
) -> None:
    """Compare a small network with simple features, a network that was not trained, and chance.

    Each seed trains one network on all treatments, and for each of four groups of compounds one
    without it.

    Example: python experiments/bbbc021/network.py
    """
    found = [
        compare(data or fixture(out, seed, effect), out, seed, overrides or [])
        for seed in range(seeds)
    ]
    tables = {name: [row for part in found for row in part[name]] for name in found[0]}
    shown = {name: average(rows) for name, rows in tables.items()}
    for name, rows in shown.items():
        show_table(rows, title=f"{name}: mean (lowest to highest), {seeds} seeds")
    say(f"wrote {report(shown, tables, real=data is not None).write(out / 'report.html')}")


def fixture(out: Path, seed: int, effect: float) -> Path:
    """Five mechanisms of six compounds each in three weeks of three plates, forty fields of them
    spoilt.
    """
    from perturbgen.simulation.images import ImageLayout, write_bbbc021

    folder = out / f"fixture{seed}-{effect:g}"
    if not folder.exists():
        layout = ImageLayout(
            weeks=3, replicates=3, mechanisms=5, effect=effect, stain=0.6, artefacts=40
        )
        write_bbbc021(folder, seed=seed, layout=layout)
    return folder


def compare(data: Path, out: Path, seed: int, overrides: list[str]) -> dict[str, Rows]:
    """The three tables of a seed: neighbours, mechanisms of new compounds, outliers."""
    import numpy as np
    from handmade import measured
    from matched import by_chance

    from perturbgen.images.network.evaluate import corrected_wells, embed_run
    from perturbgen.images.network.fields import Fields
    from perturbgen.images.network.settings import ImageData

    fields = Fields.read(ImageData(path=data))
    whole = trained(data, out, seed, [], overrides)
    sources = {
        SIMPLE: measured(fields.files, fields.table, fields.channels),
        DRAWN: embed_run(whole.untrained(), part=()),
    }
    sources[TRAINED] = embed_run(whole, part=())
    neighbours: Rows = []
    for name, source in sources.items():
        neighbours += neighbour_rows(name, source)
    wells = corrected_wells(sources[TRAINED])["raw"]
    chance = by_chance(wells, draws=100, rng=np.random.default_rng(seed))
    neighbours.append({"features": "mechanisms dealt at random", "correction": "raw", **chance})
    return {
        "all treatments seen in training": neighbours,
        "compounds never seen": new_compounds(data, out, seed, sources, overrides),
        "spoilt fields": outlier_rows(data, sources) if (data / "artefacts.csv").exists() else [],
    }


def trained(data: Path, out: Path, seed: int, given: list[str], overrides: list[str]) -> Any:
    """A small network of a seed."""
    from perturbgen.images.network import IMAGES, ImageSettings

    base = {
        "seed": seed,
        "data": {"path": str(data)},
        "model": {"embedding": 32},
        "training": {"epochs": 30, "batch_size": 32, "learning_rate": 3e-3},
        "board": {"every": 100},
    }
    settings = ImageSettings.load(overrides=[*given, *overrides], base=base)
    return IMAGES.load(IMAGES.train(settings, runs=out / "runs"))


def neighbour_rows(name: str, fields: Profiles) -> Rows:
    """NSC and NSCB under each correction, and how well weeks are told from the half of the
    vehicle's wells that another fit has not seen.
    """
    from perturbgen.images.network.evaluate import corrected_wells, matchings

    rows, halves = [], corrected_wells(fields, withhold=0.5)
    for correction, wells in corrected_wells(fields).items():
        found = {key: value.correct / value.total for key, value in matchings(wells).items()}
        rows.append(
            {
                "features": name,
                "correction": correction,
                **found,
                "week from DMSO": week_told(halves[correction]),
            }
        )
    return rows


def week_told(wells: Profiles) -> float:
    """Balanced accuracy with which DMSO wells of withheld plates are given their week by the
    nearest week's mean.

    Only wells that the correction was not fitted on are asked, and make the means.
    """
    import numpy as np

    dmso = wells.where((wells.meta["compound"] == "DMSO").to_numpy() & ~wells.fitted())
    week, plate = dmso.meta["week"].to_numpy(), dmso.meta["plate"].to_numpy()
    names = np.unique(week)
    right = np.zeros(len(week), bool)
    for out in np.unique(plate):
        rest = plate != out
        means = np.array([dmso.values[rest & (week == name)].mean(axis=0) for name in names])
        away = ((dmso.values[~rest][:, None] - means[None]) ** 2).sum(axis=2)
        right[~rest] = names[away.argmin(axis=1)] == week[~rest]
    return float(np.mean([right[week == name].mean() for name in names]))


def new_compounds(
    data: Path, out: Path, seed: int, sources: dict[str, Profiles], overrides: list[str]
) -> Rows:
    """Each group of compounds by the network that never saw it; simple features are asked the same
    question.
    """
    from matched import pooled

    from perturbgen.images.network.evaluate import (
        corrected_wells,
        embed_run,
        evaluate_run,
        matchings,
    )

    answers: dict[tuple[str, str], list[Any]] = {}
    told: list[tuple[int, float]] = []
    for fold in range(4):
        given = [f"data.compounds.fold={fold}", f"data.compounds.seed={seed}", f"name=fold{fold}"]
        run = trained(data, out, seed, given, overrides)
        learned = embed_run(run, part=())
        away = (
            learned.meta.loc[learned.meta["part"] == "test", "compound"].dropna().unique().tolist()
        )
        for name, source in {**sources, TRAINED: learned}.items():
            for correction, wells in corrected_wells(source).items():
                answers.setdefault((name, correction), []).append(matchings(wells, withheld=away))
        taught = trained(data, out, seed, [*given, "data.compounds.label=moa"], overrides)
        well = next(row for row in evaluate_run(taught, part=("test",)) if row["of"] == "well")
        told.append((int(well["n"]), float(well["all"])))
    rows = [
        {
            "features": name,
            "correction": correction,
            **{k: v.correct / v.total for k, v in pooled(parts).items()},
        }
        for (name, correction), parts in answers.items()
    ]
    share = sum(n * right for n, right in told) / sum(n for n, _ in told)
    return [
        *rows,
        {
            "features": LEARNED,
            "correction": "wells named right, without neighbours",
            "wells": share,
        },
    ]


def outlier_rows(data: Path, sources: dict[str, Profiles]) -> Rows:
    """Area under the curve with which outlier scores find the spoilt fields."""
    import pandas as pd
    from outliers import outlier_scores
    from sklearn.metrics import roc_auc_score

    from perturbgen.profiles.correct import ControlScaler

    spoilt = pd.read_csv(data / "artefacts.csv")
    rows = []
    for name, source in sources.items():
        keys = source.meta[["plate", "well", "site"]].merge(
            spoilt.assign(spoilt=True), how="left", validate="1:1"
        )
        control = (source.meta["compound"] == "DMSO").to_numpy()
        values = ControlScaler(["plate"], shrink=12).fit_transform(
            source.values, source.meta, control=control
        )
        found = {
            method: float(
                roc_auc_score(keys["spoilt"].notna(), outlier_scores(values, method=method))
            )
            for method in ("knn", "mahalanobis", "lof")
        }
        rows.append({"features": name, **found})
    return rows


def spread(values: Any) -> str:
    """The mean and, of more than one seed, the range."""
    if not len(values):
        return "not asked"
    return f"{values.mean():.2f}" + (
        f" ({values.min():.2f} to {values.max():.2f})" if len(values) > 1 else ""
    )


def average(rows: Rows) -> Rows:
    """One line for each source and correction, its numbers over the seeds."""
    import pandas as pd

    if not rows:
        return []
    table = pd.DataFrame(rows)
    by = [name for name in ("features", "correction") if name in table]
    numbers = table.columns.drop(by)
    lines = []
    for key, part in table.groupby(by, sort=False):
        line: dict[str, Any] = dict(zip(by, key, strict=True))
        for name in numbers:
            line[str(name)] = spread(part[name].dropna())
        lines.append(line)
    return lines


def report(shown: dict[str, Rows], tables: dict[str, Rows], *, real: bool) -> Any:
    """The page."""
    from perturbgen.core.page import Page

    page = Page(
        "BBBC021: a network beside simple features",
        "Is the nearest treatment of another compound (NSC), and of another week too (NSCB), of "
        "the same mechanism?",
    )
    if not real:
        page.section(
            "What this can show",
            "These images are drawn: spots whose brightness, number, size, length and grain a "
            "mechanism changes, "
            "through stains of weeks and plates. They show that training, splits, corrections and "
            "scores do what they "
            "are for, and which leaks they close. They do not show what a network gains on cells.",
        )
    notes = {
        "all treatments seen in training": "The network was trained on every treatment, by name; "
        "never on mechanisms.",
        "compounds never seen": "Each of four groups of compounds is asked by a network trained "
        "without it; its "
        "neighbours are treatments of the other groups. The last line is a network trained on "
        "mechanisms.",
        "spoilt fields": "Area under the curve of fields out of focus or with dust against all "
        "others; chance is .50.",
    }
    for name, rows in shown.items():
        if rows:
            page.section(name.capitalize(), notes[name])
            page.table(rows)
    page.section("Every seed")
    for rows in tables.values():
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            page.table([{name: row.get(name) for name in names} for row in rows])
    return page


if __name__ == "__main__":
    run_experiment(main)
