"""Cells of one well and type differ by their states, and their sums do not."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w

from perturbgen.core.tables import VEHICLE
from perturbgen.simulation import (
    CELL_TYPES,
    SimulatedExperiment,
    build_world,
    load_world,
    preset_settings,
    simulate,
)
from perturbgen.simulation.op3.states import STATES, Programmes


@pytest.fixture(scope="module")
def programmes(tiny: SimulatedExperiment) -> Programmes:
    assert tiny.world.programmes is not None
    return tiny.world.programmes


def factors(
    programmes: Programmes, cell_type: str, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (cells, states), and what multiplies each mean (genes, cells)."""
    scores = programmes.scores(cell_type, n, rng=rng)
    return scores, np.exp(programmes.tilt(cell_type, scores).astype(float))


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_states_leave_the_mean_of_every_gene_where_it_is(
    programmes: Programmes, cell_type: str
) -> None:
    _, factor = factors(programmes, cell_type, 40_000, np.random.default_rng(0))
    error = factor.std(axis=1) / np.sqrt(factor.shape[1])
    assert factor.std(axis=1).max() > 0.5
    assert np.abs((factor.mean(axis=1) - 1) / np.maximum(error, 1e-3)).max() < 4


def test_dealt_states_disturb_a_wells_sum_less_than_drawn_ones(programmes: Programmes) -> None:
    rng = np.random.default_rng(0)
    many, _ = factors(programmes, "B cells", 40_000, rng)
    dealt, drawn = [], []
    for _ in range(60):
        dealt.append(factors(programmes, "B cells", 40, rng)[1].mean(axis=1))
        chosen = many[rng.integers(len(many), size=40)]
        drawn.append(np.exp(programmes.tilt("B cells", chosen)).mean(axis=1))
    assert np.var(dealt, axis=0).mean() < 0.5 * np.var(drawn, axis=0).mean()


def test_a_genes_variance_is_what_it_would_be_without_states() -> None:
    silent = ["expression.well_log_sd=0", "depth.cell_log_sd=0"]
    world = build_world(preset_settings("tiny", overrides=silent), seed=1)
    assert world.programmes is not None
    group = int(np.flatnonzero(world.groups["cell_type"] == "T cells CD4+")[0])
    counts = world.draw(group, n_cells=20_000).toarray()
    mean, i = counts.mean(axis=0), CELL_TYPES.index("T cells CD4+")
    # where the trend's dispersion is less than what the states bring, they bring more
    kept = (mean > 0.5) & (1 / world.programmes.r[i] > 0.021)
    states = np.abs(world.programmes.loading[i]).max(axis=0) > 0
    assert (kept & states).sum() > 30
    for part in (kept & states, kept & ~states):
        ratio = counts.var(axis=0)[part] / (mean + mean**2 / world.r)[part]
        assert np.median(ratio) == pytest.approx(1, abs=0.03)


def test_a_total_varies_as_the_sum_of_cells_with_states_does(tiny: SimulatedExperiment) -> None:
    world = tiny.world
    group = int(world.groups["n_cells"].to_numpy().argmax())
    summed, direct = (
        np.array([draw(group, replicate=k).sum(axis=0) for k in range(300)])
        for draw in (world.draw, world.draw_total)
    )
    much = summed.mean(axis=0) > 20
    ratio = summed.var(axis=0)[much] / direct.var(axis=0)[much]
    # a few per cent come back with the depths, which states cannot be balanced against
    assert np.median(ratio) == pytest.approx(1.04, abs=0.08)


def test_states_are_seen_in_the_counts_and_named_beside_them(
    tiny: SimulatedExperiment, programmes: Programmes
) -> None:
    obs = tiny.released.obs
    assert list(obs.columns[-len(STATES) :]) == list(STATES)
    cells = ((obs["cell_type"] == "T cells CD4+") & (obs["compound"] == VEHICLE)).to_numpy()
    log = np.log1p(tiny.released.X[cells].toarray())
    log -= log.mean(axis=0)
    i = CELL_TYPES.index("T cells CD4+")
    for name, loading in zip(("activation", "maturation"), programmes.loading[i, 3:5], strict=True):
        seen = log @ (loading * np.sqrt(log.var(axis=0)))
        assert np.corrcoef(seen, obs.loc[cells, name].astype(float))[0, 1] > 0.4
    assert obs.loc[cells, "subtype"].nunique() == tiny.world.settings.states.subtypes
    cycling = obs["cycle_phase"].notna().groupby(obs["cell_type"], observed=True).mean()
    expected = pd.Series(tiny.world.settings.states.cycling)
    assert np.allclose(cycling[expected.index], expected, atol=0.03)
    assert obs["cycle_phase"].dropna().between(0, 2 * np.pi).all()


