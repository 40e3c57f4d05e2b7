"""Generated experiments on disk: one h5ad a replicate, written as it is drawn, and never twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.core.console import progress
from perturbgen.core.errors import InputError
from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path, only_writer, read_json, require_writable
from perturbgen.generate.cells import CellGenerator, Plan
from perturbgen.generate.wells import GROUP

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

_ABOUT: Final = "generation.json"
_HASH: Final = 64  # letters of a hash, which a message shows by its beginning


@dataclass(frozen=True)
class ReplicateFolder:
    """A folder of generated experiments; ``about`` says of what (run, conditions, seed, ...)."""

    path: Path
    about: Mapping[str, Any]

    def write(
        self, generator: CellGenerator, plan: Plan, wells: pd.DataFrame, *, replicates: int
    ) -> list[Path]:
        """Write ``replicate-0001.h5ad`` and so on, and ``wells.csv`` with the cells of each.

        Finished files are kept; a folder that holds something else is refused.
        """
        self.require()
        with only_writer(self.path):
            self.require()  # once more: another process may have ended meanwhile
            with atomic_path(self.path / _ABOUT) as part:
                part.write_text(json.dumps(dict(self.about), indent=1))
            numbers = range(1, replicates + 1)
            drawn = {f"replicate {k}": [len(sizes) for sizes in plan.libraries(k)] for k in numbers}
            counts = pd.DataFrame(drawn, index=wells.index)
            # Written first: it says how many cells to expect, if the run is interrupted.
            write_table(wells.join(counts), self.path / "wells.csv")
            zeros = int((counts == 0).to_numpy().sum())
            if zeros:
                log.info(
                    "no cell was drawn for %d of %d wells (zeros in wells.csv): "
                    "those donors stay missing",
                    zeros,
                    counts.size,
                )
            paths = [self.path / f"replicate-{k:04d}.h5ad" for k in numbers]
            # A file has its name only when it is whole: what is there need not be made again.
            todo = [(k, path) for k, path in zip(numbers, paths, strict=True) if not path.exists()]
            if len(todo) < replicates:
                log.info(
                    "%d of %d replicates are there already", replicates - len(todo), replicates
                )
            total = sum(int(counts[f"replicate {k}"].sum()) for k, _ in todo)
            with progress("generating cells", total) as tick:
                for k, path in todo:
                    _write_replicate(generator, plan, wells, path, replicate=k, tick=tick)
        return paths

    def require(self) -> None:
        """The folder holds replicates of the same kind, or none."""
        path, folder = self.path / _ABOUT, self.path
        require_writable(path)
        if folder.exists() and not folder.is_dir():
            raise InputError(
                f"{folder} is a file", expected="a folder to write to", fix="choose another --out"
            )
        if not path.exists():
            return
        found = read_json(path, "record of a generation")
        # Half of one generation and half of another would look like one.
        differing = [
            key for key in {**found, **self.about} if found.get(key) != self.about.get(key)
        ]
        if differing:
            key = differing[0]
            before, now = _brief(found.get(key)), _brief(self.about.get(key))
            raise InputError(
                f"{folder} holds another generation: {key} was {before}, and is {now} now",
                expected="the same run, conditions, seed and latent route as before",
                fix="choose another --out, or delete the folder",
            )


def draw_replicate(
    generator: CellGenerator, plan: Plan, wells: pd.DataFrame, *, replicate: int
) -> AnnData:
    """One generated experiment in memory: what :meth:`ReplicateFolder.write` writes."""
    from anndata import AnnData

    lengths = [len(size) for size in plan.libraries(replicate)]
    obs, var = _cell_obs(wells, lengths, replicate), pd.DataFrame(index=generator.genes)
    parts: list[Any] = [sp.csr_array((0, len(var)), dtype=np.int32)]
    with progress("generating cells", sum(lengths)) as tick:
        for cells in generator.draw(plan, wells, replicate=replicate):
            parts.append(cells.counts)
            tick(cells.counts.shape[0])
    uns = {"kind": "generated", "replicate": replicate, "seed": plan.seed}
    return AnnData(sp.csr_matrix(sp.vstack(parts)), obs=obs, var=var, uns=uns)


def _write_replicate(
    generator: CellGenerator,
    plan: Plan,
    wells: pd.DataFrame,
    path: Path,
    *,
    replicate: int,
    tick: Callable[[int], None],
) -> None:
    """One replicate; the file has its name only when it is whole."""
    from perturbgen.data import SparseH5ad

    lengths = [len(size) for size in plan.libraries(replicate)]
    obs = _cell_obs(wells, lengths, replicate)
    var = pd.DataFrame(index=pd.Index(generator.genes, name="gene"))
    uns = {"kind": "generated", "replicate": replicate, "seed": plan.seed}
    with atomic_path(path) as part, SparseH5ad(part, obs=obs, var=var, uns=uns) as file:
        for cells in generator.draw(plan, wells, replicate=replicate):
            file.add(cells.counts)
            tick(cells.counts.shape[0])


def _cell_obs(wells: pd.DataFrame, lengths: list[int], replicate: int) -> pd.DataFrame:
    """The labels of a replicate's cells, in the order of ``CellGenerator.draw``."""
    obs = wells.iloc[np.repeat(np.arange(len(wells)), lengths)].reset_index(drop=True)
    number = [i for n in lengths for i in range(n)]
    labels = (obs[name].astype(str) for name in GROUP)
    names = ["_".join(label) for label in zip(*labels, strict=True)]
    numbered = [f"generated_{replicate}_{name}_{i}" for name, i in zip(names, number, strict=True)]
    obs.index = pd.Index(numbered, dtype=str)
    for name in obs.columns:
        # A label of a hundred thousand cells is stored once.
        obs[name] = obs[name].astype("category")
    return obs


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < _HASH else f"{text[:20]}…'"
