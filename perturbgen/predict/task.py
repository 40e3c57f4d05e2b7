"""What is generated for a prediction, among which real samples; bad input is found here, before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from perturbgen.errors import SchemaError, shorten
from perturbgen.predict.bench import TWIN, Bench, Wells
from perturbgen.predict.calibration import calibration_conditions, nothing_measured, trained_conditions
from perturbgen.predict.plugin import require_compound
from perturbgen.predict.settings import ANCHORED, PredictSettings
from perturbgen.predict.source import (
    blinded,
    in_run_genes,
    make_generator,
    make_plan,
    make_sampler,
    require_blind,
    vehicle_of,
    without,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.sampling import CellSampler
    from perturbgen.train import TrainedRun


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
    ours = make_wells(run, cells, sampler, wanted, settings)
    if settings.needs(ANCHORED):
        require_compound(ours)
    kinds = sorted(wanted.get_level_values("cell_type").unique())
    bench = Bench.of(cells, kinds, control=control, flavour=settings.flavour)
    require_controls(bench, kinds)
    twins = None
    if settings.needs_measured:
        require_compounds(bench, kinds)
    if settings.calibrates:
        judge = calibration_run or run
        known = calibration_conditions(judge, cells.obs, bench.measured, kinds, control=control)
        # A latent point of a twin's own cell would tell of its compound.
        others = without(in_run_genes(judge, cells), known) if settings.latent == "posterior" else cells
        # Wells that the judge never saw are drawn by a sampler that never saw them either.
        blind = blinded(sampler, known[~known.isin(trained_conditions(judge, cells.obs))], seed=settings.seed)
        twins = make_wells(judge, in_run_genes(judge, others), blind, known, settings, suffix=TWIN)
    return Task(bench, ours, twins)


def make_wells(
    run: TrainedRun, cells: AnnData, sampler: CellSampler, wanted: pd.MultiIndex, settings: PredictSettings,
    *, suffix: str = "",
) -> Wells:  # fmt: skip
    """Plan and generator of conditions."""
    plan, wells = make_plan(run, cells, sampler, wanted, seed=settings.seed)
    generator = make_generator(run, cells, wells, latent=settings.latent, seed=settings.seed)
    return Wells(plan, wells, generator, suffix)


def require_controls(bench: Bench, kinds: list[str]) -> None:
    """Every cell type has real control samples to compare with."""
    found = bench.real.obs.loc[bench.real.obs["compound"] == bench.control, "cell_type"]
    absent = [kind for kind in kinds if kind not in set(found)]
    if absent:
        raise SchemaError(
            f"no well of the vehicle {bench.control!r} has cells of type {shorten(absent)}",
            expected="real controls of every cell type to predict, which the DE compares with",
        )


def require_compounds(bench: Bench, kinds: list[str]) -> None:
    """Every cell type has a measured compound."""
    treated = bench.real.obs.loc[bench.real.obs["compound"] != bench.control, "cell_type"]
    absent = [kind for kind in kinds if kind not in set(treated)]
    if absent:
        raise nothing_measured(absent)
