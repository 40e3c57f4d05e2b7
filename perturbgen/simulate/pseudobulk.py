"""Sums of true counts by well and cell type, gathered while the cells go by."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.simulate.cells import group_obs, in_our_words
from perturbgen.simulate.conditions import metadata
from perturbgen.simulate.world import Chunk, World


class PseudobulkSums:
    """Collects one sample for every group that has cells (spurious entries are never among them).

    A sum is of one well's cells and fits 32 bits by far; sums of these are for the reader to take in 64.
    """

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._rows: list[sparse.csr_array] = []

    def add(self, chunk: Chunk) -> None:
        """Take in a group's cells."""
        total = np.asarray(chunk.counts.sum(axis=0), dtype=np.int32).reshape(1, -1)
        self._groups.append(chunk.group)
        self._rows.append(sparse.csr_array(total))

    def table(self, world: World) -> AnnData:
        """Samples x genes with the competition's columns and ours, ``n_cells`` and ``withheld``."""
        obs = group_obs(world).iloc[self._groups].reset_index(drop=True)
        extra = world.groups.iloc[self._groups].reset_index(drop=True)
        key = obs["plate_name"] + "_" + obs["well"] + "_" + obs["cell_type"]
        obs = in_our_words(obs.assign(obs_id=key)).drop(columns="cell_id")
        obs["n_cells"], obs["withheld"] = extra["n_cells"].to_numpy(), extra["withheld"].to_numpy()
        var = pd.DataFrame(index=pd.Index(world.genes, name="gene"))
        return AnnData(sparse.csr_matrix(sparse.vstack(self._rows)), obs=obs, var=var, uns=metadata(world))
