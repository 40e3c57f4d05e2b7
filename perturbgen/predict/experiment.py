"""The experiment that generated wells join: what is generated among which real samples, and the fit.

Bad input is found here, before any work is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.labels import CONDITION, conditions_of
from perturbgen.data.aggregate import constant_columns, group_codes, pseudobulk
from perturbgen.de.limma import CLIP, FLAVOURS, flavour_table
from perturbgen.generate import (
    WELL,
    CellGenerator,
    Plan,
    add_covariates,
    make_latents,
    require_route,
)
from perturbgen.predict.calibration import (
    calibration_conditions,
    require_measured,
    trained_conditions,
)
from perturbgen.predict.conditions import (
    in_run_genes,
    make_sampler,
    require_unseen_by,
    sampler_without,
    vehicle_of,
    without,
)
from perturbgen.predict.estimators import ANCHORED, PredictSettings

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun

_UNTREATED: Final = " (untreated)"
_MOCKS: Final = 12  # compounds of a cell type in whose wells the vehicle is generated, too
_TWIN: Final = " (generated)"  # ends the compound of measured wells that are generated, too
_CONDITION: Final = list(CONDITION)


def make_plan(
    run: TrainedRun, cells: AnnData, sampler: CellSampler, wanted: pd.MultiIndex, *, seed: int
) -> tuple[Plan, pd.DataFrame]:
    """The plan of the wanted conditions, and its wells with every covariate of the run."""
    plan = Plan(sampler, wanted.to_frame(index=False), seed)
    wells = add_covariates(plan.wells, cells.obs, run.settings.conditions)
    # A category that the run cannot express is an error before anything is done.
    run.card.covariates.codes(wells)
    return plan, wells


def make_generator(
    run: TrainedRun, cells: AnnData, wells: pd.DataFrame, *, latent: str, seed: int
) -> CellGenerator:
    """The run's model with latent points by one of the routes, for these wells."""
    latents = make_latents(
        run.model,
        run.card.covariates,
        cells,
        wells,
        require_route(latent),
        vehicle=vehicle_of(cells),
        seed=seed,
        parts=run.parts,
    )
    return CellGenerator(run.model, pd.Index(run.card.genes), run.card.covariates, latents)


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
        compounds = table["compound"] + self.suffix
        return pd.MultiIndex.from_arrays([table["cell_type"], compounds], names=CONDITION)

    def untreated(self, vehicle: str) -> Wells:
        """Wells like those of some compounds of each cell type, generated with the vehicle in them.

        A dozen compounds, spread evenly over their sorted names, say what the model gets wrong of a
        cell type; the wells of all would double the draws.
        """
        table = self.plan.conditions.sort_values(_CONDITION)
        kinds = table.groupby("cell_type")
        step = (kinds.cumcount() / kinds["compound"].transform("size") * _MOCKS).astype(int)
        some = table[~pd.concat([table["cell_type"], step], axis=1).duplicated()]
        chosen = pd.MultiIndex.from_frame(self.wells[_CONDITION]).isin(
            pd.MultiIndex.from_frame(some[_CONDITION])
        )
        wells = self.wells[chosen].reset_index(drop=True).assign(compound=vehicle)
        plan = Plan(self.plan.sampler, some, self.plan.seed)
        return Wells(plan, wells, self.generator, self.suffix + _UNTREATED)

    def untreated_conditions(self, vehicle: str, conditions: pd.MultiIndex) -> pd.MultiIndex:
        """The label of the untreated wells that each condition is compared with."""
        kinds = conditions.get_level_values(0)
        label = vehicle + self.suffix + _UNTREATED
        return pd.MultiIndex.from_arrays([kinds, [label] * len(kinds)], names=CONDITION)


def require_compound(wells: Wells) -> None:
    """The model that generates the wells knows what a compound is."""
    if "compound" not in wells.generator.encoder.categories:
        raise ConfigError(
            "the estimator compares a compound with the vehicle, "
            "and the run is not conditioned on compound",
            fix="use the estimator mean_t, or train with [conditions.compound]",
        )


