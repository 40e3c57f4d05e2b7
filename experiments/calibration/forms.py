"""The three tables that the real numbers were made from, of any experiment's pseudobulk.

An experiment's pseudobulk has a row for each plate, well and cell type (six types), obs with the
columns of :meth:`perturbgen.simulation.World.samples`. The competition's form is one fit for each
of the six types, unfiltered; the benchmark's form merges the T cells, leaves out what its authors
removed, and is one joint fit of the genes that pass filterByExpr in every type.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from perturbgen.core.errors import SchemaError
from perturbgen.core.tables import VEHICLE
from perturbgen.de import flavour_table

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable

WELL = ["plate_name", "well"]
# Of the competition's genes; subsets are compared as shares of them.
GENES = 18_211
# What the benchmark's authors removed of whole conditions (their rules for single donors aside).
_REMOVED = {
    "Alvocidib": None,
    "CGP 60474": None,
    "UNII-BXU45ZH6LI": None,
    "BMS-387032": ("B cells", "Myeloid cells"),
    "Canertinib": ("Myeloid cells",),
    "Foretinib": ("Myeloid cells",),
    "PF-04691502": ("Myeloid cells",),
    "Proscillaridin A;Proscillaridin-A": ("Myeloid cells",),
    "R428": ("NK cells",),
}


@dataclass(frozen=True)
class Forms:
    """An experiment's pseudobulk, and the tables made of it when they are asked for.

    ``trained`` are the competition's rows to learn from (cell_type, sm_name).
    """

    bulk: AnnData
    trained: pd.MultiIndex

    @cached_property
    def competition(self) -> DETable:
        """The organisers' fits of the six cell types, every gene."""
        return flavour_table(self.bulk, flavour="kaggle")

    @cached_property
    def benchmark(self) -> DETable:
        """The joint fit of four cell types, genes that the filter keeps."""
        table = flavour_table(curated(merged_t_cells(self.bulk)), flavour="op3")
        kept = table.genes[table.t.notna().all()]
        frames = {name: getattr(table, name)[kept] for name in table.STATISTICS}
        return type(table)(**frames, conditions=table.conditions, info=table.info, clip=table.clip)

    @cached_property
    def places(self) -> pd.DataFrame:
        """Of every compound (index: sm_name) ``library``, ``row`` and ``col``; none of controls."""
        obs = self.bulk.obs
        wells = obs[~obs["control"].astype(bool)].drop_duplicates("sm_name").set_index("sm_name")
        plates = obs.groupby("sm_name", observed=True)["plate_name"].agg(lambda x: min(map(str, x)))
        table = wells[["row", "col"]].astype(str)
        # a compound's plates are its library's; the first of them by name stands for all
        return table.assign(library=_library(plates.reindex(table.index)))


def _library(plate: pd.Series) -> pd.Series:
    return plate.isin(["plate_0", "plate_4", "plate_5"]).map({True: "first", False: "second"})


def merged_t_cells(bulk: AnnData) -> AnnData:
    """The pseudobulk with the T cells of a well as one type, which the benchmark merged."""
    from anndata import AnnData

    kind = merged_types(bulk.obs["cell_type"])
    places = [bulk.obs[name].astype(str) for name in WELL]
    codes, names = pd.factorize(places[0] + "_" + places[1] + "_" + kind)
    adds = sparse.csr_matrix((np.ones(len(codes), dtype=np.int64), (codes, np.arange(len(codes)))))
    first = np.unique(codes, return_index=True)[1]
    obs = bulk.obs.iloc[first].assign(cell_type=kind.iloc[first].to_numpy())
    total = adds @ bulk.X.astype(np.int64)
    return AnnData(total, obs=obs.set_axis(names), var=bulk.var)


def merged_types(kind: pd.Series) -> pd.Series:
    """Cell types, those of T cells as one."""
    text = kind.astype(str)
    return text.mask(text.str.startswith("T "), "T cells")


def curated(bulk: AnnData) -> AnnData:
    """Without the conditions that the benchmark's authors removed, and without empty samples."""
    drop = np.asarray(bulk.X.sum(axis=1)).ravel() == 0
    for compound, kinds in _REMOVED.items():
        here = (bulk.obs["sm_name"] == compound).to_numpy()
        drop |= here if kinds is None else here & bulk.obs["cell_type"].isin(kinds).to_numpy()
    return bulk[~drop].copy()


def well_effects(bulk: AnnData) -> tuple[np.ndarray, pd.DataFrame]:
    """log(1 + CPM) of a well's cells of one type less the mean of the vehicle's wells of the same
    type and donor, the most variable genes: (samples, genes), and obs of the samples.

    The real ones are of 2,000 genes; a subset of genes has its share of them, and its CPM are of
    the library that all genes would have had.
    """
    counts = np.asarray(bulk.X.todense(), dtype=np.float32)
    share = min(1.0, counts.shape[1] / GENES)
    total = counts.sum(axis=1, keepdims=True)
    alive = total.ravel() > 0
    logs = np.log1p(counts[alive] / total[alive] * np.float32(1e6 * share))
    obs = bulk.obs[alive].reset_index(drop=True)
    vehicle = (obs["sm_name"] == VEHICLE).to_numpy()
    keys = obs["cell_type"].astype(str) + "|" + obs["donor_id"].astype(str)
    codes, names = pd.factorize(keys)
    # a type and donor without vehicle wells have nothing to be compared with
    compared = [i for i in range(len(names)) if (vehicle & (codes == i)).any()]
    treated = ~vehicle & np.isin(codes, compared)
    if treated.sum() < 2:
        raise SchemaError(
            f"{treated.sum()} wells have vehicle wells of their cell type and donor",
            expected="2 or more",
        )
    means = np.zeros((len(names), logs.shape[1]), dtype=np.float32)
    for i in compared:
        means[i] = logs[vehicle & (codes == i)].mean(axis=0)
    effects = (logs - means[codes])[treated]
    chosen = np.sort(np.argsort(effects.var(axis=0))[-max(2, round(2000 * share)) :])
    return effects[:, chosen], obs[treated].reset_index(drop=True)
