"""Generated experiments on disk: one h5ad a replicate, written cell block by cell block, and never twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.console import progress
from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, require_writable
from perturbgen.generate.cells import CellGenerator, Plan, cell_counts

log = logging.getLogger(__name__)

_ABOUT = "generation.json"
_HASH = 64  # letters


def write_replicates(
    generator: CellGenerator,
    plan: Plan,
    wells: pd.DataFrame,
    folder: Path,
    *,
    replicates: int,
    about: Mapping[str, Any],
) -> list[Path]:
    """Write ``replicate-0001.h5ad`` and so on, and ``wells.csv`` with the cells of each; finished files are kept.

    ``about`` says what the folder holds; a folder that holds something else is refused.
    """
    _claim(folder, about)
    numbers = range(1, replicates + 1)
    sizes = ((k, plan.libraries(k)) for k in numbers)
    counts = cell_counts(wells, sizes)
    with atomic_path(folder / "wells.csv") as part:
        counts.to_csv(part, index=False)
    _note_missing(counts)
    paths = [folder / f"replicate-{k:04d}.h5ad" for k in numbers]
    done = [path.exists() for path in paths]
    if any(done):
        log.info("%d of %d replicates are there already", sum(done), replicates)
    todo = [(k, path) for k, path, there in zip(numbers, paths, done, strict=True) if not there]
    total = sum(int(counts[f"replicate {k}"].sum()) for k, _ in todo)
    with progress("generating cells", total) as tick:
        for k, path in todo:
            _write_replicate(generator, plan, wells, path, replicate=k, tick=tick)
    return paths


def _write_replicate(
    generator: CellGenerator,
    plan: Plan,
    wells: pd.DataFrame,
    path: Path,
    *,
    replicate: int,
    tick: Any,
) -> None:
    """One replicate; the file has its name only when it is whole."""
    from perturbgen.data.h5ad import SparseH5ad

    lengths = [len(size) for size in plan.libraries(replicate)]
    var = pd.DataFrame(index=pd.Index(generator.genes, name="gene"))
    uns = {"kind": "generated", "replicate": replicate, "seed": plan.seed}
    with (
        atomic_path(path) as part,
        SparseH5ad(part, obs=_cell_obs(wells, lengths, replicate), var=var, uns=uns) as file,
    ):
        for cells in generator.draw(plan, wells, replicate=replicate):
            file.add(cells.counts)
            tick(cells.counts.shape[0])


def _cell_obs(wells: pd.DataFrame, lengths: list[int], replicate: int) -> pd.DataFrame:
    """The labels of a replicate's cells, well after well, as :meth:`CellGenerator.draw` gives their counts."""
    well = np.repeat(np.arange(len(wells)), lengths)
    number = np.concatenate([[0][:0], *(np.arange(n) for n in lengths)]).astype(int)
    obs = wells.iloc[well].reset_index(drop=True)
    names = (
        obs[["plate", "well", "cell_type"]].astype(str).agg("_".join, axis=1)
        if len(obs)
        else obs.index
    )
    obs.index = pd.Index(
        [f"generated_{replicate}_{name}_{i}" for name, i in zip(names, number, strict=True)],
        dtype=str,
    )
    for name in obs.columns:
        obs[name] = obs[name].astype("category")
    return obs


def _note_missing(counts: pd.DataFrame) -> None:
    """Say for which wells no cell was drawn: they stay missing, as a donor that lost its cells does."""
    drawn = counts.filter(regex=r"^replicate \d+$")
    zeros = int((drawn == 0).to_numpy().sum())
    if zeros:
        log.info(
            "no cell was drawn for %d of %d wells (zeros in wells.csv): those donors stay missing",
            zeros,
            drawn.size,
        )


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder ours, if it is not yet."""
    require_ours(folder, about)
    with atomic_path(folder / _ABOUT) as part:
        part.write_text(json.dumps(dict(about), indent=1))


def require_ours(folder: Path, about: Mapping[str, Any]) -> None:
    """The folder holds replicates of the same kind, or none."""
    path = folder / _ABOUT
    require_writable(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder} is a file", expected="a folder to write to", fix="choose another --out"
        )
    if path.exists():
        found = json.loads(path.read_text())
        differing = [key for key in {**found, **about} if found.get(key) != about.get(key)]
        if differing:
            key = differing[0]
            before, now = _brief(found.get(key)), _brief(about.get(key))
            raise InputError(
                f"{folder} holds another generation: {key} was {before}, and is {now} now",
                expected="the same run, conditions, seed and latent route as before",
                fix="choose another --out, or delete the folder",
            )


def _brief(value: object) -> str:
    """A value of a record; a hash by its beginning."""
    text = repr(value)
    return text if len(text) < _HASH else f"{text[:20]}…'"
