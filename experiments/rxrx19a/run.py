"""RxRx19a: which drugs bring infected cells back, and why the order and the reference of centring
matter.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table
from perturbgen.core.export import write_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from perturbgen.profiles import Profiles
    from perturbgen.profiles.correct import Correction

RESCUERS, DRUGS = 4, 60
NESTED = ["experiment", "plate", "site"]


def main(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder with RxRx19a's metadata.csv and embeddings.csv; else a fixture."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report and tables.")] = Path(
        "runs/rxrx19a"
    ),
    features: Annotated[
        int, typer.Option(min=2, help="Of the fixture (the real ones are 1,024).")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the fixture and the redrawn controls.")] = 0,
) -> None:
    """Centre, average sites to wells, project on the axis from healthy to infected, rank the drugs.

    Example: python experiments/rxrx19a/run.py RxRx19a --out runs/rxrx19a
    """
    from perturbgen.images import stream_embeddings
    from perturbgen.simulation.images import WRITERS

    with tempfile.TemporaryDirectory() as folder:
        source = data or WRITERS["rxrx19a"](
            Path(folder) / "fixture",
            seed=seed,
            drugs=DRUGS,
            rescuers=RESCUERS,
            doses=6,
            replicates=3,
            controls=16,
            features=features,
            infection=0.5,
        )
        profiles, _ = stream_embeddings(source, Path(folder) / "profiles")
        compared = compare_centrings(profiles, planted=data is None, seed=seed)
        order = key_order(profiles)
        gate, hits = rank(profiles, seed)
    show_table(compared, title="the disease signal under each centring")
    say(
        f"largest difference between nested centrings with their keys in another order: {order:.1e}"
    )
    show_table(gate.to_dict("records"), title="assay: are the controls told apart?")
    best = hits.groupby("cell_type", sort=False).head(8)
    show_table(
        best.to_dict("records"), title=f"{int((hits['q'] < 0.05).sum())} drugs with q < 0.05"
    )
    out.mkdir(parents=True, exist_ok=True)
    write_table(hits, out / "hits.csv")
    say(
        f"wrote {out / 'hits.csv'} and "
        f"{report(compared, gate, hits, data).write(out / 'report.html')}"
    )


def centrings() -> dict[str, Correction]:
    """Ours, the same with shrinkage, and the seed's: one label after the other, the disease among
    them.
    """
    from sequential import SequentialCentroids

    from perturbgen.profiles.correct import NestedCentre, Pipeline

    return {
        "none": Pipeline(),
        "nested, on healthy wells": NestedCentre(NESTED),
        "sequential, on all wells": SequentialCentroids(["experiment", "site", "plate"]),
        "sequential, disease included": SequentialCentroids(
            ["experiment", "site", "plate", "disease_condition"]
        ),
    }


def rank(profiles: Profiles, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gate and the ranked drugs, centred as ours."""
    import numpy as np

    from perturbgen.images import HEALTHY
    from perturbgen.images.hits import centred_wells

    wells = centred_wells(profiles, HEALTHY, NESTED, ["well_id"])
    return score(wells, np.random.default_rng(seed))


def score(wells: Profiles, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gate and hits of centred wells; no group is excluded here."""
    from perturbgen.images import DISEASED, HEALTHY
    from perturbgen.images.hits import hit_table, score_wells

    masks = {"healthy": wells.chosen(HEALTHY), "diseased": wells.chosen(DISEASED)}
    found = score_wells(wells, **masks, gate=-float("inf"))
    return found.gate, hit_table(found.wells, treatment="treatment", dose="treatment_conc", rng=rng)


def compare_centrings(profiles: Profiles, *, planted: bool, seed: int) -> list[dict[str, Any]]:
    """What each centring leaves of the disease, and what it finds."""
    import numpy as np

    from perturbgen.core.errors import SchemaError
    from perturbgen.images import DISEASED, HEALTHY

    named = profiles.where(profiles.meta["disease_condition"].notna())
    healthy = named.chosen(HEALTHY)
    rows = []
    for name, step in centrings().items():
        control = healthy if name.startswith("nested") else None
        wells = named.with_values(
            step.fit_transform(named.values, named.meta, control=control)
        ).averaged(["well_id"])
        sides = [
            wells.values[wells.chosen(condition)].mean(axis=0) for condition in (HEALTHY, DISEASED)
        ]
        row: dict[str, Any] = {
            "centring": name,
            "distance healthy to infected": float(np.linalg.norm(sides[1] - sides[0])),
        }
        try:
            gate, hits = score(wells, np.random.default_rng(seed))
            row |= {
                "lowest Z'": float(gate["Z'"].min()),
                "drugs with q < 0.05": int((hits["q"] < 0.05).sum()),
            }
            row |= {"planted among them": truly(hits) if planted else None}
        except SchemaError as error:
            row |= {
                "lowest Z'": None,
                "drugs with q < 0.05": 0,
                "planted among them": error.what if planted else None,
            }
        rows.append(row)
    return rows


def truly(hits: pd.DataFrame) -> str:
    """How many of the found drugs were planted, and of the planted ones found."""
    found = hits[hits["q"] < 0.05]
    right = found["treatment"].isin([f"drug-{i}" for i in range(1, RESCUERS + 1)])
    return f"{int(right.sum())} of {len(found)}; planted {RESCUERS * hits['cell_type'].nunique()}"


def key_order(profiles: Profiles) -> float:
    """The largest difference that another order of the keys makes to the nested centring."""
    import numpy as np

    from perturbgen.images import HEALTHY
    from perturbgen.profiles.correct import NestedCentre

    control = profiles.chosen(HEALTHY)
    rows = profiles.where(np.arange(len(profiles)) < 2000) if len(profiles) > 50_000 else profiles
    one, other = (
        NestedCentre(keys)
        .fit(profiles.values, profiles.meta, control=control)
        .transform(rows.values, rows.meta)
        for keys in (NESTED, NESTED[::-1])
    )
    return float(np.abs(one - other).max())


def report(
    compared: list[dict[str, Any]], gate: pd.DataFrame, hits: pd.DataFrame, data: Path | None
) -> Any:
    """The page: tables, and rescue against side effects."""
    import plotly.graph_objects as go

    from perturbgen.core.page import Page

    page = Page(
        "RxRx19a: drugs that bring infected cells back",
        f"Data: {data or 'a fixture with planted rescuers'}.",
    )
    page.section(
        "Centring",
        "What is left of the distance between healthy and infected wells, and what is found with "
        "it.",
    )
    page.table(compared)
    page.section(
        "Assay", "Z' of the controls in each experiment: at or below 0 they cannot be told apart."
    )
    page.table(gate.to_dict("records"))
    page.section(
        "Drugs",
        "Rescue is 0 for a drug that does nothing and 1 for healthy cells; the interval is "
        "Student's, over wells.",
    )
    page.table(hits.groupby("cell_type", sort=False).head(12).to_dict("records"))
    figure = go.Figure()
    for name, part in hits.groupby("cell_type", sort=True):
        figure.add_scatter(
            x=part["z_off"],
            y=part["rescue"],
            mode="markers",
            name=str(name),
            text=part["treatment"],
            marker={"size": [11 if q < 0.05 else 6 for q in part["q"]]},
        )
    figure.update_xaxes(title="off the axis, in sd of infected controls").update_yaxes(
        title="rescue at the best dose"
    )
    page.figure(
        figure.update_layout(height=460), "Each point is a drug; the large ones have q < 0.05."
    )
    return page


if __name__ == "__main__":
    run_experiment(main)
