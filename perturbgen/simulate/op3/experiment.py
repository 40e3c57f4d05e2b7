"""Run a simulation: into memory, or into a folder of the competition's files.

The experiment once more: the withheld cell types drawn anew, to see how well a measurement predicts
itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack, overload

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.core.console import track
from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, require_file, require_writable
from perturbgen.de import flavour_table
from perturbgen.simulate.op3.competition import write_competition
from perturbgen.simulate.op3.settings import (
    CONDITION_KEY,
    WITHHELD_TYPES,
    SimulationSettings,
    preset_settings,
)
from perturbgen.simulate.op3.world import World, build_world


@dataclass(frozen=True)
class SimulatedExperiment:
    """A simulation in memory: released ``cells``, ``withheld`` cells, the ``truth``, the ``world``.

    obs has the columns of :mod:`perturbgen.data.schema` and the competition's own.
    """

    cells: AnnData
    withheld: AnnData
    truth: AnnData
    world: World


class _Options(TypedDict, total=False):
    """Real data that replace invented parts, a TOML file and ``a.b=value`` over the preset."""

    baseline: str | Path | None
    signatures: str | Path | None
    layout: str | Path | None
    config: str | Path | None
    overrides: Sequence[str]
    force: bool


@overload
def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int,
    out: None = None,
    **options: Unpack[_Options],
) -> SimulatedExperiment: ...


@overload
def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int,
    out: str | Path,
    **options: Unpack[_Options],
) -> Path: ...


def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int,
    out: str | Path | None = None,
    **options: Unpack[_Options],
) -> SimulatedExperiment | Path:
    """Simulate the OP3 experiment; with ``out``, write the competition's files and return it.

    ``preset`` is ``tiny``, ``small`` or ``op3`` (or settings made before, which nothing then
    changes). ``baseline``, ``signatures`` and ``layout`` name real data that replace invented
    parts; ``config`` is a TOML file, ``overrides`` are ``a.b=value``. ``force`` replaces an older
    simulation at ``out``, which appears only when all of it is written.
    """
    unknown = sorted(set(options) - set(_Options.__annotations__))
    if unknown:
        raise TypeError(f"simulate() got an unexpected keyword argument {unknown[0]!r}")
    if isinstance(preset, SimulationSettings):
        settings = preset
    else:
        settings = preset_settings(
            preset,
            config=options.get("config"),
            overrides=options.get("overrides", ()),
            sources={
                "baseline": options.get("baseline"),
                "signatures": options.get("signatures"),
                "layout": options.get("layout"),
            },
        )
    if out is None:
        return _in_memory(build_world(settings, seed=seed))
    out = Path(out)
    _require_replaceable(out, force=options.get("force", False))
    world = build_world(settings, seed=seed)
    with atomic_path(out) as part:
        part.mkdir()
        write_competition(world, part)
    return out


def _require_replaceable(out: Path, *, force: bool) -> None:
    """Nothing is at ``out``, or ``force`` may replace it: an older simulation, nothing else."""
    require_writable(out)
    if not out.exists():
        return
    if not force:
        raise InputError(
            f"{out} already exists", fix="choose another folder, or --force to replace it"
        )
    # --force on a mistyped folder must not delete what is no simulation
    if not out.is_dir() or (any(out.iterdir()) and not (out / "simulation.toml").exists()):
        raise InputError(
            f"{out} is not replaced, since it holds no simulation.toml: it may be something else",
            expected="a folder that simulate wrote",
            fix="choose another folder, or delete it yourself",
        )


def _in_memory(world: World) -> SimulatedExperiment:
    """Every cell of a world, drawn into memory."""
    counts: dict[bool, list[sparse.csr_array]] = {False: [], True: []}
    for chunk in world.chunks():
        counts[bool(world.groups["withheld"].iat[chunk.group])].append(chunk.counts)

    def cells(withheld: bool) -> AnnData:
        matrix = sparse.csr_matrix(sparse.vstack(counts[withheld]))
        obs = world.obs(withheld=withheld)
        return AnnData(matrix, obs=obs, var=world.var, uns=world.metadata)

    return SimulatedExperiment(cells(False), cells(True), world.truth(), world)


def load_world(folder: str | Path) -> World:
    """The world behind a simulated folder, rebuilt from its ``simulation.toml``.

    To draw the same wells again.
    """
    values = tomllib.loads(require_file(Path(folder) / "simulation.toml", "simulation").read_text())
    settings = SimulationSettings.load(base=values["settings"])
    return build_world(settings, seed=values["seed"])


def write_replicate(folder: str | Path, *, replicate: int = 1) -> Path:
    """Write ``de_replicate.parquet`` into a simulated folder: the withheld conditions once more.

    Signed -log10 p from wells of other cells and other well effects. Vehicle and positive controls
    are drawn anew, too; plates, donors, numbers of cells and depths are the experiment's own.
    """
    world = load_world(folder)
    groups = world.groups
    chosen = np.flatnonzero(groups["cell_type"].isin(WITHHELD_TYPES) & (groups["n_cells"] > 0))
    sums: dict[int, sparse.csr_array] = {}
    for group in track(chosen.tolist(), "repeating wells"):
        total = np.asarray(world.draw(group, replicate=replicate).sum(axis=0)).reshape(1, -1)
        sums[group] = sparse.csr_array(total)
    table = flavour_table(world.samples(sums), flavour="kaggle").signed_log10_p
    wanted = pd.MultiIndex.from_frame(world.id_map()[CONDITION_KEY])
    table = table[table.notna().all(axis=1) & table.index.isin(wanted)]
    path = Path(folder) / "de_replicate.parquet"
    with atomic_path(path) as part:
        table.rename_axis(index=CONDITION_KEY).reset_index().to_parquet(part, index=False)
    return path
