"""A Cell Painting plate: which compounds do anything, before a correction and after, and what a
correction invents.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table
from perturbgen.core.export import write_table

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

    from perturbgen.profiles.correct import Correction

COMPOUND = "Metadata_broad_sample"
SHOWN = "z + TVN"  # whose compounds the figure shows


def main(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A csv or parquet with Metadata_ columns; without it a fixture is made."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the report and the table of compounds.")
    ] = Path("runs/cell_painting"),
    splits: Annotated[int, typer.Option(min=1, help="Times the controls are halved.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the fixture and the halves.")] = 0,
) -> None:
    """Print replicate mAP against DMSO for every correction, with the controls it was fitted on and
    with others.

    Example: python experiments/cell_painting/run.py
    ../shared/data/imaging/cellpainting/SQ00015054_normalized_feature_select.csv.gz
    """
    import pandas as pd

    from perturbgen.profiles import read_profiles
    from perturbgen.simulation.images import WRITERS

    if data is None:
        data = out / f"fixture{seed}" / "profiles.csv.gz"
        if not data.exists():
            WRITERS["cellpainting"](data.parent, seed=seed)
    profiles = read_profiles(data)
    compounds = {name: score(profiles, step, splits, seed) for name, step in corrections().items()}
    rows = [summary(name, table) for name, table in compounds.items()]
    show_table(rows, title=f"{data.name}: {len(compounds[SHOWN])} compounds against DMSO")
    out.mkdir(parents=True, exist_ok=True)
    write_table(pd.concat(compounds, names=["correction"]), out / "compounds.csv", index=True)
    say(f"wrote {report(data.name, rows, compounds).write(out / 'report.html')}")


def corrections() -> dict[str, Correction]:
    """The rows; the last one's settings are those that were most often chosen on BBBC021."""
    from perturbgen.profiles.correct import Compress, ControlScaler, Pipeline, Sphering, tvn

    return {
        "as it comes": Pipeline(),
        "z on DMSO": ControlScaler(),
        "z + TVN": tvn(),
        "z + asinh + TVN (ridge .3)": Pipeline(ControlScaler(), Compress(), Sphering(ridge=0.3)),
    }


def score(profiles: Any, step: Correction, splits: int, seed: int) -> pd.DataFrame:
    """Per compound the mAP with all controls on both sides, and with fitted and negative controls
    kept apart.
    """
    import numpy as np
    from activity import activity, held_out_activity

    control = (profiles.meta[COMPOUND] == "DMSO").to_numpy()
    corrected = profiles.with_values(
        step.fit_transform(profiles.values, profiles.meta, control=control)
    )
    table = activity(corrected, control=control, same=COMPOUND)
    rng = np.random.default_rng(seed)
    held = held_out_activity(profiles, step, control=control, same=COMPOUND, splits=splits, rng=rng)
    return table.join(held.rename(columns=lambda name: f"{name} held out"))


def summary(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """A line of the table."""
    return {
        "correction": name,
        "mAP": float(table["map"].mean()),
        "normalised": float(table["nmap"].mean()),
        "q < .05": int((table["p_bh"] < 0.05).sum()),
        "normalised, other DMSO": float(table["nmap held out"].mean()),
        "q < .05, other DMSO": float(table["active held out"].sum()),
    }


def report(name: str, rows: list[dict[str, Any]], compounds: dict[str, pd.DataFrame]) -> Any:
    """The page."""
    from perturbgen.core.page import Page

    page = Page(
        f"Cell Painting: {name}",
        f"{rows[0]['q < .05']} of {len(compounds[SHOWN])} compounds differ from DMSO.",
    )
    page.section(
        "Replicate mAP against DMSO",
        "Each well of a compound looks for the compound's other wells among them and the DMSO "
        "wells. The first three "
        "columns fit the correction on the same DMSO wells that are then the negatives; the last "
        "two keep the two "
        "apart, half and half, which also halves what a correction can learn. Normalised: 0 is "
        "chance, 1 is perfect.",
    )
    page.table(rows)
    page.figure(
        figure(compounds),
        "Each point is a compound, sorted by its mAP before correction. The gap between the "
        "two orange signs is what fitting on one's own negatives invents.",
    )
    return page


def figure(compounds: dict[str, pd.DataFrame]) -> Figure:
    """Normalised mAP of each compound before and after, and after with other controls."""
    import plotly.graph_objects as go

    from perturbgen.core.page import PALETTE

    before, after = compounds["as it comes"].sort_values("nmap"), compounds[SHOWN]
    place = list(range(1, len(before) + 1))
    series = (
        ("before", before["nmap"], PALETTE[0], "circle"),
        (f"{SHOWN}, same DMSO", after.loc[before.index, "nmap"], PALETTE[1], "circle-open"),
        (f"{SHOWN}, other DMSO", after.loc[before.index, "nmap held out"], PALETTE[1], "circle"),
    )
    drawn = go.Figure()
    for label, values, colour, symbol in series:
        drawn.add_scatter(
            x=place,
            y=values,
            mode="markers",
            name=label,
            text=before.index,
            hoverinfo="text+y",
            marker={"color": colour, "symbol": symbol, "size": 8},
        )
    drawn.update_xaxes(title="compound").update_yaxes(title="normalised mAP")
    return drawn.update_layout(height=460, legend={"orientation": "h", "y": 1.12})


if __name__ == "__main__":
    run_experiment(main)
