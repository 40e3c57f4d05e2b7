"""How many cells a well of an unmeasured condition holds, and how deep each of them is sequenced.

>>> from perturbgen.generate import design_wells, fit_samplers, well_table
>>> table = well_table(cells)
>>> sampler = fit_samplers(table, rng=np.random.default_rng(0))
>>> wells = design_wells(table, id_map)
>>> counts = sampler.counts(wells, 20, rng)
"""

from perturbgen.generate.forest import SamplerSettings
from perturbgen.generate.sampler import CellSampler, fit_samplers
from perturbgen.generate.wells import WellTable, design_wells, tabulate, well_table

__all__ = [
    "CellSampler",
    "SamplerSettings",
    "WellTable",
    "design_wells",
    "fit_samplers",
    "tabulate",
    "well_table",
]
