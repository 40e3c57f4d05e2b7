"""What is generated for a prediction, among which real samples; bad input is found here, before any work is done.

The experiment that generated wells join: real samples of the same cell types, and the organisers' fit of it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.data.aggregate import groups_of, pseudobulk
from perturbgen.de import CLIP, FLAVOURS, flavour_table
from perturbgen.generate.cells import Plan
from perturbgen.generate.wells import WELL
from perturbgen.predict.averages import require_compound
from perturbgen.predict.calibration import (
    calibration_conditions,
    nothing_measured,
    trained_conditions,
)
from perturbgen.predict.conditions import (
    CONDITION,
    blinded,
    in_run_genes,
    make_generator,
    make_plan,
    make_sampler,
    require_blind,
    vehicle_of,
    without,
)
from perturbgen.predict.estimators import ANCHORED, PredictSettings

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.generate import CellSampler
    from perturbgen.generate.cells import CellGenerator
    from perturbgen.train import TrainedRun

_UNTREATED: Final = " (untreated)"
_MOCKS: Final = 12  # compounds of a cell type in whose wells the vehicle is generated, too
_TWIN: Final = " (generated)"  # ends the compound of wells that were measured, too, and are generated beside them


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
        return pd.MultiIndex.from_arrays(
            [table["cell_type"], table["compound"] + self.suffix], names=CONDITION
        )

    def untreated(self, vehicle: str) -> Wells:
        """Wells like those of ``MOCKS`` compounds of each cell type, generated with the vehicle in them."""
        table = self.plan.conditions.sort_values(CONDITION)
        rank = table.groupby("cell_type").cumcount() / table.groupby("cell_type")[
            "compound"
        ].transform("size")
        step = (rank * _MOCKS).astype(int)
        some = table[~pd.concat([table["cell_type"], step], axis=1).duplicated()]
        chosen = pd.MultiIndex.from_frame(self.wells[CONDITION]).isin(
            pd.MultiIndex.from_frame(some[CONDITION])
        )
        wells = self.wells[chosen].reset_index(drop=True).assign(compound=vehicle)
        return Wells(
            Plan(self.plan.sampler, some, self.plan.seed),
            wells,
            self.generator,
            self.suffix + _UNTREATED,
        )

    def untreated_conditions(self, vehicle: str, conditions: pd.MultiIndex) -> pd.MultiIndex:
        """The label of the untreated wells that each condition is compared with."""
        kinds = conditions.get_level_values(0)
        return pd.MultiIndex.from_arrays(
            [kinds, [vehicle + self.suffix + _UNTREATED] * len(kinds)], names=CONDITION
        )


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
        _, well_obs = groups_of(cells.obs, WELL)
        fitted = (
            FLAVOURS[flavour].get("joint", False)
            | cells.obs["cell_type"].astype(str).isin(kinds).to_numpy()
        )
        real = pseudobulk(cells[fitted], by=[*WELL, "cell_type"])
        real.obs = _plain(
            real.obs[[name for name in (*well_obs, "cell_type", "n_cells") if name in real.obs]]
        )
        return cls(real, _plain(well_obs), control, flavour)

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
        obs.index = pd.Index(
            obs[[*WELL, "cell_type"]].agg("|".join, axis=1) + f"|generated{group.suffix}"
        )
        obs = obs[[name for name in self.real.obs if name in obs]]
        made = AnnData(
            sp.csr_array(sums[keep]), obs=obs, var=pd.DataFrame(index=group.generator.genes)
        )
        return (
            made
            if made.var_names.equals(self.real.var_names)
            else made[:, self.real.var_names].copy()
        )

    def draw(self, group: Wells, *, replicate: int) -> AnnData:
        """Generated samples of a replicate."""
        sums, cells = group.generator.drawn_sums(group.plan, group.wells, replicate=replicate)
        return self.samples(group, sums, cells)


def _plain(obs: pd.DataFrame) -> pd.DataFrame:
    """Labels as text, so that those of real and of generated samples join."""
    return obs.astype({name: str for name in obs.columns if name != "n_cells"})


@dataclass(frozen=True)
class Task:
    """What is generated among what: the wanted wells, and twins of measured ones for calibration."""

    bench: Bench
    wanted: Wells
    twins: Wells | None

    @property
    def real(self) -> DETable:
        """The fit of what was measured."""
        return self.bench.measured

    @property
    def genes(self) -> pd.Index:
        """All genes."""
        return self.bench.real.var_names

    @property
    def groups(self) -> list[Wells]:
        """All that is generated."""
        return [self.wanted] if self.twins is None else [self.wanted, self.twins]

    @property
    def conditions(self) -> pd.MultiIndex:
        """Their labels, those of twins with a suffix."""
        first, *rest = (group.conditions for group in self.groups)
        return first.append(rest) if rest else first

    @property
    def truth(self) -> pd.DataFrame:
        """The measured signed -log10 p of the twins' conditions, under the twins' labels."""
        assert self.twins is not None
        known = pd.MultiIndex.from_frame(self.twins.plan.conditions)
        return self.real.signed_log10_p.loc[known].set_axis(self.twins.conditions).fillna(0.0)


def make_task(
    run: TrainedRun,
    cells: AnnData,
    wanted: pd.MultiIndex,
    settings: PredictSettings,
    *,
    sampler: CellSampler | None,
    calibration_run: TrainedRun | None,
) -> Task:
    """Everything that the estimators need, all bad input found on the way."""
    sampler = sampler or make_sampler(cells, seed=settings.seed)
    require_blind(sampler, wanted)
    control = vehicle_of(cells)
    ours = _make_wells(run, cells, sampler, wanted, settings)
    if settings.needs(ANCHORED):
        require_compound(ours)
    kinds = sorted(wanted.get_level_values("cell_type").unique())
    bench = Bench.of(cells, kinds, control=control, flavour=settings.flavour)
    _require_controls(bench, kinds)
    twins = None
    if settings.needs_measured:
        _require_compounds(bench, kinds)
    if settings.calibrates:
        judge = calibration_run or run
        known = calibration_conditions(judge, cells.obs, bench.measured, kinds, control=control)
        # A latent point of a twin's own cell would tell of its compound.
        others = (
            without(in_run_genes(judge, cells), known) if settings.latent == "posterior" else cells
        )
        # Wells that the judge never saw are drawn by a sampler that never saw them either.
        blind = blinded(
            sampler, known[~known.isin(trained_conditions(judge, cells.obs))], seed=settings.seed
        )
        twins = _make_wells(
            judge, in_run_genes(judge, others), blind, known, settings, suffix=_TWIN
        )
    return Task(bench, ours, twins)


def _make_wells(
    run: TrainedRun,
    cells: AnnData,
    sampler: CellSampler,
    wanted: pd.MultiIndex,
    settings: PredictSettings,
    *,
    suffix: str = "",
) -> Wells:
    """Plan and generator of conditions."""
    plan, wells = make_plan(run, cells, sampler, wanted, seed=settings.seed)
    generator = make_generator(run, cells, wells, latent=settings.latent, seed=settings.seed)
    return Wells(plan, wells, generator, suffix)


def _require_controls(bench: Bench, kinds: list[str]) -> None:
    """Every cell type has real control samples to compare with."""
    found = bench.real.obs.loc[bench.real.obs["compound"] == bench.control, "cell_type"]
    absent = [kind for kind in kinds if kind not in set(found)]
    if absent:
        raise SchemaError(
            f"no well of the vehicle {bench.control!r} has cells of type {shorten(absent)}",
            expected="real controls of every cell type to predict, which the DE compares with",
        )


def _require_compounds(bench: Bench, kinds: list[str]) -> None:
    """Every cell type has a measured compound."""
    treated = bench.real.obs.loc[bench.real.obs["compound"] != bench.control, "cell_type"]
    absent = [kind for kind in kinds if kind not in set(treated)]
    if absent:
        raise nothing_measured(absent)
