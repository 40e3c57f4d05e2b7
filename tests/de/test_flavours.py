"""The two published recipes, taken apart."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from perturbgen.core.errors import ConfigError
from perturbgen.core.tables import VEHICLE
from perturbgen.data.kaggle import ORGANISERS_PLATES
from perturbgen.de import filter_by_expr, flavour_table, limma_table
from perturbgen.de.design import Design
from perturbgen.de.limma import _organisers_obs
from tests.de.cases import random_counts


@pytest.fixture(scope="module")
def experiment() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two cell types on six plates of three donors; compounds in one row each, controls in all."""
    rows = []
    for cell_type in ("NK cells", "B cells"):
        for plate in range(6):
            for compound, row in [
                ("b-1", "A"),
                ("b 1", "B"),
                ("a", "A"),
                (VEHICLE, "A"),
                (VEHICLE, "B"),
                ("z", "B"),
            ]:
                rows.append((cell_type, compound, f"donor_{plate % 3}", f"plate_{plate}", row))
    obs = pd.DataFrame(rows, columns=["cell_type", "compound", "donor", "plate", "row"])
    obs.index = [f"s{i}" for i in range(len(obs))]
    return random_counts(np.random.default_rng(0), obs, 250), obs


def test_numbers_sort_as_text() -> None:
    obs = pd.DataFrame({"compound": [f"c{i}" for i in range(12)]})
    ordered = _organisers_obs(obs, group="compound", rename_plates=False)["compound"]
    assert list(ordered.cat.categories)[:4] == ["c0", "c1", "c10", "c11"]


def test_kaggle_is_the_organisers_script(experiment: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    counts, obs = experiment
    found = flavour_table(counts, obs, flavour="kaggle")
    numbers = {name: str(i) for i, name in enumerate(obs["compound"].unique())}
    spelled = obs.assign(
        Rpert=obs["compound"].map(numbers),
        donor_id=obs["donor"],
        plate_name=obs["plate"].map(ORGANISERS_PLATES),
    )
    for cell_type in ("NK cells", "B cells"):
        rows = spelled["cell_type"] == cell_type
        expected = limma_table(
            counts[rows],
            spelled[rows],
            design="~0 + Rpert + donor_id + plate_name + row".replace("Rpert", "{group}"),
            group="Rpert",
            control=numbers[VEHICLE],
            contrasts="limma",
            zero_p="eps",
        )
        for compound in ("b-1", "b 1", "a", "z"):
            mine = found.log10_p.loc[(cell_type, compound)]
            np.testing.assert_allclose(mine, expected.log10_p.loc[numbers[compound]], rtol=1e-9)
    assert found.clip is None
    assert found.info["flavour"] == "kaggle"


def test_plates_are_renamed_only_where_they_are_the_competitions(
    experiment: tuple[pd.DataFrame, pd.DataFrame], caplog: pytest.LogCaptureFixture
) -> None:
    _, obs = experiment
    assert (
        _organisers_obs(obs, group="compound", rename_plates=True)["plate"].iloc[0]
        == ORGANISERS_PLATES["plate_0"]
    )
    assert _organisers_obs(obs, group="compound", rename_plates=False)["plate"].iloc[0] == "plate_0"
    with caplog.at_level(logging.INFO, "perturbgen"):
        other = _organisers_obs(obs.assign(plate="P1"), group="compound", rename_plates=True)
    assert (other["plate"] == "P1").all()
    assert "left as they are" in caplog.text


def test_op3_is_joint_filtered_robust_and_clipped(
    experiment: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    counts, obs = experiment
    found = flavour_table(counts, obs, flavour="op3")
    keep = np.ones(counts.shape[1], dtype=bool)
    for cell_type in ("NK cells", "B cells"):
        rows = obs["cell_type"] == cell_type
        design = Design.from_formula("~0 + compound + plate", obs[rows])
        keep &= filter_by_expr(counts[rows], design=design.matrix).to_numpy()
    assert 20 < keep.sum() < 250
    assert (found.t.notna().all() == keep).all()
    tested = found.p.loc[:, keep]
    np.testing.assert_allclose(
        found.adj_p.loc[:, keep].to_numpy().ravel(),
        false_discovery_control(tested.to_numpy().ravel()),
    )
    signed = found.signed_log10_p.loc[:, keep]
    assert signed.abs().max().max() == 4
    np.testing.assert_allclose(signed.abs(), np.minimum(-np.log10(tested), 4), rtol=1e-9)
    # robust: outlying genes have their own df
    assert found.df.loc[:, keep].nunique(axis=1).max() > 1


def test_options_override_a_flavour(experiment: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    counts, obs = experiment
    exact = flavour_table(counts, obs, flavour="kaggle", contrasts="exact")
    renamed = flavour_table(counts, obs, flavour="kaggle", contrasts="exact", rename_plates=False)
    np.testing.assert_allclose(exact.log10_p, renamed.log10_p, rtol=1e-8)


def test_unknown_flavour(experiment: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'kaggle'"):
        flavour_table(*experiment, flavour="kagle")
