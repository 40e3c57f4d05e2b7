"""Equal to copairs 0.5.5, the reference for mAP in image-based profiling; ``copairs/make.py`` made
its numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.retrieval import retrieve

HERE = Path(__file__).parent / "copairs"
DRAWS = 200_000  # of copairs' null


@pytest.fixture(scope="module")
def profiles() -> pd.DataFrame:
    return pd.read_csv(HERE / "profiles.csv")


@pytest.fixture(scope="module")
def groups() -> pd.DataFrame:
    return pd.read_csv(HERE / "groups.csv").set_index("g")


def features(table: pd.DataFrame) -> np.ndarray:
    return table[[f"x{i}" for i in range(8)]].to_numpy()


def assert_same_p(found: pd.Series, expected: pd.Series) -> None:
    """Within four standard errors of copairs' permutations, and 1 % for the width of our grid."""
    error = 4 * np.sqrt(expected * (1 - expected) / DRAWS) + 1.5 / DRAWS + 0.01 * expected
    assert (np.abs(found - expected) < error).all()


def test_everyone_against_everyone(profiles: pd.DataFrame, groups: pd.DataFrame) -> None:
    result = retrieve(features(profiles), profiles[["g", "plate"]], same="g")
    np.testing.assert_allclose(result.queries["ap"], profiles["ap_everyone"], atol=1e-7)
    np.testing.assert_allclose(result.queries["nap"], profiles["nap_everyone"], atol=1e-7)
    ours = result.groups.set_index("g").loc[groups.index]
    np.testing.assert_allclose(ours["ap"], groups["map_everyone"], atol=1e-7)
    assert_same_p(ours["p"], groups["p_everyone"])
    np.testing.assert_allclose(ours["p_bh"], groups["q_everyone"], rtol=0.15)


def test_positives_on_another_plate_negatives_on_the_own(
    profiles: pd.DataFrame, groups: pd.DataFrame
) -> None:
    result = retrieve(
        features(profiles),
        profiles[["g", "plate"]],
        same="g",
        differ="plate",
        negatives_same="plate",
    )
    np.testing.assert_allclose(result.queries["ap"], profiles["ap_other_plate"], atol=1e-7)
    ours = result.groups.set_index("g").loc[groups.index]
    np.testing.assert_allclose(ours["ap"], groups["map_other_plate"], atol=1e-7)
    # groups of queries with different numbers of positives
    assert_same_p(ours["p"], groups["p_other_plate"])


@pytest.mark.data
def test_a_real_cell_painting_plate_against_its_dmso_wells(real_data: Path) -> None:
    path = real_data / "imaging" / "cellpainting" / "SQ00015054_normalized_feature_select.csv.gz"
    table = pd.read_csv(path)
    meta = table[["Metadata_broad_sample"]].set_axis(["compound"], axis=1)
    control = (meta["compound"] == "DMSO").to_numpy()
    x = table.loc[:, ~table.columns.str.startswith("Metadata_")].to_numpy(float)
    result = retrieve(
        x, meta, same="compound", queries=~control, candidates=~control, negatives=control
    )
    expected = pd.read_csv(HERE / "cellpainting.csv").set_index("compound")
    ours = result.groups.set_index("compound").loc[expected.index]
    assert len(ours) == len(result.groups) == 58
    np.testing.assert_allclose(ours["ap"], expected["map"], atol=1e-7)
    np.testing.assert_allclose(ours["nap"], expected["nmap"], atol=1e-7)
    assert ours["ap"].mean() == pytest.approx(0.6178, abs=1e-4)
    assert_same_p(ours["p"], expected["p"])
    assert ((ours["p_bh"] < 0.05) == (expected["q"] < 0.05)).all()
    assert (ours["p_bh"] < 0.05).sum() == 33