def test_compounds_move_activation_by_what_their_true_effects_hold_of_it(
    tiny: SimulatedExperiment, programmes: Programmes
) -> None:
    true = tiny.truth.obs.set_index(["cell_type", "sm_name"])["activation"]
    assert (true.xs(VEHICLE, level="sm_name") == 0).all()
    strength = tiny.world.effects.compounds["strength"]
    size = true.abs().groupby("sm_name").mean()
    assert size.corr(strength[size.index], method="spearman") > 0.5
    obs = tiny.released.obs
    seen = obs.groupby(["cell_type", "sm_name"], observed=True)["activation"].agg(["mean", "size"])
    many = seen[seen["size"] > 50]["mean"]
    assert np.allclose(many, true[many.index], atol=0.1)
    # the programme's part of a fold change is the moved activation times its loadings
    fold = tiny.world.effects.log2_fold_change[0] * np.log(2)
    loading = programmes.loading[0, 3]
    rest = fold - np.outer(programmes.moved.iloc[0], loading)
    assert np.abs(rest @ loading).max() < 1e-3


def test_one_setting_turns_states_off_and_moves_no_other_number(tiny: SimulatedExperiment) -> None:
    without = simulate("tiny", seed=0, overrides=["states.strength=0"])
    assert without.world.programmes is None
    assert not set(STATES) & {*without.released.obs.columns, *without.truth.obs.columns}
    pd.testing.assert_frame_equal(without.world.groups, tiny.world.groups)
    pd.testing.assert_frame_equal(
        without.released.obs, tiny.released.obs.drop(columns=list(STATES)), check_categorical=False
    )
    assert np.array_equal(without.truth.layers["mean"], tiny.truth.layers["mean"])


def test_a_folder_written_before_there_were_states_gives_its_own_cells_again(
    tmp_path: Path, tiny_folder: Path
) -> None:
    about = tomllib.loads((tiny_folder / "simulation.toml").read_text())
    del about["settings"]["states"]
    (tmp_path / "simulation.toml").write_text(tomli_w.dumps(about))
    world = load_world(tmp_path)
    assert world.programmes is None
    none = ["states.strength=0", "states.selective=0", "states.known_losses=false"]
    old = build_world(preset_settings("tiny", overrides=none), seed=0)
    pd.testing.assert_frame_equal(world.groups, old.groups)


def test_the_folder_tells_every_cells_states_beside_the_competitions_files(
    tiny: SimulatedExperiment, tiny_folder: Path
) -> None:
    found = pd.read_parquet(tiny_folder / "truth_states.parquet").set_index("obs_id")
    for part in (tiny.released, tiny.withheld):
        ours = part.obs[list(STATES)]
        pd.testing.assert_frame_equal(
            found.loc[ours.index], ours, check_dtype=False, check_categorical=False
        )
    meta = pd.read_csv(tiny_folder / "adata_obs_meta.csv")
    assert not set(STATES) & set(meta.columns)


def test_dabrafenib_leaves_the_cells_that_it_left_in_three_donors() -> None:
    # not the preset's own: the effects published of Dabrafenib leave no room for it (calibration)
    few_genes = ["expression.genes=100", "depth.zero_fraction=0.7", "states.known_losses=true"]
    groups = build_world(preset_settings("op3", overrides=few_genes), seed=0).groups
    kind = groups["cell_type"].str.split().str[0]
    shares = groups.groupby(["sm_name", kind])["n_cells"].sum().unstack()
    shares = shares.div(shares.sum(axis=1), axis=0)
    real = {"NK": 0.065, "T": 0.545, "B": 0.165, "Myeloid": 0.23}
    for name, share in real.items():
        assert shares.loc["Dabrafenib", name] == pytest.approx(share, abs=0.03)
    assert shares.loc[VEHICLE, "NK"] > 0.2


def test_some_compounds_harm_one_cell_type_and_their_number_is_a_setting() -> None:
    def lost(*overrides: str) -> np.ndarray:
        """Cell types that lose twice what the median type does, by compound."""
        few_genes = ["expression.genes=100", "depth.zero_fraction=0.7", *overrides]
        survival = build_world(preset_settings("op3", overrides=few_genes), seed=3).effects.survival
        loss = -np.log(survival.drop(columns=[VEHICLE, "Dabrafenib"]))
        return (loss > 2.2 * loss.median() + 0.1).sum().to_numpy()

    assert lost("states.selective=0").max() == 0
    some = lost("states.selective=0.2")
    assert (some > 0).sum() == pytest.approx(0.2 * len(some), abs=8)
    assert some.max() == 1
