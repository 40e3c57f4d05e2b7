"""Conditions (cell type x compound): which were measured, which are withheld, and what is true of each."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from perturbgen.config import to_toml
from perturbgen.simulate.settings import CELL_TYPES, WITHHELD_TYPES
from perturbgen.simulate.world import World

MILLION = 1e6
KEY = ["cell_type", "sm_name"]


def condition_table(world: World) -> pd.DataFrame:
    """Every cell type x compound, vehicle included: cells, donors, whether withheld, strength, mechanism, survival."""
    index = pd.MultiIndex.from_product([CELL_TYPES, world.effects.compounds.index], names=KEY)
    alive = world.groups[world.groups["n_cells"] > 0]
    table = pd.DataFrame(index=index).reset_index()
    table = table.join(alive.groupby(KEY)["n_cells"].sum(), on=KEY).fillna({"n_cells": 0})
    table = table.join(alive.groupby(KEY)["donor_id"].nunique().rename("n_donors"), on=KEY).fillna({"n_donors": 0})
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
    table = condition_table(world)
    measured = table[~table["withheld"] & (table["n_cells"] > 0) & (table["sm_name"] != world.layout.vehicle)]
    return measured.sort_values(["sm_name", "cell_type"])[columns].reset_index(drop=True)


def id_map(world: World) -> pd.DataFrame:
    """The rows to predict: id, cell_type, sm_name; withheld conditions with cells, B before Myeloid, by compound."""
    if world.layout.id_map is not None:
        return world.layout.id_map[["id", *KEY]]
    table = condition_table(world)
    withheld = table[table["withheld"] & (table["n_cells"] > 0)]
    parts = [withheld[withheld["cell_type"] == name].sort_values("sm_name") for name in WITHHELD_TYPES]
    rows = pd.concat(parts)[KEY].reset_index(drop=True)
    return rows.rename_axis("id").reset_index()


def truth(world: World) -> AnnData:
    """What is true of every condition: layers ``logFC`` (programmed, log2) and ``mean`` (counts per million).

    ``mean`` is noise-free, for an average donor and plate and without ambient RNA; it adds up to a million, so that its
    ratio to the vehicle's differs from ``logFC`` by one constant in a condition.
    """
    obs = condition_table(world)
    n_types, n_compounds, n_genes = world.effects.log2_fold_change.shape
    log2_fold_change = world.effects.log2_fold_change.reshape(n_types * n_compounds, n_genes)
    mean = np.empty_like(log2_fold_change)
    for i, (cell_type, compound) in enumerate(zip(obs["cell_type"], obs["sm_name"], strict=True)):
        mean[i] = MILLION * world.expected_share(cell_type, compound)
    obs.index = pd.Index(obs["cell_type"] + "|" + obs["sm_name"], name="condition")
    var = pd.DataFrame({"nb_size": world.r}, index=pd.Index(world.genes, name="gene"))
    return AnnData(
        obs=obs, var=var, layers={"logFC": log2_fold_change, "mean": mean}, uns={**metadata(world), "unit": "log2, CPM"}
    )


def metadata(world: World) -> dict[str, str | int | float]:
    """What every simulated file says of itself."""
    return {
        "kind": world.kind,
        "vehicle": world.layout.vehicle,
        "seed": world.seed,
        "mean_depth": world.depth,
        "settings": to_toml(world.settings),
    }
