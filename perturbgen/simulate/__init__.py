"""The OP3 experiment with a known truth: in memory, or as the competition's own files."""

from perturbgen.simulate.op3.baseline import CellFit, fit_baseline
from perturbgen.simulate.op3.counts import sample_nb_sparse
from perturbgen.simulate.op3.experiment import Experiment, load_world, simulate
from perturbgen.simulate.op3.settings import SimulationSettings, preset_names, preset_settings
from perturbgen.simulate.op3.world import World, build_world

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
