import anndata as ad
import numpy as np
import pandas as pd
import pytest

from perturbgen.core.stats import log_cpm
from perturbgen.data.maps import (
    _log_profiles,
    _map_samples,
    _principal_components,
    _remove_plate_effects,
    _strength,
    _variable_genes,
)


def test_log_cpm_by_hand() -> None:
    assert log_cpm(np.array([[0.0, 3.0]]), np.array([3.0]))[0] == pytest.approx(
        np.log2([0.5 / 4 * 1e6, 3.5 / 4 * 1e6])
    )


def additive(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Profiles that are exactly compound + plate effects, and the same without the plates'."""
    obs = pd.DataFrame(
        [(c, p, d) for c in "BT" for p in "pqr" for d in ("v", "x", "yz"["pqr".index(p) // 2])]
    )
    obs.columns = pd.Index(["cell_type", "plate", "compound"])
    part = {name: {key: rng.normal(size=4) for key in obs[name].unique()} for name in obs}
    plates = np.array([part["plate"][p] for p in obs["plate"]])
    truth = np.array(
        [
            part["cell_type"][c] + part["compound"][d]
            for c, d in zip(obs["cell_type"], obs["compound"], strict=True)
        ]
    )
    return truth + plates, truth + np.mean(list(part["plate"].values()), axis=0), obs


def test_plate_effects_go_and_compound_and_cell_type_effects_stay() -> None:
    values, truth, obs = additive(np.random.default_rng(0))
    assert _remove_plate_effects(
        values, obs["cell_type"], obs["plate"], obs["compound"]
    ) == pytest.approx(truth)


def test_relabelling_plates_changes_nothing() -> None:
    values, truth, obs = additive(np.random.default_rng(1))
    renamed = obs["plate"].map({"p": "z", "q": "y", "r": "x"})
    assert _remove_plate_effects(
        values, obs["cell_type"], renamed, obs["compound"]
    ) == pytest.approx(truth)


def test_one_plate_is_left_as_it_is() -> None:
    values, _, obs = additive(np.random.default_rng(2))
    assert _remove_plate_effects(
        values, obs["cell_type"], obs["cell_type"], obs["compound"]
    ) == pytest.approx(values)


def test_variable_genes_keep_their_order() -> None:
    values = np.array([[0.0, 0.0, 0.0], [9.0, 0.0, 1.0]])
    assert _variable_genes(values, 2).tolist() == [0, 2]


def test_embedding_separates_two_groups_and_one_seed_gives_one_map() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 15)
    values = rng.normal(size=(30, 40)) + 8 * group[:, None]
    first, second = _map_samples(values, seed=1), _map_samples(values, seed=1)
    pd.testing.assert_frame_equal(first, second)
    assert abs(np.corrcoef(first["PC1"], group)[0, 1]) > 0.95
    assert _principal_components(values).shape == (30, 29)


def test_strength_is_the_distance_from_the_vehicle_of_the_same_cell_type() -> None:
    values = np.array([[0.0, 0.0], [3.0, 4.0], [10.0, 10.0], [10.0, 10.0], [11.0, 11.0]])
    compound = pd.Series(["v", "strong", "v", "none", "weak"])
    found = _strength(values, pd.Series(list("BBTTT")), compound, "v")
    assert found.to_dict() == pytest.approx({"strong": np.sqrt(12.5), "weak": 1.0, "none": 0.0})
    assert found.index[0] == "strong"


def test_profiles_leave_out_samples_of_few_cells_and_genes_of_few_counts() -> None:
    counts = np.full((3, 60), 5)
    counts[:, 0] = 0
    obs = pd.DataFrame({"n_cells": [10, 4, 5]}, index=list("abc"))
    values, kept = _log_profiles(ad.AnnData(counts.astype(np.float64), obs=obs))
    assert values.shape == (2, 59)
    assert kept["n_cells"].tolist() == [10, 5]
