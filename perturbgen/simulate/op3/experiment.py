"""Run a simulation: into memory for a script or a test, or into a folder of the competition's files.

The experiment once more: the withheld cell types drawn anew, to see how well a measurement predicts itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.core.console import track
from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, require_file, require_writable
from perturbgen.de import flavour_table
from perturbgen.simulate.op3.competition import write_competition
from perturbgen.simulate.op3.labels import (
    KEY,
    all_cells,
    group_obs,
    id_map,
    in_our_words,
    metadata,
    truth,
)
from perturbgen.simulate.op3.settings import WITHHELD_TYPES, SimulationSettings, preset_settings
from perturbgen.simulate.op3.world import World, build_world


@dataclass(frozen=True)
class Experiment:
    """A simulation in memory: released ``cells``, ``withheld`` cells, the ``truth`` of every condition, the ``world``.

    obs has the columns of :mod:`perturbgen.data.schema` and the competition's own.
    """

    cells: AnnData
    withheld: AnnData
    truth: AnnData
    world: World


@overload
def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int,
    out: None = None,
    baseline: str | Path | None = None,
    signatures: str | Path | None = None,
    layout: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> Experiment: ...


@overload
def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int,
    out: str | Path,
    baseline: str | Path | None = None,
    signatures: str | Path | None = None,
    layout: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> Path: ...


def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int,
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    signatures: str | Path | None = None,
    layout: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> Experiment | Path:
    """Simulate the OP3 experiment; with ``out``, write the competition's files there and return the folder.

    ``preset`` is ``tiny``, ``small`` or ``op3`` (or settings made before, which nothing then changes). ``baseline``,
    ``signatures`` and ``layout`` name real data that replace invented parts; ``overrides`` are ``a.b=value``.
    """
    if isinstance(preset, SimulationSettings):
        settings = preset
    else:
        sources = {"baseline": baseline, "signatures": signatures, "layout": layout}
        settings = preset_settings(preset, config=config, overrides=overrides, sources=sources)
    if out is None:
        return _in_memory(build_world(settings, seed=seed))
    return write_simulation(settings, out, seed=seed, force=force)


def write_simulation(
    settings: SimulationSettings, out: str | Path, *, seed: int, force: bool = False
) -> Path:
    """The file set under ``out``, which appears only when all of it is written."""
    out = Path(out)
    _require_replaceable(out, force=force)
    world = build_world(settings, seed=seed)
    with atomic_path(out) as part:
        part.mkdir()
        write_competition(world, part)
    return out


def _require_replaceable(out: Path, *, force: bool) -> None:
    """Nothing is at ``out``, or ``force`` may replace it: an older simulation, never a folder of other things."""
    require_writable(out)
    if not out.exists():
        return
    if not force:
        raise InputError(
            f"{out} already exists", fix="choose another folder, or --force to replace it"
        )
    if not out.is_dir() or (any(out.iterdir()) and not (out / "simulation.toml").exists()):
        raise InputError(
            f"{out} is not replaced, since it holds no simulation.toml: it may be something else",
            expected="a folder that simulate wrote",
            fix="choose another folder, or delete it yourself",
        )


def _in_memory(world: World) -> Experiment:
    """Every cell of a world, drawn into memory."""
    released: list[sparse.csr_array] = []
    withheld: list[sparse.csr_array] = []
    for chunk in world.chunks():
        (withheld if world.groups["withheld"].iat[chunk.group] else released).append(chunk.counts)
    return Experiment(
        cells=_cells_of(world, released, withheld=False),
        withheld=_cells_of(world, withheld, withheld=True),
        truth=truth(world),
        world=world,
    )


def _cells_of(world: World, counts: list[sparse.csr_array], *, withheld: bool) -> AnnData:
    """Counts, in the order drawn, with their labels."""
    obs = in_our_words(all_cells(world, withheld=withheld))
    var = pd.DataFrame(index=pd.Index(world.genes, name="gene"))
    return AnnData(sparse.csr_matrix(sparse.vstack(counts)), obs=obs, var=var, uns=metadata(world))


def load_world(folder: str | Path) -> World:
    """The world behind a simulated folder, rebuilt from its ``simulation.toml``: to draw the same wells again."""
    values = tomllib.loads(require_file(Path(folder) / "simulation.toml", "simulation").read_text())
    return build_world(SimulationSettings.load(base=values["settings"]), seed=values["seed"])


_REPLICATE = "de_replicate.parquet"


def write_replicate(folder: str | Path, *, replicate: int = 1) -> Path:
    """Write ``de_replicate.parquet`` into a simulated folder: the table of :func:`replicate_table`."""
    path = Path(folder) / _REPLICATE
    table = _replicate_table(load_world(folder), replicate=replicate)
    with atomic_path(path) as part:
        table.rename_axis(index=KEY).reset_index().to_parquet(part, index=False)
    return path


def _replicate_table(world: World, *, replicate: int = 1) -> pd.DataFrame:
    """Signed -log10 p of the withheld conditions, from wells of other cells and other well effects.

    Vehicle and positive controls are drawn anew, too; plates, donors, numbers of cells and depths are the experiment's
    own. Conditions x genes.
    """
    groups = world.groups
    chosen = np.flatnonzero(
        groups["cell_type"].isin(WITHHELD_TYPES) & (groups["n_cells"] > 0)
    ).tolist()
    sums = [
        world.draw(group, replicate=replicate).sum(axis=0)
        for group in track(chosen, "repeating wells")
    ]
    counts = sparse.vstack(
        [sparse.csr_array(np.atleast_2d(np.asarray(row))) for row in sums]
    ).tocsr()
    obs = group_obs(world).iloc[chosen]
    obs = in_our_words(
        obs.assign(obs_id=obs["plate_name"] + "_" + obs["well"] + "_" + obs["cell_type"])
    )
    bulk = AnnData(counts, obs=obs, var=pd.DataFrame(index=pd.Index(world.genes, name="gene")))
    table = flavour_table(bulk, flavour="kaggle").signed_log10_p
    wanted = pd.MultiIndex.from_frame(id_map(world)[KEY], names=table.index.names)
    return (
        table[table.notna().all(axis=1)]
        .rename_axis(columns="gene")
        .loc[lambda t: t.index.isin(wanted)]
    )
