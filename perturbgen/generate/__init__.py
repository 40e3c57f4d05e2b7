"""Cells of unmeasured conditions: how many in a well, how deep, and their counts.

>>> from perturbgen.generate import design_wells, fit_samplers, well_table
>>> table = well_table(cells)
>>> sampler = fit_samplers(table, rng=np.random.default_rng(0))
>>> wells = design_wells(table, id_map)
>>> counts = sampler.counts(wells, 20, rng)
"""

from perturbgen.generate.cells import CellGenerator, Plan, add_covariates
from perturbgen.generate.forest import SamplerSettings
from perturbgen.generate.latents import Route, make_latents, read_batches, require_route
from perturbgen.generate.replicates import require_ours, write_replicates
from perturbgen.generate.sampler import CellSampler, fit_samplers
from perturbgen.generate.validate import calibration_page, cross_validate, summarise
from perturbgen.generate.wells import (
    WELL,
    WellTable,
    design_wells,
    tabulate,
    wanted_conditions,
    well_table,
)

__all__ = [
    "WELL",
    "CellGenerator",
    "CellSampler",
    "Plan",
    "Route",
    "SamplerSettings",
    "WellTable",
    "add_covariates",
    "calibration_page",
    "cross_validate",
    "design_wells",
    "fit_samplers",
    "make_latents",
    "read_batches",
    "require_ours",
    "require_route",
    "summarise",
    "tabulate",
    "wanted_conditions",
    "well_table",
    "write_replicates",
]
