"""What a DGD's latent space holds with and without conditions: cell types without, nothing of them
with.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
log = logging.getLogger("perturbgen.latent")

CONDITIONS = {"unconditional": (), "conditional": ("cell_type", "compound", "plate")}


def main(
    preset: Annotated[str, typer.Option(help="Simulator preset: tiny, small.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the data and the models.")] = 0,
    epochs: Annotated[int, typer.Option(help="Epochs.")] = 100,
    runs: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path(
        "runs/latent"
    ),
    page: Annotated[Path | None, typer.Option(help="Write the pictures here (.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train both, cluster their latent points, and compare the clusters with cell types.

    Example: python experiments/latent/run.py --page latent.html
    """
    if page is not None:
        check_output(page, ".html", option="--page")
    cells = simulated(preset, seed, runs)
    found = {
        name: latents(cells, names, seed=seed, epochs=epochs, runs=runs, title=name)
        for name, names in CONDITIONS.items()
    }
    rows = [
        {"model": name, **agreement(points, obs, seed)} for name, (points, obs) in found.items()
    ]
    show_table(
        rows,
        title=f"clusters of the latent space against cell types, preset {preset}, seed {seed}",
        as_json=as_json,
    )
    if page is not None:
        draw(found, rows, page)
        say(f"wrote {page}")


def simulated(preset: str, seed: int, runs: Path) -> Path:
    """The simulated cells as one file."""
    from perturbgen.data import write_h5ad
    from perturbgen.simulation import simulate

    path = runs / f"{preset}-{seed}.h5ad"
    if not path.exists():
        write_h5ad(simulate(preset, seed=seed).released, path)
    return path


def latents(
    cells: Path, conditions: tuple[str, ...], *, seed: int, epochs: int, runs: Path, title: str
) -> tuple[np.ndarray, pd.DataFrame]:
    """The learned representations (cells, latent) of the training cells, and their obs."""
    from perturbgen.train import RunSettings, load_run, train

    base: dict[str, Any] = {
        "name": title,
        "seed": seed,
        "data": {"path": str(cells)},
        "conditions": {name: {} for name in conditions},
        "training": {"epochs": epochs},
        "board": {"every": epochs, "labels": ["cell_type"]},
    }
    run = load_run(
        train(RunSettings.load(HERE / "dgd.toml", base=base), runs=runs, accelerator="cpu")
    )
    store = run.open_cells(cells, part="train")
    return run.model.representations.weight.detach().numpy(), store.obs


def agreement(points: np.ndarray, obs: pd.DataFrame, seed: int) -> dict[str, float]:
    """Adjusted Rand index of as many clusters as there are cell types, and what a linear probe
    reads.
    """
    from sklearn.metrics import adjusted_rand_score
    from sklearn.mixture import GaussianMixture

    from perturbgen.train.heldout import probe_rows

    kinds = obs["cell_type"].astype(str)
    mixture = GaussianMixture(kinds.nunique(), n_init=5, random_state=seed)
    probe = probe_rows(points, obs[["cell_type"]], seed=seed)[0]
    return {
        "adjusted_rand_index": float(adjusted_rand_score(kinds, mixture.fit_predict(points))),
        "probe_accuracy": probe["accuracy"],
        "most_common_alone": probe["most_common_alone"],
    }


def draw(
    found: dict[str, tuple[np.ndarray, pd.DataFrame]], rows: list[dict[str, Any]], path: Path
) -> None:
    """Both latent spaces side by side, coloured by cell type."""
    from plotly.graph_objects import Figure, Scattergl
    from plotly.subplots import make_subplots

    from perturbgen.core.page import PALETTE, Page
    from perturbgen.train.board import plane

    figure: Figure = make_subplots(1, 2, subplot_titles=list(found))
    for column, (points, obs) in enumerate(found.values(), start=1):
        places = plane(points)
        for kind, colour in zip(
            sorted(obs["cell_type"].astype(str).unique()), PALETTE, strict=False
        ):
            mine = (obs["cell_type"].astype(str) == kind).to_numpy()
            marker = {"size": 4, "color": colour, "opacity": 0.7}
            figure.add_trace(
                Scattergl(
                    x=places[mine, 0],
                    y=places[mine, 1],
                    mode="markers",
                    name=kind,
                    marker=marker,
                    legendgroup=kind,
                    showlegend=column == 1,
                ),
                1,
                column,
            )
    figure.update_xaxes(title="first principal component")
    figure.update_yaxes(title="second principal component", col=1)
    figure.update_layout(height=520)
    page = Page(
        "What the latent space of a DGD holds", "A point is a cell, in the plane of most variance."
    )
    page.section("Clusters against cell types")
    page.table(rows)
    page.figure(
        figure,
        "Without conditions cells lie by cell type; given it, the latent space no longer needs to "
        "hold it.",
    )
    page.write(path)


if __name__ == "__main__":
    run_experiment(main)
