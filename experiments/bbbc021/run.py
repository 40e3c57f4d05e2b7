"""BBBC021: mechanisms by nearest neighbours, the published corrections, and settings chosen by
other compounds.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table

if TYPE_CHECKING:
    from perturbgen.profiles import Profiles
    from perturbgen.profiles.correct import Correction

log = logging.getLogger("perturbgen.bbbc021")
VEHICLE = "DMSO"


def main(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of BBBC021's tables; without it a fixture is made."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report and tables.")] = Path(
        "runs/bbbc021"
    ),
    nested: Annotated[
        bool, typer.Option(help="Also search 96 recipes, nested over compounds.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the fixture and the folds.")] = 0,
) -> None:
    """Print NSC and NSCB of every correction, then of recipes that are chosen without the compound
    they are asked about.

    Example: OMP_NUM_THREADS=1 python experiments/bbbc021/run.py ../shared/data/imaging/bbbc021
    """
    from perturbgen.images import read_bbbc021
    from perturbgen.simulation.images import write_bbbc021

    if data is None:
        data = out / f"fixture{seed}"
        if not data.exists():
            write_bbbc021(data, seed=seed, images=False)
    wells = read_bbbc021(data)
    table = golden_table(wells, seed)
    show_table(
        table,
        title=f"{data}: treatments whose neighbour shares the mechanism (median of wells; mean)",
    )
    chosen = nested_table(wells) if nested else []
    show_table(chosen, title="settings chosen by the other compounds")
    say(f"wrote {report(table, chosen).write(out / 'report.html')}")


def corrections() -> dict[str, Correction]:
    """The rows of the published comparison."""
    from perturbgen.profiles.correct import (
        ControlScaler,
        Coral,
        NestedCentre,
        Pipeline,
        Sphering,
        tvn,
    )

    return {
        "raw": Pipeline(),
        "z on all DMSO": ControlScaler(),
        "z in each plate": ControlScaler(["plate"]),
        "z in each plate, shrunk": ControlScaler(["plate"], shrink=12),
        "MAD in each plate": ControlScaler(["plate"], method="mad"),
        "1st to 99th percentile in each plate": ControlScaler(["plate"], method="percentile"),
        "z + plate centre": Pipeline(ControlScaler(), NestedCentre(["plate"])),
        "z + TVN": tvn(),
        "z + TVN + CORAL by week": tvn(["week"]),
        "z + plate centre + TVN": Pipeline(ControlScaler(), NestedCentre(["plate"]), Sphering()),
        "z + plate centre + TVN + CORAL by week": Pipeline(
            ControlScaler(), NestedCentre(["plate"]), Sphering(), Coral(["week"])
        ),
    }


def golden_table(wells: Profiles, seed: int) -> list[dict[str, Any]]:
    """NSC and NSCB by median and mean, matching over folds of compounds, and how well weeks are
    told from withheld DMSO.
    """
    import numpy as np

    from perturbgen.images.evaluate import Matching, mechanism_folds, treatment_profiles
    from perturbgen.profiles.correct import batch_predictability

    control = (wells.meta["compound"] == VEHICLE).to_numpy()
    rows = []
    for name, step in corrections().items():
        corrected = wells.with_values(step.fit_transform(wells.values, wells.meta, control=control))
        median, mean = (
            treatment_profiles(corrected, vehicle=VEHICLE, how=how) for how in ("median", "mean")
        )
        folds = mechanism_folds(median.meta, 5, rng=np.random.default_rng(seed))
        week = batch_predictability(
            step,
            wells,
            control=control,
            batch=["week"],
            split=["plate"],
            well=["plate", "well"],
            rng=np.random.default_rng(seed),
        )
        rows.append(
            {
                "correction": name,
                "NSC": str(Matching.nsc(median)),
                "NSCB": str(Matching.nscb(median)),
                "NSC (mean)": str(Matching.nsc(mean)),
                "NSCB (mean)": str(Matching.nscb(mean)),
                "5 folds": str(Matching.by("k-fold", median, folds[:, None] != folds[None])),
                "week from DMSO": week.loc["after", "nearest neighbours"],
                "variance between weeks": week.loc["after", "variance between"],
            }
        )
    return rows


def nested_table(wells: Profiles) -> list[dict[str, Any]]:
    """Nested choice among the recipes, for NSC and NSCB, beside the best fixed recipe in hindsight
    and z + TVN.
    """
    from choose import hits, nested_matching, similarities

    from perturbgen.images.evaluate import ONE_BATCH, Matching

    rows = []
    for name, without, other_batch in (("NSC", (), False), ("NSCB", ONE_BATCH, True)):
        similarity, meta = similarities(wells, vehicle=VEHICLE, without=without)
        matching, choices = nested_matching(similarity, meta, other_batch=other_batch)
        allowed, moa = Matching.admissible(meta, other_batch=other_batch), meta["moa"].to_numpy()
        fixed = {key: int(hits(value, allowed, moa).sum()) for key, value in similarity.items()}
        counts = choices["recipe"].value_counts()
        rows.append(
            {
                "score": name,
                "z + TVN": f"{fixed['z + whiten (1), median']}/{len(meta)}",
                "nested": str(matching),
                "best in hindsight": f"{max(fixed.values())}/{len(meta)}",
                "median recipe": f"{sorted(fixed.values())[len(fixed) // 2]}/{len(meta)}",
                "chosen most": f"{counts.index[0]} ({counts.iloc[0]} of {len(choices)} compounds)",
            }
        )
    return rows


def report(table: list[dict[str, Any]], chosen: list[dict[str, Any]]) -> Any:
    """The page."""
    from perturbgen.core.page import Page

    page = Page(
        "BBBC021: mechanism by nearest neighbour",
        "A treatment's nearest neighbour, of another compound (NSC), and another week too (NSCB).",
    )
    page.section(
        "Corrections",
        "Counts are treatments whose neighbour has their mechanism. The last columns say how much "
        "of the week "
        "is left in DMSO wells that the correction was not fitted on.",
    )
    page.table(table)
    if chosen:
        page.section(
            "Settings chosen by other compounds",
            "For each compound the recipe is taken that matches the other compounds "
            "best; hindsight takes the recipe that happens to be best for all, which nobody can "
            "know beforehand.",
        )
        page.table(chosen)
    return page


if __name__ == "__main__":
    run_experiment(main)
