"""A world from its settings and a seed: layout, baselines, effects, cells, depths and noise."""

from __future__ import annotations

import pandas as pd

from perturbgen.simulation.op3.baseline import make_baseline, solve_depth
from perturbgen.simulation.op3.cells import Noise, Stream, count_cells, mean_depths
from perturbgen.simulation.op3.effects import Effects
from perturbgen.simulation.op3.layout import Layout
from perturbgen.simulation.op3.measured import read_measured_effects
from perturbgen.simulation.op3.settings import CONDITION_KEY, SimulationSettings
from perturbgen.simulation.op3.signatures import DrugSignatures
from perturbgen.simulation.op3.states import Programmes, select_survivors
from perturbgen.simulation.op3.world import World


def build_world(settings: SimulationSettings, *, seed: int) -> World:
    """Decide everything but the counts."""
    layout = Layout.draw(settings, rng=Stream.LAYOUT.rng(seed))
    settings = layout.agreed(settings)
    path = settings.source.signatures
    signatures = DrugSignatures.read(path) if path else None
    share = make_baseline(
        settings,
        names=layout.genes,
        preferred=signatures.genes if signatures else (),
        rng=Stream.BASELINE.rng(seed),
    )
    source = settings.source.effects
    measured = read_measured_effects(source) if source else None
    rng = Stream.EFFECTS.rng(seed)
    compounds = list(layout.compounds.index)
    effects = Effects.draw(compounds, list(share.columns), settings, signatures, measured, rng=rng)
    stress = effects.survival.unstack()
    effects = select_survivors(effects, settings, rng=Stream.STATES.rng(seed))
    groups = count_cells(layout, effects.survival, settings, seed=seed)
    # the share of zeros asked for is the released file's
    released = groups[~groups["withheld"]].groupby("cell_type")["n_cells"].sum()
    # a key of its own: the stream without one is that of the noise below
    depth, r = solve_depth(share, released, settings, rng=Stream.NOISE.rng(seed, 1))
    # what kills one cell type alone does not starve those of it that live
    stressed = groups.assign(
        survival=stress[pd.MultiIndex.from_frame(groups[CONDITION_KEY[::-1]])].to_numpy()
    )
    groups["depth"] = mean_depths(stressed, depth, settings, seed=seed)
    noise = Noise.draw(groups, share, settings, seed=seed)
    # its key is no group's: those have two numbers
    rng = Stream.STATES.rng(seed, 0)
    programmes = (
        Programmes.draw(effects, r, settings, rng=rng) if settings.states.strength else None
    )
    return World(settings, seed, layout, share, r, depth, effects, noise, groups, programmes)
