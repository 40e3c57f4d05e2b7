"""The small tables of the competition's file set, as data frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.simulate.cells import multiome_ids
from perturbgen.simulate.conditions import KEY, id_map, train_rows
from perturbgen.simulate.de_stage import de_table
from perturbgen.simulate.sampling import Stream, sample_nb_sparse, stream
from perturbgen.simulate.settings import CELL_TYPES
from perturbgen.simulate.world import World, normalised


def de_tables(world: World, pseudobulk: AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``de_train`` (labels, then genes) and the withheld conditions' table in ``id_map`` order, from one fit."""
    table = de_table(pseudobulk.X, pseudobulk.obs, genes=world.genes)
    train, wanted = train_rows(world), id_map(world)
    released = table.reindex(pd.MultiIndex.from_frame(train[KEY])).reset_index(drop=True)
    truth = table.reindex(pd.MultiIndex.from_frame(wanted[KEY])).reset_index(drop=True)
    return pd.concat([train, released], axis=1), pd.concat([wanted, truth], axis=1)


def sample_submission(world: World) -> pd.DataFrame:
    """The ids to predict with zeros for every gene."""
    ids = id_map(world)["id"]
    return pd.DataFrame(0.0, index=pd.Index(ids, name="id"), columns=world.genes).reset_index()


def multiome(world: World) -> tuple[pd.DataFrame, pd.DataFrame, sparse.csr_array]:
    """Untreated cells' RNA: obs (obs_id, cell_type, donor_id), var (location, gene_id, feature_type), counts."""
    rng = stream(world.seed, Stream.MULTIOME)
    expected = world.groups[world.groups["sm_name"] == world.layout.vehicle].groupby(["cell_type", "donor_id"])
    weights = expected["n_cells"].sum()
    cells = rng.multinomial(world.settings.files.multiome_cells, weights / weights.sum())
    parts, labels = [], []
    for (cell_type, donor), count in zip(weights.index, cells, strict=True):
        share = world.share.loc[cell_type] * np.exp(world.noise.donor[donor][CELL_TYPES.index(cell_type)])
        size = world.depth * np.exp(rng.normal(0, world.settings.depth.cell_log_sd, count))
        parts.append(sample_nb_sparse(rng, size=size, share=normalised(share.to_numpy()), r=world.r))
        labels += [(cell_type, donor)] * count
    obs = pd.DataFrame(labels, columns=["cell_type", "donor_id"])
    obs.insert(0, "obs_id", multiome_ids(len(obs), seed=world.seed))
    var = pd.DataFrame({"location": world.genes, "gene_id": world.genes, "feature_type": "Gene Expression"})
    return obs, var, sparse.csr_array(sparse.vstack(parts))
