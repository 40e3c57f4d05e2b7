"""How much state do real cells have, how much simulated ones, and what of it is in a latent space?

python experiments/states/run.py                                # the table: half a minute
python experiments/states/run.py --demo runs/latest-demo       # and the demo's latent points
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import pandas as pd
import typer
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parent))
from latent import active_dimensions, followed, picture
from measure import COMPONENTS, Genes, StateShare, sizes

from perturbgen.cli import run_experiment
from perturbgen.cli.doctor import data_folder
from perturbgen.core.console import say, show_table
from perturbgen.core.files import check_output, require_file, require_folder
from perturbgen.core.runs import find_run
from perturbgen.core.tables import VEHICLE

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.simulation import SimulationSettings

# Kang's types, and what of a simulated type's states their cells are lent.
_KINDS: Final = {
    "B cells": "B cells",
    "CD14+ Monocytes": "Myeloid cells",
    "CD4 T cells": "T cells CD4+",
    "CD8 T cells": "T cells CD8+",
    "FCGR3A+ Monocytes": "Myeloid cells",
}


def main(
    demo: Annotated[
        Path | None, typer.Option(help="A finished run of the demo, to look at its latent points.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose states are measured.")] = "op3",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: states.strength=0.3")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Draw the latent points here (.png).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shares of variance of the first components within a type, beyond counting: real, simulated.

    Example: python experiments/states/run.py --demo runs/latest-demo --out latent.png
    """
    if out is not None:
        check_output(out, ".png", option="--out")
    if demo is None:
        from perturbgen.simulation import preset_settings

        settings = preset_settings(preset, overrides=overrides or [])
        rows = [row(*found) for found in measured(settings, seed)]
        show_table(rows, title=f"first {COMPONENTS} components beyond counting", as_json=as_json)
        return
    latents, states, obs = latents_of(demo)
    table = followed(latents, states, obs)
    shown = table.round(2).reset_index(names="cell type").to_dict("records")
    title = f"R² of planted states; {active_dimensions(latents)} of {latents.shape[1]} dimensions "
    show_table(shown, title=title + "are active", as_json=as_json)
    if out is not None:
        picture(latents, states, obs, "T cells CD4+").savefig(out, dpi=80)
        say(f"wrote {out}")


def row(name: str, share: StateShare) -> dict[str, Any]:
    """A row of the table."""
    return {
        "cells of": name,
        "cells": share.cells,
        "genes": share.genes,
        "first": share.found[0],
        "by chance": share.chance[0],
        "beyond": share.first,
        f"first {COMPONENTS}": share.found[-1],
        f"{COMPONENTS} by chance": share.chance[-1],
        f"{COMPONENTS} beyond": share.all,
        "components beyond": share.beyond,
    }


def measured(settings: SimulationSettings, seed: int) -> Iterator[tuple[str, StateShare]]:
    """Real cells, those cells' genes and depths with simulated states, and simulated wells."""
    import anndata as ad

    counts, rng = data_folder() / "counts", np.random.default_rng(seed)
    kang = ad.read_h5ad(require_file(counts / "kang_ifnb.h5ad", "Kang's cells"))
    real = {kind: samples_of(kang, "cluster_id", kind) for kind in _KINDS}
    for kind, samples in real.items():
        yield f"Kang: {kind}", StateShare.of(samples, rng=rng)
    tumour = ad.read_h5ad(require_file(counts / "glioblastoma_panobinostat.h5ad", "glioblastoma"))
    for patient in sorted(tumour.obs["patient_id"].unique()):
        samples = samples_of(tumour, "patient_id", patient)
        yield f"glioblastoma: {patient}", StateShare.of(samples, rng=rng)
    for kind, samples in real.items():
        lent = with_states(samples, _KINDS[kind], settings, seed=seed)
        yield f"simulated on Kang's: {kind}", StateShare.of(lent, rng=rng)
    yield from wells(settings, seed, rng)


def samples_of(cells: AnnData, column: str, value: str) -> list[sparse.csr_array]:
    """Counts (cells, genes) of each sample of one type or patient."""
    chosen = cells[(cells.obs[column] == value).to_numpy()]
    names = chosen.obs["sample_id"].astype(str)
    return [sparse.csr_array(chosen[(names == name).to_numpy()].X) for name in sorted(set(names))]


def with_states(
    samples: list[sparse.csr_array], cell_type: str, settings: SimulationSettings, *, seed: int
) -> list[sparse.csr_array]:
    """Cells of the samples' own genes and depths, with a simulated type's states."""
    from perturbgen.simulation import CELL_TYPES, build_world, sample_nb_sparse
    from perturbgen.simulation.op3.states import Programmes

    rng, genes = np.random.default_rng(seed), samples[0].shape[1]
    expression = settings.expression.model_copy(update={"genes": genes})
    effects = build_world(settings.model_copy(update={"expression": expression}), seed=seed).effects
    drawn = []
    for counts in samples:
        own = Genes.of(counts)
        programmes = Programmes.draw(
            # the same programmes in all samples of a type
            effects,
            1 / own.dispersion,
            settings,
            rng=np.random.default_rng([seed, 1]),
        )
        size = sizes(counts)
        tilt = programmes.tilt(cell_type, programmes.scores(cell_type, len(size), rng=rng))
        r = programmes.r[CELL_TYPES.index(cell_type)]
        drawn.append(sample_nb_sparse(rng, size=size, share=own.share, r=r, tilt=tilt))
    return drawn


def wells(
    settings: SimulationSettings, seed: int, rng: np.random.Generator
) -> Iterator[tuple[str, StateShare]]:
    """Vehicle wells of the experiment as it is simulated, with and without states."""
    from perturbgen.simulation import build_world

    stateless = settings.states.model_copy(update={"strength": 0.0})
    for name, chosen in (
        (settings.preset, settings),
        (f"{settings.preset}, no states", settings.model_copy(update={"states": stateless})),
    ):
        world = build_world(chosen, seed=seed)
        for kind in ("T cells CD4+", "Myeloid cells"):
            here = (world.groups["sm_name"] == VEHICLE) & (world.groups["cell_type"] == kind)
            largest = world.groups.loc[here, "n_cells"].nlargest(4).index
            samples = [world.draw(int(group))[:100] for group in largest]
            yield f"{name}: {kind}", StateShare.of(samples, rng=rng)


def latents_of(demo: Path) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    """Latent points of the cells that the demo's NB-VAE learned from, their states and obs."""
    from perturbgen.train import load_run
    from perturbgen.train.heldout import CellJudge

    demo = require_folder(find_run(demo), "run of the demo")
    path = require_file(demo / "competition" / "truth_states.parquet", "planted states")
    run = load_run(next(iter(sorted((demo / "models").glob("*-nbvae-*")))))
    store = run.open_cells(demo / "counts.h5ad", part="train")
    states = pd.read_parquet(path).set_index("obs_id").loc[store.obs.index]
    return CellJudge(run, store).latents(), states, store.obs


if __name__ == "__main__":
    run_experiment(main)
