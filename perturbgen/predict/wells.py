"""Which conditions are asked for, and the wells in which they are generated.

Nothing of a wanted condition's own cells may be looked at; whatever is true of its wells' other
cells (plate, donor, covariates of the run) is true of the generated ones. Vehicle wells beside them
say what a model gets wrong, and its noise-free means give log fold changes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.stats import poisson

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.stats import divide
from perturbgen.core.tables import CONDITION, VEHICLE, conditions_of, with_compound
from perturbgen.generate import (
    WELL,
    CellGenerator,
    Plan,
    make_latents,
    require_route,
    wanted_conditions,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

_UNTREATED: Final = " (untreated)"
_BESIDE: Final = 12  # compounds of a cell type that vehicle wells are generated beside
_CONDITION: Final = list(CONDITION)
_DRAWS: Final = 3  # replicates of latent points and depths that noise-free means are averaged over
_LARGE: Final = 1000.0


def read_wanted(conditions: pd.DataFrame) -> pd.MultiIndex:
    """The conditions of a table with ``cell_type`` and ``compound`` (or ``sm_name``), each once."""
    wanted = wanted_conditions(with_compound(conditions, "the table of conditions"))
    if not len(wanted):
        raise SchemaError("no condition is asked for", expected="rows of cell_type and compound")
    return pd.MultiIndex.from_frame(wanted)


def vehicle_of(cells: AnnData) -> str:
    """The compound that every other is compared with."""
    return str(cells.uns.get("vehicle", VEHICLE))


def without(cells: AnnData, wanted: pd.MultiIndex) -> AnnData:
    """The cells of all other conditions: what is to be predicted may not be looked at."""
    of_wanted = conditions_of(cells.obs).isin(wanted)
    if not of_wanted.any():
        return cells
    log.info("%d cells of the conditions to predict are withheld from everything", of_wanted.sum())
    return cells[~of_wanted].copy()


class Wells(NamedTuple):
    """Conditions to generate: the plan, its wells with all covariates, and their generator."""

    plan: Plan
    wells: pd.DataFrame
    generator: CellGenerator
    suffix: str = ""

    @classmethod
    def of(
        cls,
        run: TrainedRun,
        cells: AnnData,
        sampler: CellSampler,
        wanted: pd.MultiIndex,
        *,
        latent: str,
        seed: int,
        suffix: str = "",
    ) -> Self:
        """The wells of the wanted conditions, with every covariate of the run and their generator.

        ``latent`` is one of the routes of latent points; ``suffix`` ends the compounds' labels.
        """
        encoder, route = run.card.covariates, require_route(latent)
        plan = Plan(sampler, wanted.to_frame(index=False), seed, vehicle_of(cells))
        wells = _add_covariates(plan.wells, cells.obs, run.settings.conditions)
        encoder.codes(wells)  # a category that the run cannot express is an error before any work
        rest: dict[str, Any] = {"vehicle": vehicle_of(cells), "seed": seed, "parts": run.parts}
        latents = make_latents(run.model, encoder, cells, wells, route, **rest)
        generator = CellGenerator(run.model, pd.Index(run.card.genes), encoder, latents)
        return cls(plan, wells, generator, suffix)

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
        step = (kinds.cumcount() / kinds["compound"].transform("size") * _BESIDE).astype(int)
        some = table[~pd.concat([table["cell_type"], step], axis=1).duplicated()]
        # Compounds that nobody measured stand in the same wells: one of them says it all.
        places = self.wells[conditions_of(self.wells).isin(conditions_of(some))]
        again = places[places.duplicated(["cell_type", *WELL])]
        some = some[~conditions_of(some).isin(conditions_of(again))]
        chosen = conditions_of(self.wells).isin(conditions_of(some))
        wells = self.wells[chosen].reset_index(drop=True).assign(compound=vehicle)
        plan = replace(self.plan, conditions=some)
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

    def logfc(self, *, vehicle: str, genes: pd.Index, draws: int = _DRAWS) -> pd.DataFrame:
        """Log2 fold change against the vehicle, conditions x genes: the mean over wells.

        The same latent points, depths and covariates are decoded twice, with the compound and with
        the vehicle in its place, so that whatever the decoder gets wrong about a well in general
        cancels. Voom sees log2(count + ½), which a rare gene hardly moves: so do we, in expectation
        over Poisson counts around the model's means.
        """
        self.require_compound()
        generator, plan = self.generator, self.plan
        total = np.zeros((len(self.wells), len(generator.genes)))
        count = np.zeros(len(self.wells))
        # Few do: the means are free of counting noise, and both sides share their latent points.
        for replicate in range(1, draws + 1):
            treated, untreated = (
                generator.expected_sums(plan, self.wells, replicate=replicate, **replaced)
                for replaced in ({}, {"compound": vehicle})
            )
            drawn = treated.sum(axis=1) > 0
            total[drawn] += (_expected_log2(treated) - _expected_log2(untreated))[drawn]
            count += drawn
        mean = divide(total, count[:, None], np.nan)
        by_well = pd.DataFrame(mean, conditions_of(self.wells), generator.genes)
        wanted = pd.MultiIndex.from_frame(plan.conditions[_CONDITION])
        by_condition = by_well[genes].groupby(level=[0, 1]).mean()
        return by_condition.reindex(wanted).set_axis(self.conditions)


def _add_covariates(wells: pd.DataFrame, obs: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Wells with further columns of the cells' obs, which must be constant in a well."""
    for name in names:
        if name in wells:
            continue
        if name not in obs:
            raise SchemaError(
                f"the run is conditioned on {name!r}, "
                "which neither the design's wells nor the cells' obs say",
                expected=f"a column {name!r} beside {shorten(wells.columns)}",
            )
        known = obs[[*WELL, name]].astype(str).drop_duplicates()
        if known.duplicated(WELL).any():
            raise SchemaError(
                f"the run is conditioned on {name!r}, which differs within a well",
                cause="it belongs to cells, and a cell that is not measured has none",
            )
        wells = wells.merge(known, on=WELL, how="left", validate="many_to_one")
    return wells


def _expected_log2(mean: np.ndarray) -> np.ndarray:
    """E log2(X + ½) of Poisson counts X with these means, any shape."""
    grid, values = _poisson_table()
    with np.errstate(divide="ignore"):
        large = np.log2(mean + 0.5) - 0.5 / np.log(2) / mean  # to second order about the mean
        return np.where(mean < _LARGE, np.interp(mean, grid, values), large)


@cache
def _poisson_table() -> tuple[np.ndarray, np.ndarray]:
    """Means, dense near zero, and E log2(X + ½) there."""
    grid = np.expm1(np.linspace(0, np.log1p(_LARGE), 1500))
    counts = np.arange(int(_LARGE + 12 * np.sqrt(_LARGE)))
    return grid, poisson.pmf(counts, grid[:, None]) @ np.log2(counts + 0.5)
