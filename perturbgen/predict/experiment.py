"""The experiment that generated wells join: its settings, its real samples, the fit of it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field

from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError
from perturbgen.core.labels import CONDITION
from perturbgen.data import groups_of, pseudobulk
from perturbgen.de import FLAVOURS, flavour_table
from perturbgen.generate import (
    WELL,
    CellGenerator,
    Plan,
    Route,
    add_covariates,
    make_latents,
    require_route,
)
from perturbgen.predict.conditions import vehicle_of

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun

Estimator = Literal["mean_t", "anchored_t", "plug_in", "shrunk", "shrunk_plug_in"]

_UNTREATED: Final = " (untreated)"
_MOCKS: Final = 12  # compounds of a cell type that vehicle wells are generated beside
_CONDITION: Final = list(CONDITION)


class PredictSettings(Settings):
    """How a prediction is made."""

    estimators: tuple[Estimator, ...] = ("shrunk",)
    # None: until the calibration conditions gain no more, ``most`` at the most
    replicates: Annotated[int, Field(ge=1)] | None = None
    most: Annotated[int, Field(ge=1)] = 20
    latent: Route = "control"
    flavour: Literal["kaggle", "op3"] = "kaggle"
    levels: Annotated[int, Field(ge=1)] = 5  # of expression, each with a factor of its own
    seed: Annotated[int, Field(ge=0)] = 0

    def needs(self, *names: Estimator) -> bool:
        """Whether one of the estimators is among these."""
        return any(name in names for name in self.estimators)

    @property
    def draws(self) -> bool:
        """Whether replicates are drawn."""
        return self.needs("mean_t", "anchored_t", "shrunk")

    @property
    def anchors(self) -> bool:
        """Whether vehicle wells are generated beside those of the compounds."""
        return self.needs("anchored_t", "shrunk")

    @property
    def shrinks(self) -> bool:
        """Whether predictions are shrunk."""
        return self.needs("shrunk", "shrunk_plug_in")

    @property
    def calibrates(self) -> bool:
        """Whether measured conditions are generated beside the wanted ones."""
        return self.shrinks or (self.replicates is None and self.draws)

    @property
    def needs_measured(self) -> bool:
        """Whether measured compounds of the same types are needed, for errors or calibration."""
        return self.calibrates or self.needs("plug_in")


class Wells(NamedTuple):
    """Conditions to generate: the plan, its wells with all covariates, and their generator."""

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
        # Evenly over the sorted names, and the same ones in every replicate.
        step = (kinds.cumcount() / kinds["compound"].transform("size") * _MOCKS).astype(int)
        some = table[~pd.concat([table["cell_type"], step], axis=1).duplicated()]
        chosen = pd.MultiIndex.from_frame(self.wells[_CONDITION]).isin(
            pd.MultiIndex.from_frame(some[_CONDITION])
        )
        wells = self.wells[chosen].reset_index(drop=True).assign(compound=vehicle)
        plan = Plan(self.plan.sampler, some, self.plan.seed)
        return Wells(plan, wells, self.generator, self.suffix + _UNTREATED)

    def require_compound(self) -> None:
        """The model that generates the wells knows what a compound is."""
        if "compound" not in self.generator.encoder.categories:
            raise ConfigError(
                "the estimator compares a compound with the vehicle, "
                "and the run is not conditioned on compound",
                fix="use the estimator mean_t, or train with [conditions.compound]",
            )

    def untreated_conditions(self, vehicle: str, conditions: pd.MultiIndex) -> pd.MultiIndex:
        """The label of the untreated wells that each condition is compared with."""
        kinds = conditions.get_level_values(0)
        label = vehicle + self.suffix + _UNTREATED
        return pd.MultiIndex.from_arrays([kinds, [label] * len(kinds)], names=CONDITION)


def make_wells(
    run: TrainedRun,
    cells: AnnData,
    sampler: CellSampler,
    wanted: pd.MultiIndex,
    *,
    latent: str,
    seed: int,
    suffix: str = "",
) -> Wells:
    """The wells of the wanted conditions, with every covariate of the run and their generator.

    ``latent`` is one of the routes of latent points; ``suffix`` ends the compounds' labels.
    """
    encoder = run.card.covariates
    plan = Plan(sampler, wanted.to_frame(index=False), seed)
    wells = add_covariates(plan.wells, cells.obs, run.settings.conditions)
    encoder.codes(wells)  # a category that the run cannot express is an error before any work
    latents = make_latents(
        run.model,
        encoder,
        cells,
        wells,
        require_route(latent),
        vehicle=vehicle_of(cells),
        seed=seed,
        parts=run.parts,
    )
    generator = CellGenerator(run.model, pd.Index(run.card.genes), encoder, latents)
    return Wells(plan, wells, generator, suffix)


@dataclass(frozen=True)
class MeasuredExperiment:
    """Real samples (plate x well x cell type), what is true of every well, and the fit."""

    real: AnnData
    well_obs: pd.DataFrame
    control: str
    flavour: str

    @classmethod
    def of(
        cls, cells: AnnData, kinds: Sequence[str], *, control: str, flavour: str
    ) -> MeasuredExperiment:
        """Of the measured cells of some cell types, of all where the flavour fits them jointly.

        Generated wells get the labels of their well's other cells.
        """
        # From all cells, before types are chosen: a wanted type may have none in a well.
        _, well_obs = groups_of(cells.obs, WELL)
        joint = FLAVOURS[flavour].get("joint", False)
        fitted = joint | cells.obs["cell_type"].astype(str).isin(kinds).to_numpy()
        real = pseudobulk(cells[fitted], by=[*WELL, "cell_type"])
        columns = [name for name in (*well_obs, "cell_type", "n_cells") if name in real.obs]
        real.obs = _as_text(real.obs[columns])
        return cls(real, _as_text(well_obs), control, flavour)

    def clipped(self, values: pd.DataFrame) -> pd.DataFrame:
        """Signed -log10 p within the flavour's limit, as what is measured is."""
        # The benchmark limits what was measured, and predictions are compared with that.
        limit = FLAVOURS[self.flavour]["clip"]
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
        """Samples of sums (wells, genes), labelled as their wells; none where no cell is."""
        from anndata import AnnData

        # A donor that lost its cells is missing from a real experiment, too.
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
        # A calibration run may have its genes in another order.
        return made[:, self.real.var_names].copy()


def _as_text(obs: pd.DataFrame) -> pd.DataFrame:
    """Labels as text, so that those of real and of generated samples join."""
    return obs.astype({name: str for name in obs.columns if name != "n_cells"})
