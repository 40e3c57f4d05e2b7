"""Labels of cells: ids, the competition's obs columns, and spurious entries that a reader must remove.

Conditions (cell type x compound): which were measured, which are withheld, and what is true of each.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.data import KAGGLE_COLUMNS
from perturbgen.simulate.op3.counts import Stream, stream
from perturbgen.simulate.op3.settings import CELL_TYPES, WITHHELD_TYPES
from perturbgen.simulate.op3.world import Chunk, World

_OBS_COLUMNS: Final = (
    "obs_id",
    "library_id",
    "plate_name",
    "well",
    "row",
    "col",
    "cell_id",
    "donor_id",
    "cell_type",
    "sm_lincs_id",
    "sm_name",
    "SMILES",
    "dose_uM",
    "timepoint_hr",
    "control",
)
# The steps of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64-bit integers: ids never collide.
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))


def _cell_ids(first: int, count: int, *, seed: int) -> list[str]:
    """Ids (16 hexadecimal digits) of the cells numbered from ``first``: unique, and in no telling order."""
    x = np.arange(first, first + count, dtype=np.uint64)
    x = (x + np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) * _GOLDEN
    for shift, factor in _MIX:
        x = (x ^ (x >> np.uint64(shift))) * factor
    x = x ^ (x >> np.uint64(31))
    return [f"{value:016x}" for value in x.tolist()]


def multiome_ids(count: int, *, seed: int) -> list[str]:
    """Ids of the multiome's cells, which are other cells than the experiment's."""
    return _cell_ids(2**62, count, seed=seed)


def all_cells(world: World, *, withheld: bool) -> pd.DataFrame:
    """The obs table of the released or of the withheld cells, in the competition's columns, in the order drawn."""
    groups = world.groups
    first = np.concatenate([[0], np.cumsum(groups["n_cells"])])[:-1]
    chosen = np.flatnonzero((groups["withheld"] == withheld) & (groups["n_cells"] > 0))
    counts = groups["n_cells"].to_numpy()
    obs = group_obs(world).iloc[np.repeat(chosen, counts[chosen])].reset_index(drop=True)
    ids = [
        name
        for group in chosen
        for name in _cell_ids(int(first[group]), int(counts[group]), seed=world.seed)
    ]
    obs.insert(0, "obs_id", ids)
    return obs[list(_OBS_COLUMNS)]


def group_obs(world: World) -> pd.DataFrame:
    """What all cells of a group (well x cell type) have in common, one row a group."""
    compounds = world.layout.compounds
    table = world.groups.join(compounds, on="sm_name")
    return table.assign(cell_id="PBMC", timepoint_hr=24)[
        [name for name in _OBS_COLUMNS if name != "obs_id"]
    ]


def in_our_words(obs: pd.DataFrame) -> pd.DataFrame:
    """The obs table indexed by ``obs_id``, with our columns added to the competition's own."""
    obs = obs.set_index("obs_id")
    return obs.assign(
        **{ours: obs[theirs] for theirs, ours in KAGGLE_COLUMNS.items() if theirs != ours}
    )


def chunk_ids(world: World, chunk: Chunk) -> list[str]:
    """The ids of a chunk's cells."""
    return _cell_ids(chunk.first_cell, chunk.counts.shape[0], seed=world.seed)


def spurious_entries(world: World, chunk: Chunk) -> sparse.csr_array:
    """Counts (cells, genes) that the released file has in error, at places where the true count is zero."""
    rng = stream(world.seed, Stream.EXCLUDED, chunk.group)
    cells, genes = chunk.counts.shape
    tries = rng.poisson(world.settings.files.excluded_rate * chunk.counts.nnz)
    flat = np.unique(rng.integers(cells * genes, size=tries))
    flat = flat[~np.isin(flat, _flat_positions(chunk.counts), assume_unique=True)]
    count = rng.integers(1, 4, size=len(flat)).astype(np.int32)
    return sparse.coo_array((count, np.divmod(flat, genes)), shape=(cells, genes)).tocsr()


