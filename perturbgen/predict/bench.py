"""The experiment that generated wells join: real samples of the same cell types, and the organisers' fit of it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.data.pseudobulk import constant_columns, group_codes, pseudobulk
from perturbgen.de.flavours import CLIP, FLAVOURS, flavour_table
from perturbgen.predict.source import CONDITION
from perturbgen.sampling.plan import Plan
from perturbgen.sampling.wells import WELL

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.sampling.generate import CellGenerator

UNTREATED: Final = " (untreated)"
MOCKS: Final = 12  # compounds of a cell type in whose wells the vehicle is generated, too
TWIN: Final = " (generated)"  # ends the compound of wells that were measured, too, and are generated beside them


class Wells(NamedTuple):
    """Conditions to generate: their plan, its wells with all covariates, and what draws their cells."""

    plan: Plan
    wells: pd.DataFrame
    generator: CellGenerator
    suffix: str = ""

    @property
    def conditions(self) -> pd.MultiIndex:
        """Their labels in the fit."""
        table = self.plan.conditions
        return pd.MultiIndex.from_arrays([table["cell_type"], table["compound"] + self.suffix], names=CONDITION)

    def untreated(self, vehicle: str) -> Wells:
        """Wells like those of ``MOCKS`` compounds of each cell type, generated with the vehicle in them."""
        table = self.plan.conditions.sort_values(CONDITION)
        rank = table.groupby("cell_type").cumcount() / table.groupby("cell_type")["compound"].transform("size")
        step = (rank * MOCKS).astype(int)
        some = table[~pd.concat([table["cell_type"], step], axis=1).duplicated()]
        chosen = pd.MultiIndex.from_frame(self.wells[CONDITION]).isin(pd.MultiIndex.from_frame(some[CONDITION]))
        wells = self.wells[chosen].reset_index(drop=True).assign(compound=vehicle)
        return Wells(Plan(self.plan.sampler, some, self.plan.seed), wells, self.generator, self.suffix + UNTREATED)

    def untreated_conditions(self, vehicle: str, conditions: pd.MultiIndex) -> pd.MultiIndex:
        """The label of the untreated wells that each condition is compared with."""
        kinds = conditions.get_level_values(0)
        return pd.MultiIndex.from_arrays([kinds, [vehicle + self.suffix + UNTREATED] * len(kinds)], names=CONDITION)


@dataclass(frozen=True)
class Bench:
    """Real samples (plate x well x cell type), what is true of every well, and how they are fitted."""

    real: AnnData
    well_obs: pd.DataFrame
    control: str
    flavour: str

    @classmethod
    def of(cls, cells: AnnData, kinds: Sequence[str], *, control: str, flavour: str) -> Bench:
        """Of the measured cells of some cell types, of all where the flavour fits them jointly.

        Generated wells get the labels of their well's other cells.
        """
        codes, _ = group_codes(cells.obs, WELL)
        well_obs = constant_columns(cells.obs, codes, WELL)
        fitted = FLAVOURS[flavour].get("joint", False) | cells.obs["cell_type"].astype(str).isin(kinds).to_numpy()
        real = pseudobulk(cells[fitted], by=[*WELL, "cell_type"])
        real.obs = plain(real.obs[[name for name in (*well_obs, "cell_type", "n_cells") if name in real.obs]])
        return cls(real, plain(well_obs), control, flavour)

    def clipped(self, values: pd.DataFrame) -> pd.DataFrame:
        """Signed -log10 p within the flavour's limit, as what is measured is."""
        limit = CLIP[self.flavour]
        return values if limit is None else values.clip(-limit, limit)

    @cached_property
    def measured(self) -> DETable:
        """The fit of the real samples alone."""
        return self.fit()

    def fit(self, *samples: AnnData, **options: Any) -> DETable:
        """The fit of the real samples and others; ``options`` are those of ``flavour_table``."""
        from anndata import AnnData

        everything = [self.real, *samples]
        counts = sp.vstack([sp.csr_array(part.X) for part in everything], format="csr")
        obs = pd.concat([part.obs for part in everything])
        joined = AnnData(counts, obs=obs, var=pd.DataFrame(index=self.real.var_names))
        return flavour_table(joined, flavour=self.flavour, control=self.control, **options)

    def samples(self, group: Wells, sums: sp.csr_array | np.ndarray, cells: np.ndarray) -> AnnData:
        """Samples of generated sums (wells, genes), labelled as their wells are; wells without cells are missing."""
        from anndata import AnnData

        keep = np.flatnonzero((cells > 0) & (np.asarray(sums.sum(axis=1)).ravel() > 0))
        wells = group.wells.iloc[keep]
        own = wells[[*WELL, "cell_type"]].astype(str).reset_index(drop=True)
        obs = own.merge(self.well_obs, on=WELL, how="left", validate="many_to_one")
        obs["compound"] = wells["compound"].astype(str).to_numpy() + group.suffix
        obs["n_cells"] = cells[keep]
        obs.index = pd.Index(obs[[*WELL, "cell_type"]].agg("|".join, axis=1) + f"|generated{group.suffix}")
        obs = obs[[name for name in self.real.obs if name in obs]]
        made = AnnData(sp.csr_array(sums[keep]), obs=obs, var=pd.DataFrame(index=group.generator.genes))
        return made if made.var_names.equals(self.real.var_names) else made[:, self.real.var_names].copy()

    def draw(self, group: Wells, *, replicate: int) -> AnnData:
        """Generated samples of a replicate."""
        sums, cells = group.generator.drawn_sums(group.plan, group.wells, replicate=replicate)
        return self.samples(group, sums, cells)


def plain(obs: pd.DataFrame) -> pd.DataFrame:
    """Labels as text, so that those of real and of generated samples join."""
    return obs.astype({name: str for name in obs.columns if name != "n_cells"})
