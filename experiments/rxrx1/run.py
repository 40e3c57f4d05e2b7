"""RxRx1: the plan of the plates, what it leaks, and what decoders make of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table

if TYPE_CHECKING:
    import pandas as pd
    from numpy.random import Generator

    from perturbgen.images.rxrx1 import PlatePlan

SIGNALS = (0.0, 1.0, 2.0, 3.0, 4.0)


def main(
    data: Annotated[
        Path | None,
        typer.Argument(help="Kaggle's four tables, or a metadata.csv; without it a fixture."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/rxrx1"),
    experiments: Annotated[
        int, typer.Option(min=1, help="Experiments whose wells are decoded.")
    ] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Of the fixture and the noise.")] = 0,
) -> None:
    """Recover the groups of siRNAs, count the patterns of plates, and decode a classifier of known
    quality three ways.

    Example: python experiments/rxrx1/run.py ../shared/data/imaging/rxrx1
    """
    from perturbgen.images import read_rxrx1_metadata
    from perturbgen.images.rxrx1 import PlatePlan
    from perturbgen.simulation.images import write_rxrx1

    if data is None:
        data = out / f"fixture{seed}"
        if not data.exists():
            write_rxrx1(data, seed=seed, images=False)
    meta = read_rxrx1_metadata(data)
    groups = PlatePlan.sirna_groups(meta)
    plan = PlatePlan.of(meta, groups)
    facts = [
        {"what": "wells", "found": int(meta["well_id"].nunique())},
        {
            "what": "siRNAs in each group",
            "found": " ".join(map(str, groups.value_counts().sort_index())),
        },
        {
            "what": "times each pattern of plates is seen",
            "found": " ".join(map(str, plan.counts())),
        },
        {"what": "all patterns are rotations", "found": str(plan.is_rotation())},
    ]
    show_table(facts, title=str(data))
    decoded = decode_table(meta, groups, plan, experiments, seed)
    show_table(
        decoded, title="accuracy of a simulated classifier, by decoding: three different questions"
    )
    say(f"wrote {report(facts, decoded).write(out / 'report.html')}")


def decode_table(
    meta: pd.DataFrame, groups: pd.Series, plan: PlatePlan, count: int, seed: int
) -> list[dict[str, Any]]:
    """For classifiers of rising quality: accuracy under each mode, and experiments whose rotation
    was recovered.
    """
    import numpy as np

    from perturbgen.images import rxrx1

    wells = rxrx1.PlatePlan.treated_wells(meta)
    names = sorted(wells["experiment"].unique())[:: max(1, wells["experiment"].nunique() // count)][
        :count
    ]
    wells = wells[wells["experiment"].isin(names)]
    wells.index = well_labels(wells)
    rows = []
    for signal in SIGNALS:
        log_p = noisy_log_p(
            wells["sirna_id"], list(groups.index), signal=signal, rng=np.random.default_rng(seed)
        )
        row: dict[str, Any] = {"signal": signal}
        for mode in rxrx1.MODES:
            named = rxrx1.decode_wells(log_p, wells, mode=mode, groups=groups)
            row[mode] = float((named == wells["sirna_id"]).mean())
        right = sum(
            rxrx1.plate_groups(log_p[rows_of], wells.loc[rows_of, "plate"], groups)
            == plan.table.loc[name].to_dict()
            for name in names
            if (rows_of := (wells["experiment"] == name).to_numpy()).any()
        )
        rows.append(row | {"rotations recovered": f"{right}/{len(names)}"})
    return rows


def noisy_log_p(
    truth: pd.Series, names: list[int], *, signal: float, rng: Generator
) -> pd.DataFrame:
    """Log-probabilities of a classifier that sees the truth through noise.

    Scores are normal, the true class's raised by ``signal``.
    """
    import numpy as np
    import pandas as pd

    scores = rng.normal(size=(len(truth), len(names)))
    scores[np.arange(len(truth)), pd.Index(names).get_indexer(pd.Index(truth))] += signal
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return pd.DataFrame(scores, index=truth.index, columns=names)


def well_labels(wells: pd.DataFrame) -> list[str]:
    """A label for each well."""
    return (wells["experiment"] + "_" + wells["plate"].astype(str) + "_" + wells["well"]).tolist()


def report(facts: list[dict[str, Any]], decoded: list[dict[str, Any]]) -> Any:
    """The page."""
    from perturbgen.core.page import Page

    page = Page(
        "RxRx1: the plan of the plates",
        "Which siRNAs lie on a plate is fixed, and a decoder that knows it answers an easier "
        "question.",
    )
    page.section("Plan")
    page.table(facts)
    page.section(
        "Decoding",
        "A classifier whose true class is raised by a number of standard deviations of the noise. "
        "Only the first "
        "column is an honest accuracy over all siRNAs; the others use the plan.",
    )
    page.table(decoded)
    return page


if __name__ == "__main__":
    run_experiment(main)
