"""The statistics of an experiment: against planted structure, brute force, and too small ones."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forms import Forms, curated, merged_t_cells, well_effects
from statistics_of import (
    TYPES,
    compound_effects,
    decomposition,
    every_statistic,
    of_ranks,
    standardised,
)
from tolerance import judged, loss, residuals

from perturbgen.simulation import CONDITION_KEY, build_world, preset_settings


@pytest.fixture(scope="module")
def tiny() -> Forms:
    world = build_world(preset_settings("tiny"), seed=0)
    alive = np.flatnonzero(world.groups["n_cells"] > 0)
    bulk = world.samples({int(group): world.draw_total(int(group)) for group in alive})
    return Forms(bulk, pd.MultiIndex.from_frame(world.train_rows()[CONDITION_KEY]))


def test_planted_agreement_of_ranks_is_found() -> None:
    rng = np.random.default_rng(0)
    n, genes = 24, 4000
    drugs = [f"d{i:02d}" for i in range(n)]
    places = pd.DataFrame(
        {"library": "first", "row": np.arange(n) // 4, "col": np.arange(n) % 4}, index=drugs
    )
    own = rng.normal(size=(n, genes))
    row = rng.normal(size=(n // 4, genes))[np.arange(n) // 4]
    kind = rng.normal(size=(4, 1, genes))
    # of a variance of one: a drug's own .3, its row's .1, its cell type's .15
    z = np.sqrt(0.3) * own + np.sqrt(0.1) * row + np.sqrt(0.15) * kind
    z = standardised(z + np.sqrt(0.45) * rng.normal(size=(4, n, genes)))
    found = of_ranks(z, drugs, places)
    assert found["same drug, b-nk"] == pytest.approx(0.4, abs=0.02)
    assert found["different drugs, between types, of one plate row"] == pytest.approx(0.1, abs=0.02)
    assert found["different drugs, between types, elsewhere"] == pytest.approx(0, abs=0.02)
    assert found["different drugs, between types, of one plate column"] == pytest.approx(
        0, abs=0.02
    )
    assert found["different drugs, within t"] == pytest.approx(0.15 + 0.1 * 3 / 23, abs=0.02)
    assert found["a drug's mean over pairs, 50 %"] == pytest.approx(0.4, abs=0.02)


def brute_force(effects: np.ndarray, obs: pd.DataFrame) -> tuple[pd.DataFrame, float, float]:
    """The published definitions, pair by pair."""
    rows, squares, cross = {}, [], []
    for name, here in obs.groupby("sm_name", observed=True).groups.items():
        whole = effects[here].mean(axis=0)
        products = []
        for i, j in combinations(here, 2):
            a, b = obs.loc[i], obs.loc[j]
            if a["cell_type"] == b["cell_type"] and a["donor_id"] != b["donor_id"]:
                products.append(np.mean((effects[i] - whole) * (effects[j] - whole)))
                prior = effects[[k for k in here if obs.at[k, "cell_type"] != a["cell_type"]]]
                prior = prior.mean(axis=0)
                cross.append(np.mean((effects[i] - prior) * (effects[j] - prior)))
        for i in here:
            kind = obs.at[i, "cell_type"]
            prior = effects[[k for k in here if obs.at[k, "cell_type"] != kind]].mean(axis=0)
            squares.append(np.mean(prior**2))
        context = max(float(np.mean(products)), 0) if products else np.nan
        rows[name] = {"conserved": float(np.mean(whole**2)), "context": context}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table, float(np.mean(squares)), max(float(np.mean(cross)), 0)


def test_effects_are_those_of_the_published_definitions(tiny: Forms) -> None:
    effects, obs = well_effects(tiny.bulk)
    some = obs["sm_name"].astype(str).isin(sorted(obs["sm_name"].astype(str).unique())[:6])
    effects, obs = effects[some].astype(float), obs[some].reset_index(drop=True)
    table, additive, interaction = brute_force(effects, obs)
    found = compound_effects(effects, obs)
    pd.testing.assert_frame_equal(found.loc[table.index], table, check_names=False, rtol=1e-6)
    assert decomposition(effects, obs) == pytest.approx((additive, interaction), rel=1e-6)


def test_effects_are_against_vehicle_wells_of_the_type_and_donor(tiny: Forms) -> None:
    effects, obs = well_effects(tiny.bulk)
    counts = np.asarray(tiny.bulk.X.todense(), dtype=float)
    share = counts.shape[1] / 18_211
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e6 * share)
    about = tiny.bulk.obs
    place = ["plate_name", "well", "cell_type"]
    first = obs.iloc[0]
    same = (about["cell_type"] == first["cell_type"]) & (about["donor_id"] == first["donor_id"])
    vehicle = (same & (about["sm_name"] == "Dimethyl Sulfoxide")).to_numpy()
    own = (about[place] == first[place]).all(axis=1).to_numpy()
    expected = logs[own][0] - logs[vehicle].mean(axis=0)
    for value in effects[0]:
        assert np.abs(expected - value).min() < 1e-4


def test_t_cells_of_a_well_are_one_type_and_no_count_is_lost(tiny: Forms) -> None:
    merged = merged_t_cells(tiny.bulk)
    assert set(merged.obs["cell_type"]) == set(TYPES.values())
    assert merged.X.sum() == tiny.bulk.X.sum()
    keys = merged.obs[["plate_name", "well", "cell_type"]]
    assert not keys.duplicated().any()
    kept = curated(merged)
    assert (np.asarray(kept.X.sum(axis=1)) > 0).all()


def test_what_an_experiment_is_too_small_for_says_so(
    tiny: Forms, caplog: pytest.LogCaptureFixture
) -> None:
    # one compound beside the vehicle: no pair of drugs, no public row
    names = ["Dimethyl Sulfoxide", "Belinostat"]
    few = Forms(tiny.bulk[tiny.bulk.obs["sm_name"].isin(names)].copy(), tiny.trained)
    found = pd.DataFrame({0: every_statistic(few)})
    assert "too small an experiment for ranks" in caplog.text
    real = {"same drug, b-nk": 0.145, "zeros: RMSE": 0.9, "effects: conserved, 50 %": 0.07}
    verdicts = {row["statistic"]: row["verdict"] for row in judged(real, found)}
    assert verdicts["same drug, b-nk"] == verdicts["zeros: RMSE"] == "too small an experiment"
    assert verdicts["effects: conserved, 50 %"] in ("as real", "off"), "the rest goes on"


def test_the_loss_is_one_where_every_statistic_is_just_as_real() -> None:
    real = {"same drug, b-nk": 0.2, "same drug, b-t": 0.3, "zeros: RMSE": 0.9}
    exact = pd.DataFrame({0: real})
    border = pd.DataFrame(
        {0: {"same drug, b-nk": 0.23, "same drug, b-t": 0.345, "zeros: RMSE": 1.035}}
    )
    assert loss(real, exact) == 0
    assert loss(real, border) == pytest.approx(1)
    assert (residuals(real, border) > 0).all()
    assert [row["verdict"] for row in judged(real, exact)] == ["as real"] * 3


@pytest.mark.data
def test_the_command_prints_a_table_and_writes_a_page(
    real_data: Path, experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    options = ("--preset", "tiny", "--invented", "--genes", 500, "--seeds", "0,1")
    assert experiment("calibration")(*options, "--page", page, "--json") == 0
    shown = capsys.readouterr().out
    rows = {row["statistic"]: row for row in json.loads(shown[shown.index("[") :])}
    # computed from the real files, not typed in
    assert rows["same drug, b-nk"]["real"] == pytest.approx(0.145, abs=5e-4)
    assert rows["effects: conserved, 50 %"]["real"] == pytest.approx(0.06995, abs=1e-5)
    assert rows["gene_mean: Pearson"]["real"] == pytest.approx(0.2198, abs=5e-5)
    assert rows["table: NK gene SD, 50 %"]["real"] == pytest.approx(1.40, abs=5e-3)
    assert rows["zeros: RMSE"]["simulated"] > 0.6
    assert "Simulated and real" in page.read_text()
