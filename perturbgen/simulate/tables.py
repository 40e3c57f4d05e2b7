"""The small tables of the competition's file set, as data frames."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.de.flavours import flavour_table
from perturbgen.simulate.cells import multiome_ids
from perturbgen.simulate.composition import mean_one
from perturbgen.simulate.conditions import KEY, id_map, train_rows
from perturbgen.simulate.sampling import Stream, sample_nb_sparse, stream
from perturbgen.simulate.settings import CELL_TYPES
from perturbgen.simulate.world import World, normalised


def de_tables(world: World, pseudobulk: AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``de_train`` (labels, then genes) and the withheld rows in ``id_map`` order, from the organisers' fit."""
    table = flavour_table(pseudobulk, flavour="kaggle").signed_log10_p.rename_axis(KEY)
    train, wanted = train_rows(world), id_map(world)
    released = table.reindex(pd.MultiIndex.from_frame(train[KEY])).reset_index(drop=True)
    truth = table.reindex(pd.MultiIndex.from_frame(wanted[KEY])).reset_index(drop=True)
    return pd.concat([train, released], axis=1), pd.concat([wanted, truth], axis=1)


def sample_submission(world: World) -> pd.DataFrame:
    """The ids to predict with zeros for every gene."""
    ids = id_map(world)["id"]
    return pd.DataFrame(0.0, index=pd.Index(ids, name="id"), columns=world.genes).reset_index()


def multiome(world: World) -> Iterator[tuple[pd.DataFrame, sparse.csr_array]]:
    """Untreated cells' RNA, by cell type and donor: their obs (obs_id, cell_type, donor_id) and counts."""
    vehicle = world.groups[world.groups["sm_name"] == world.layout.vehicle]
    weights = vehicle.groupby(["cell_type", "donor_id"])["n_cells"].sum()
    rng = stream(world.seed, Stream.MULTIOME)
    cells = rng.multinomial(world.settings.files.multiome_cells, weights / weights.sum())
    ids = multiome_ids(int(cells.sum()), seed=world.seed)
    for (cell_type, donor), count, last in zip(weights.index, cells, np.cumsum(cells), strict=True):
        obs = pd.DataFrame({"obs_id": ids[last - count : last], "cell_type": cell_type, "donor_id": donor})
        yield obs, untreated(world, cell_type, donor, n=count, rng=rng)


def untreated(world: World, cell_type: str, donor: str, *, n: int, rng: np.random.Generator) -> sparse.csr_array:
    """Counts (cells, genes) of untreated cells of a donor."""
    share = world.share.loc[cell_type] * np.exp(world.noise.donor[donor][CELL_TYPES.index(cell_type)])
    size = world.depth * mean_one(rng, world.settings.depth.cell_log_sd, (n,))
    return sample_nb_sparse(rng, size=size, share=normalised(share.to_numpy()), r=world.r)
