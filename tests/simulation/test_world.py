"""What is true in the simulated laboratory, and that cells are drawn from it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from perturbgen.core.errors import ConfigError
from perturbgen.core.tables import VEHICLE
from perturbgen.data.schema import COLUMNS
from perturbgen.simulation import (
    CELL_TYPES,
    SimulatedExperiment,
    SimulationSettings,
    build_world,
    preset_settings,
    simulate,
)
from perturbgen.simulation.op3.cells import _balanced_factors, _balanced_poisson
from perturbgen.simulation.op3.effects import (
    _deal_hazards,
    _deal_strengths,
    _deal_survival,
    _level_off,
    _unit_effects,
)


def with_effects(**effects: float) -> SimulationSettings:
    return SimulationSettings.model_validate({"effects": effects})


SILENT = (
    "expression.donor_log_sd=0",
    "expression.plate_log_sd=0",
    "expression.row_log_sd=0",
    "expression.well_log_sd=0",
    "expression.tube_log_sd=0",
    "expression.vehicle_log_sd=0",
    "expression.ambient=0",
    "effects.well_log_sd=0",
    "depth.plate_log_sd=0",
    "depth.library_log_sd=0",
    "depth.cell_log_sd=0",
)


def test_cells_speak_our_vocabulary_and_keep_their_own(tiny: SimulatedExperiment) -> None:
    assert set(COLUMNS) <= set(tiny.released.obs.columns)
    assert {"sm_name", "donor_id", "plate_name"} <= set(tiny.released.obs.columns)
    assert tiny.released.uns["vehicle"] == VEHICLE
    assert set(tiny.released.obs["cell_type"]) == set(CELL_TYPES)
    assert (tiny.released.X.data > 0).all()
    assert np.issubdtype(tiny.released.X.dtype, np.integer)


def test_chunks_do_not_depend_on_the_order_they_are_drawn_in(tiny: SimulatedExperiment) -> None:
    world = tiny.world
    forward = {chunk.group: chunk for chunk in world.chunks([3, 10, 11])}
    backward = {chunk.group: chunk for chunk in world.chunks([11, 10, 3])}
    for group, chunk in forward.items():
        assert (chunk.counts != backward[group].counts).nnz == 0
        assert chunk.ids == backward[group].ids


def test_another_replicate_is_another_draw_of_the_same_truth(tiny: SimulatedExperiment) -> None:
    world = tiny.world
    group = int(world.groups["n_cells"].to_numpy().argmax())
    one, two = (world.draw(group, replicate=k, n_cells=3000) for k in (1, 2))
    assert (one != two).nnz > 0
    well_noise = world.settings.expression.well_log_sd
    totals = [np.asarray(x.sum(axis=0)).ravel() for x in (one, two)]
    much = totals[0] > 3000
    assert np.std(np.log(totals[0][much] / totals[1][much])) < 2 * np.sqrt(2) * well_noise


def test_without_noise_the_mean_of_the_cells_is_the_truth() -> None:
    experiment = simulate("tiny", seed=3, overrides=SILENT)
    world, truth = experiment.world, experiment.truth
    group = int(np.flatnonzero(world.groups["sm_name"] == "Belinostat")[1])
    row = world.groups.iloc[group]
    drawn = np.asarray(world.draw(group, n_cells=20_000).sum(axis=0)).ravel()
    expected = (
        truth[f"{row['cell_type']}|{row['sm_name']}"].layers["mean"].ravel()
        / 1e6
        * row["depth"]
        * 20_000
    )
    z = (drawn - expected) / np.sqrt(expected + expected**2 / world.r / 20_000)
    assert abs(z.mean()) < 0.2
    assert 0.85 < z.std() < 1.15


def test_mean_and_fold_change_of_the_truth_agree_up_to_one_constant(
    tiny: SimulatedExperiment,
) -> None:
    truth = tiny.truth
    name = "NK cells|Belinostat"
    ratio = np.log2(
        truth[name].layers["mean"] / truth[f"NK cells|{VEHICLE}"].layers["mean"]
    ).ravel()
    constant = ratio - truth[name].layers["logFC"].ravel()
    assert np.ptp(constant) < 1e-3
    assert np.abs(truth[truth.obs["sm_name"] == VEHICLE].layers["logFC"]).max() == 0
    assert np.allclose(truth.layers["mean"].sum(axis=1), 1e6, rtol=1e-4)


def test_a_strong_compound_is_visible_in_the_cells_it_was_given_to() -> None:
    # wells in which the compound is as strong as the truth says
    strong = ["strength=0.5", "strength_cap=2", "well_log_sd=0", "cell_types.NK cells=1"]
    overrides = [f"effects.{text}" for text in strong]
    world = build_world(preset_settings("tiny", overrides=overrides), seed=0)
    bulk = world.samples({chunk.group: chunk.total for chunk in world.chunks()})
    nk = bulk[(bulk.obs["cell_type"] == "NK cells").to_numpy()]
    cpm = {
        name: np.asarray(nk[(nk.obs["sm_name"] == name).to_numpy()].X.sum(axis=0)).ravel() + 0.5
        for name in (VEHICLE, "Belinostat")
    }
    measured = np.log2(cpm["Belinostat"] / cpm["Belinostat"].sum()) - np.log2(
        cpm[VEHICLE] / cpm[VEHICLE].sum()
    )
    true = world.effects.log2_fold_change[
        CELL_TYPES.index("NK cells"), world.compound_index["Belinostat"]
    ]
    assert np.corrcoef(measured, true)[0, 1] > 0.8


def test_positive_controls_are_measured_in_every_cell_type(tiny: SimulatedExperiment) -> None:
    for name in ("Belinostat", "Dabrafenib", VEHICLE):
        assert set(tiny.released.obs.loc[tiny.released.obs["sm_name"] == name, "cell_type"]) == set(
            CELL_TYPES
        )


def test_toxic_compounds_lose_cells_and_depth() -> None:
    world = build_world(preset_settings("small"), seed=0)
    obs = world.groups.merge(
        world.effects.compounds[["toxic"]], left_on="sm_name", right_index=True
    )
    per_well = (
        obs[~obs["lost"]]
        .groupby(["toxic", "plate_name", "well"])["n_cells"]
        .sum()
        .groupby("toxic")
        .mean()
    )
    depth = obs.groupby("toxic")["depth"].mean()
    assert per_well[True] < 0.7 * per_well[False]
    assert depth[True] < 0.95 * depth[False]
    strong = world.effects.compounds.drop(index=[VEHICLE, "Belinostat", "Dabrafenib"])
    assert (
        strong.loc[strong["toxic"], "strength"].min()
        >= strong.loc[~strong["toxic"], "strength"].max()
    )


def test_effects_of_one_mechanism_are_alike_and_shared_between_cell_types_as_set() -> None:
    settings = with_effects(programmes=4, shared=0.6, own=0.0, stress=0.0)
    mechanism = pd.Series([0, 0, 1, 1, 2])
    unit = _unit_effects(
        mechanism, pd.Series(np.ones(5)), 5000, settings, rng=np.random.default_rng(0)
    )
    assert np.allclose(unit.std(axis=2), 1, atol=1e-5)
    within = np.corrcoef(unit[0])
    assert within[0, 1] > 0.6
    assert abs(within[0, 2]) < 0.5
    between = [np.corrcoef(unit[0, c], unit[1, c])[0, 1] for c in range(5)]
    assert np.mean(between) == pytest.approx(0.6, abs=0.08)


def test_effects_are_low_rank() -> None:
    settings = with_effects(programmes=5, own=0.0, stress=0.0)
    mechanism = pd.Series(np.arange(40) % 5)
    unit = _unit_effects(
        mechanism, pd.Series(np.ones(40)), 2000, settings, rng=np.random.default_rng(0)
    )
    values = np.linalg.svd(unit[2], compute_uv=False)
    assert (values[:5] ** 2).sum() / (values**2).sum() > 0.9999


def test_strengths_have_a_heavy_tail_and_follow_a_given_order() -> None:
    names = [f"c{i}" for i in range(200)]
    free = _deal_strengths(names, with_effects(strength_cap=100), rng=np.random.default_rng(0))
    assert free.max() > 3 * free.median()
    order = pd.Series(np.arange(150.0), index=names[:150])
    dealt = _deal_strengths(names, with_effects(), rng=np.random.default_rng(0), order=order)
    assert dealt[names[:150]].is_monotonic_increasing
    assert dealt[names[150:]].min() >= dealt[names[149]]


def test_every_seed_deals_the_same_strengths_to_other_compounds() -> None:
    names, settings = ["Belinostat", "Dabrafenib", *(f"c{i}" for i in range(60))], with_effects()
    one, two = (
        _deal_strengths(names, settings, rng=np.random.default_rng(seed)) for seed in (0, 1)
    )
    assert list(one.index) == names
    assert sorted(one) == sorted(two)
    assert one.rank().corr(two.rank()) < 0.5
    assert one[:2].equals(two[:2])
    assert one[2:].median() == pytest.approx(settings.effects.strength, rel=0.05)
    assert np.log(one[2:]).std() == pytest.approx(settings.effects.strength_log_sd, rel=0.15)
    assert one.max() == settings.effects.strength_cap
    order = pd.Series(np.arange(60.0), index=names[2:])
    ordered = [
        _deal_strengths(names, settings, rng=np.random.default_rng(seed), order=order)
        for seed in (0, 1)
    ]
    assert ordered[0].equals(ordered[1])


def test_every_seed_deals_the_same_hazards_and_the_strongest_compound_kills_most() -> None:
    settings = with_effects(mild_toxicity=0)
    strength = pd.Series(np.linspace(1, 2, 50), index=[f"c{i}" for i in range(50)])
    toxic = strength > 1.8
    found = _deal_hazards(strength, toxic, settings, rng=np.random.default_rng(0))
    assert (found[~toxic] == 0).all()
    assert found[toxic].is_monotonic_increasing
    assert found[toxic].mean() == pytest.approx(settings.effects.toxicity, rel=0.05)
    none = pd.Series(False, index=strength.index)
    one, two = (
        _deal_hazards(strength, none, with_effects(), rng=np.random.default_rng(seed))
        for seed in (0, 1)
    )
    assert sorted(one) == sorted(two)
    assert not one.equals(two)
    assert one.mean() == pytest.approx(SimulationSettings().effects.mild_toxicity, rel=0.05)


def test_no_fold_change_exceeds_the_largest_and_small_ones_stay() -> None:
    raw = np.array([-40.0, -0.1, 0.0, 0.1, 3.0, 40.0])
    found = _level_off(raw, 5.0)
    assert np.allclose(found, [-5, -0.1, 0, 0.1, 5 * np.tanh(0.6), 5], atol=1e-4)
    settings = preset_settings("tiny", overrides=["effects.strength=3", "effects.strength_cap=9"])
    effects = build_world(settings, seed=0).effects.log2_fold_change
    assert 4.5 < np.abs(effects).max() <= 5


def test_vehicle_wells_are_no_fuller_than_others_by_chance() -> None:
    rng, side = np.random.default_rng(0), np.repeat([0, 1], [8, 88])
    logs = np.log(_balanced_factors(rng, 0.3, (96, 2), side))
    assert np.allclose(logs[:8].mean(axis=0), logs[8:].mean(axis=0))
    assert logs.std() == pytest.approx(0.3, rel=0.15)
    mean = np.exp(rng.normal(1, 0.5, (96, 2)))
    mean[95] = 0
    draws = np.stack([_balanced_poisson(rng, mean, side) for _ in range(2000)])
    for here in (slice(0, 8), slice(8, 96)):
        assert (draws[:, here].sum(axis=1) == np.rint(mean[here].sum(axis=0))).all()
    assert np.allclose(draws.mean(axis=0), mean, atol=0.3)
    assert (draws[:, 95] == 0).all()
    # Given the total, a well of share p has a variance of (1 - p) times a Poisson's.
    expected = mean[8:95] * (1 - mean[8:95] / mean[8:].sum(axis=0))
    assert (draws[:, 8:95].var(axis=0) / expected).mean() == pytest.approx(1, abs=0.03)


def test_survival_spares_the_weak() -> None:
    strength = pd.Series(np.linspace(0, 1, 100), index=[f"c{i}" for i in range(100)])
    survival, toxic = _deal_survival(strength, with_effects(), rng=np.random.default_rng(0))
    assert toxic.sum() == 6
    assert survival.loc[:, toxic].to_numpy().mean() < 0.6
    assert survival.loc[:, ~toxic].to_numpy().mean() > 0.85
    assert survival.to_numpy().max() <= 1


def test_ambient_rna_pulls_cell_types_together() -> None:
    dirty, clean = (
        build_world(preset_settings("tiny", overrides=[f"expression.ambient={x}"]), seed=0)
        for x in (0.5, 0)
    )
    pair = [
        int(np.flatnonzero((clean.groups["cell_type"] == name) & (clean.groups["well"] == "A1"))[0])
        for name in ("NK cells", "B cells")
    ]

    def distance(world: object) -> float:
        return float(np.abs(world.group_share(pair[0]) - world.group_share(pair[1])).sum())

    assert distance(dirty) < 0.75 * distance(clean)


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_the_share_of_zeros_is_the_one_asked_for(preset: str) -> None:
    world = build_world(preset_settings(preset), seed=4)
    # every seventh group of released cells: 7 is coprime to the six cell types of a well
    chosen = np.flatnonzero(~world.groups["withheld"])[::7]
    drawn = sparse.vstack([chunk.counts for chunk in world.chunks(chosen.tolist())])
    zeros = 1 - drawn.nnz / np.prod(drawn.shape)
    assert zeros == pytest.approx(world.settings.depth.zero_fraction, abs=0.02)


def test_an_impossible_share_of_zeros_is_explained() -> None:
    with pytest.raises(ConfigError, match="no depth between"):
        simulate("tiny", seed=0, overrides=["depth.zero_fraction=0.0"])


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        preset_settings("smal")
    with pytest.raises(ConfigError, match="did you mean 'per_well'"):
        preset_settings("tiny", overrides=["cells.perwell=3"])
    with pytest.raises(ConfigError, match="six cell types"):
        preset_settings("tiny", overrides=["cells.proportions.Neutrophils=0.1"])
    assert preset_settings("tiny", overrides=["cells.per_well=7"]).cells.per_well == 7
    assert preset_settings("op3").expression.genes == 18_211
    assert SimulationSettings().preset == "op3"
