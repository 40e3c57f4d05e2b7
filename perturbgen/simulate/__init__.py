"""The OP3 experiment with a known truth: in memory, or as the competition's own files."""

from perturbgen.simulate.experiment import Experiment, load_world, simulate
from perturbgen.simulate.fit import CellFit, fit_baseline
from perturbgen.simulate.sampling import sample_nb_sparse
from perturbgen.simulate.settings import SimulationSettings, preset_names, preset_settings
from perturbgen.simulate.world import World, build_world

__all__ = [
    "CellFit",
    "Experiment",
    "SimulationSettings",
    "World",
    "build_world",
    "fit_baseline",
    "load_world",
    "preset_names",
    "preset_settings",
    "sample_nb_sparse",
    "simulate",
]
