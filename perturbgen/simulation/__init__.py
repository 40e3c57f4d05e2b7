"""The OP3 experiment with a known truth: in memory, or as the competition's own files."""

from perturbgen.simulation.op3.build import build_world
from perturbgen.simulation.op3.cells import sample_nb_sparse
from perturbgen.simulation.op3.experiment import (
    SimulatedExperiment,
    load_world,
    simulate,
    write_replicate,
)
from perturbgen.simulation.op3.layout import POSITIVE_CONTROLS
from perturbgen.simulation.op3.settings import (
    CELL_TYPES,
    CONDITION_KEY,
    WITHHELD_TYPES,
    SimulationSettings,
    preset_settings,
)
from perturbgen.simulation.op3.world import World