def _flat_positions(counts: sparse.csr_array) -> np.ndarray:
    """cell x genes + gene of every stored entry, as 64-bit integers."""
    cell = np.repeat(np.arange(counts.shape[0], dtype=np.int64), np.diff(counts.indptr))
    return cell * counts.shape[1] + counts.indices


_MILLION = 1e6
KEY = ["cell_type", "sm_name"]


def _condition_table(world: World) -> pd.DataFrame:
    """Every cell type x compound, vehicle included: cells, donors, whether withheld, strength, mechanism, survival."""
    index = pd.MultiIndex.from_product([CELL_TYPES, world.effects.compounds.index], names=KEY)
    alive = world.groups[world.groups["n_cells"] > 0]
    table = pd.DataFrame(index=index).reset_index()
    table = table.join(alive.groupby(KEY)["n_cells"].sum(), on=KEY).fillna({"n_cells": 0})
    table = table.join(alive.groupby(KEY)["donor_id"].nunique().rename("n_donors"), on=KEY).fillna(
        {"n_donors": 0}
    )
    withheld = world.groups.groupby(KEY)["withheld"].first()
    table = table.join(withheld, on=KEY).join(world.effects.compounds, on="sm_name")
    survival = world.effects.survival.rename_axis(index="cell_type", columns="sm_name")
    table = table.join(pd.Series(survival.stack(), name="survival"), on=KEY)
    table = table.join(world.layout.compounds[["sm_lincs_id", "SMILES", "control"]], on="sm_name")
    return table.astype({"n_cells": int, "n_donors": int, "withheld": bool})


def train_rows(world: World) -> pd.DataFrame:
    """The rows of ``de_train``: measured conditions with cells, the vehicle excepted; in the real order if known."""
    columns = ["cell_type", "sm_name", "sm_lincs_id", "SMILES", "control"]
    if world.layout.train_rows is not None:
        return world.layout.train_rows[columns]
    table = _condition_table(world)
    measured = table[
        ~table["withheld"] & (table["n_cells"] > 0) & (table["sm_name"] != world.layout.vehicle)
    ]
    return measured.sort_values(["sm_name", "cell_type"])[columns].reset_index(drop=True)


def id_map(world: World) -> pd.DataFrame:
    """The rows to predict: id, cell_type, sm_name; withheld conditions with cells, B before Myeloid, by compound."""
    if world.layout.id_map is not None:
        return world.layout.id_map[["id", *KEY]]
    table = _condition_table(world)
    withheld = table[table["withheld"] & (table["n_cells"] > 0)]
    parts = [
        withheld[withheld["cell_type"] == name].sort_values("sm_name") for name in WITHHELD_TYPES
    ]
    rows = pd.concat(parts)[KEY].reset_index(drop=True)
    return rows.rename_axis("id").reset_index()


def truth(world: World) -> AnnData:
    """What is true of every condition: layers ``logFC`` (programmed, log2) and ``mean`` (counts per million).

    ``mean`` is noise-free, for an average donor and plate and without ambient RNA; it adds up to a million, so that its
    ratio to the vehicle's differs from ``logFC`` by one constant in a condition.
    """
    obs = _condition_table(world)
    n_types, n_compounds, n_genes = world.effects.log2_fold_change.shape
    log2_fold_change = world.effects.log2_fold_change.reshape(n_types * n_compounds, n_genes)
    mean = np.empty_like(log2_fold_change)
    for i, (cell_type, compound) in enumerate(zip(obs["cell_type"], obs["sm_name"], strict=True)):
        mean[i] = _MILLION * world.expected_share(cell_type, compound)
    obs.index = pd.Index(obs["cell_type"] + "|" + obs["sm_name"], name="condition")
    var = pd.DataFrame({"nb_size": world.r}, index=pd.Index(world.genes, name="gene"))
    return AnnData(
        obs=obs,
        var=var,
        layers={"logFC": log2_fold_change, "mean": mean},
        uns={**metadata(world), "unit": "log2, CPM"},
    )


def metadata(world: World) -> dict[str, str | int | float]:
    """What every simulated file says of itself."""
    return {
        "kind": world.kind,
        "vehicle": world.layout.vehicle,
        "seed": world.seed,
        "mean_depth": world.depth,
        "settings": world.settings.to_toml(),
    }
