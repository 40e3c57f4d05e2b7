"""The experiment once more: the withheld cell types drawn anew, to see how well a measurement predicts itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.console import track
from perturbgen.de.flavours import flavour_table
from perturbgen.files import atomic_path
from perturbgen.simulate.cells import group_obs, in_our_words
from perturbgen.simulate.conditions import KEY, id_map
from perturbgen.simulate.experiment import load_world
from perturbgen.simulate.settings import WITHHELD_TYPES
from perturbgen.simulate.world import World

REPLICATE = "de_replicate.parquet"


def write_replicate(folder: str | Path, *, replicate: int = 1) -> Path:
    """Write ``de_replicate.parquet`` into a simulated folder: the table of :func:`replicate_table`."""
    path = Path(folder) / REPLICATE
    table = replicate_table(load_world(folder), replicate=replicate)
    with atomic_path(path) as part:
        table.rename_axis(index=KEY).reset_index().to_parquet(part, index=False)
    return path


def replicate_table(world: World, *, replicate: int = 1) -> pd.DataFrame:
    """Signed -log10 p of the withheld conditions, from wells of other cells and other well effects.

    Vehicle and positive controls are drawn anew, too; plates, donors, numbers of cells and depths are the experiment's
    own. Conditions x genes.
    """
    groups = world.groups
    chosen = np.flatnonzero(groups["cell_type"].isin(WITHHELD_TYPES) & (groups["n_cells"] > 0)).tolist()
    sums = [world.draw(group, replicate=replicate).sum(axis=0) for group in track(chosen, "repeating wells")]
    counts = sparse.vstack([sparse.csr_array(np.atleast_2d(np.asarray(row))) for row in sums]).tocsr()
    obs = group_obs(world).iloc[chosen]
    obs = in_our_words(obs.assign(obs_id=obs["plate_name"] + "_" + obs["well"] + "_" + obs["cell_type"]))
    bulk = AnnData(counts, obs=obs, var=pd.DataFrame(index=pd.Index(world.genes, name="gene")))
    table = flavour_table(bulk, flavour="kaggle").signed_log10_p
    wanted = pd.MultiIndex.from_frame(id_map(world)[KEY], names=table.index.names)
    return table[table.notna().all(axis=1)].rename_axis(columns="gene").loc[lambda t: t.index.isin(wanted)]
