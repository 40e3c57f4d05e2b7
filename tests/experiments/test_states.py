"""State beyond counting, and what latent points hold of it: against what was planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from latent import active_dimensions, followed, picture
from measure import Genes, StateShare
from scipy import sparse

from perturbgen.simulation import SimulatedExperiment, sample_nb_sparse, simulate

GENES = 300


def samples(state: float) -> list[sparse.csr_array]:
    """Two samples whose cells differ by one state in a fifth of the genes, and by depth."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(GENES, 2.0))
    loading = np.where(rng.random(GENES) < 0.2, state, 0)
    found = []
    for _ in range(2):
        size = 900 * np.exp(rng.normal(0, 0.4, 150))
        tilt = np.outer(loading, rng.normal(size=150)) - loading[:, None] ** 2 / 2
        r = np.full(GENES, 4.0)
        found.append(sample_nb_sparse(rng, size=size, share=share, r=r, tilt=tilt))
    return found


def test_a_planted_state_lies_beyond_counting_and_independent_genes_do_not() -> None:
    rng = np.random.default_rng(1)
    planted, none = (StateShare.of(samples(state), rng=rng) for state in (0.6, 0.0))
    assert planted.cells == none.cells == 300
    assert planted.beyond == 1
    assert planted.first > 0.04
    assert planted.all == pytest.approx(planted.first, abs=0.01)
    assert none.beyond == 0
    assert none.first == pytest.approx(0, abs=0.004)


def test_moments_find_the_dispersion_that_cells_were_drawn_with() -> None:
    found = Genes.of(sparse.csr_array(sparse.vstack(samples(0.0))))
    assert np.median(found.dispersion) == pytest.approx(0.25, abs=0.08)
    assert found.share.sum() == pytest.approx(1)


@pytest.fixture(scope="module")
def experiment_of_states() -> SimulatedExperiment:
    return simulate("tiny", seed=0)


def test_latent_points_follow_what_they_hold_and_nothing_else(
    experiment_of_states: SimulatedExperiment,
) -> None:
    obs, rng = experiment_of_states.released.obs, np.random.default_rng(0)
    states = obs[["cycle_phase", "activation", "maturation", "subtype"]]
    activation = states["activation"].to_numpy(dtype=float)
    noise = rng.normal(size=(len(obs), 2))
    latents = np.column_stack([activation + 0.3 * noise[:, 0], noise[:, 1], 1e-3 * noise[:, 0]])
    table = followed(latents, states, obs)
    assert active_dimensions(latents) == 2
    assert table.loc["all", "activation"] > 0.85
    assert table.loc["all", ["maturation", "subtype 1", "cycling"]].abs().max() < 0.05
    # what the compounds move is no state of a cell: it is taken off
    moved = obs.groupby(["cell_type", "compound"], observed=True)["activation"].transform("mean")
    by_condition = followed(np.column_stack([moved, noise[:, 1]]), states, obs)
    assert by_condition.loc["all", "activation"] < 0.05
    assert len(picture(np.tile(noise, 3), states, obs, "T cells CD4+").axes) == 6


def test_types_with_few_cells_have_no_number(experiment_of_states: SimulatedExperiment) -> None:
    obs = experiment_of_states.released.obs
    few = obs[(obs["cell_type"] == "B cells").cumsum() * (obs["cell_type"] == "B cells") <= 50]
    states = few[["cycle_phase", "activation", "maturation", "subtype"]]
    table = followed(np.zeros((len(few), 2)), states, few)
    assert table.loc["B cells"].isna().all()
    assert table.loc["all"].notna().all()
    assert isinstance(table, pd.DataFrame)