@dataclass(frozen=True)
class Experiment:
    """Real samples (plate x well x cell type), what is true of every well, and how they are fitted."""

    real: AnnData
    well_obs: pd.DataFrame
    control: str
    flavour: str

    @classmethod
    def of(
        cls, cells: AnnData, kinds: Sequence[str], *, control: str, flavour: str
    ) -> Experiment:
        """Of the measured cells of some cell types, of all where the flavour fits them jointly.

        Generated wells get the labels of their well's other cells.
        """
        codes, _ = group_codes(cells.obs, WELL)
        well_obs = constant_columns(cells.obs, codes, WELL)
        joint = FLAVOURS[flavour].get("joint", False)
        fitted = joint | cells.obs["cell_type"].astype(str).isin(kinds).to_numpy()
        real = pseudobulk(cells[fitted], by=[*WELL, "cell_type"])
        columns = [name for name in (*well_obs, "cell_type", "n_cells") if name in real.obs]
        real.obs = _as_text(real.obs[columns])
        return cls(real, _as_text(well_obs), control, flavour)

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

    def draw(self, wells: Wells, *, replicate: int) -> AnnData:
        """Generated samples of a replicate."""
        sums, cells = wells.generator.drawn_sums(wells.plan, wells.wells, replicate=replicate)
        return self.samples(wells, sums, cells)

    def samples(self, group: Wells, sums: sp.csr_array | np.ndarray, cells: np.ndarray) -> AnnData:
        """Samples of generated sums (wells, genes), labelled as their wells; those without cells are missing."""
        from anndata import AnnData

        keep = np.flatnonzero((cells > 0) & (np.asarray(sums.sum(axis=1)).ravel() > 0))
        wells = group.wells.iloc[keep]
        place = [*WELL, "cell_type"]
        own = wells[place].astype(str).reset_index(drop=True)
        obs = own.merge(self.well_obs, on=WELL, how="left", validate="many_to_one")
        obs["compound"] = wells["compound"].astype(str).to_numpy() + group.suffix
        obs["n_cells"] = cells[keep]
        obs.index = pd.Index(obs[place].agg("|".join, axis=1) + f"|generated{group.suffix}")
        obs = obs[[name for name in self.real.obs if name in obs]]
        genes = pd.DataFrame(index=group.generator.genes)
        made = AnnData(sp.csr_array(sums[keep]), obs=obs, var=genes)
        if made.var_names.equals(self.real.var_names):
            return made
        return made[:, self.real.var_names].copy()  # a calibration run may order its genes otherwise


def _as_text(obs: pd.DataFrame) -> pd.DataFrame:
    """Labels as text, so that those of real and of generated samples join."""
    return obs.astype({name: str for name in obs.columns if name != "n_cells"})


@dataclass(frozen=True)
class Task:
    """What is generated in which experiment: the wanted wells, and twins of measured ones to calibrate on."""

    experiment: Experiment
    wanted: Wells
    twins: Wells | None

    @property
    def genes(self) -> pd.Index:
        """All genes."""
        return self.experiment.real.var_names

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
        measured = self.experiment.measured.signed_log10_p.loc[known]
        return measured.set_axis(self.twins.conditions).fillna(0.0)


def make_task(
    run: TrainedRun,
    cells: AnnData,
    wanted: pd.MultiIndex,
    settings: PredictSettings,
    *,
    sampler: CellSampler | None = None,
    calibration_run: TrainedRun | None = None,
) -> Task:
    """Everything that the estimators need, all bad input found on the way."""
    sampler = sampler or make_sampler(cells, seed=settings.seed)
    require_unseen_by(sampler, wanted)
    control = vehicle_of(cells)
    ours = _make_wells(run, cells, sampler, wanted, settings)
    if settings.needs(ANCHORED):
        require_compound(ours)
    kinds = sorted(wanted.get_level_values("cell_type").unique())
    experiment = Experiment.of(cells, kinds, control=control, flavour=settings.flavour)
    samples = experiment.real.obs
    found = set(samples.loc[samples["compound"] == control, "cell_type"])
    absent = [kind for kind in kinds if kind not in found]
    if absent:
        raise SchemaError(
            f"no well of the vehicle {control!r} has cells of type {shorten(absent)}",
            expected="real controls of every cell type to predict, which the DE compares with",
        )
    if settings.needs_measured:
        require_measured(kinds, samples.loc[samples["compound"] != control, "cell_type"])
    if not settings.calibrates:
        return Task(experiment, ours, None)
    judge = calibration_run or run
    known = calibration_conditions(judge, cells.obs, experiment.measured, kinds, control=control)
    # A latent point of a twin's own cell would tell of its compound.
    others = without(in_run_genes(judge, cells), known) if settings.latent == "posterior" else cells
    # Wells that the judge never saw are drawn by a sampler that never saw them either: cell numbers
    # that it has seen it foretells better (RMSE of their logarithms .336, and .402 of unseen ones).
    unseen = known[~known.isin(trained_conditions(judge, cells.obs))]
    fair = sampler_without(sampler, unseen, seed=settings.seed)
    twins = _make_wells(judge, in_run_genes(judge, others), fair, known, settings, suffix=_TWIN)
    return Task(experiment, ours, twins)


def _make_wells(
    run: TrainedRun,
    cells: AnnData,
    sampler: CellSampler,
    wanted: pd.MultiIndex,
    settings: PredictSettings,
    *,
    suffix: str = "",
) -> Wells:
    plan, wells = make_plan(run, cells, sampler, wanted, seed=settings.seed)
    generator = make_generator(run, cells, wells, latent=settings.latent, seed=settings.seed)
    return Wells(plan, wells, generator, suffix)
