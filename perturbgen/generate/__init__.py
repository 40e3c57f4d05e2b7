"""Cells of unmeasured conditions: how many in a well, how deep, and their counts.

>>> from perturbgen.generate import CellSampler, WellTable
>>> table = WellTable.of(cells)
>>> sampler = CellSampler.fit(table, rng=np.random.default_rng(0))
>>> wells = table.design(id_map)
>>> n_cells = sampler.cell_numbers(wells, 20, rng)
"""

from perturbgen.generate.cells import CellGenerator, Plan
from perturbgen.generate.forest import SamplerSettings
from perturbgen.generate.latents import Route, make_latents, require_route
from perturbgen.generate.replicates import ReplicateFolder, draw_replicate
from perturbgen.generate.sampler import CellSampler
from perturbgen.generate.validate import calibration_page, cross_validate, summarise
from perturbgen.generate.wells import WELL, WellTable, wanted_conditions
