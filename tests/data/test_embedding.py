import anndata as ad
import numpy as np
import pandas as pd
import pytest

from perturbgen.data.embedding import (
    embed,
    log_cpm,
    principal_components,
    profiles,
    remove_plate_effects,
    strength,
    variable_genes,
)


def test_log_cpm_by_hand() -> None:
    assert log_cpm(np.array([[0.0, 3.0]]))[0] == pytest.approx(np.log2([0.5 / 4 * 1e6, 3.5 / 4 * 1e6]))


def test_plate_shift_is_read_off_the_reference_wells_and_drug_effects_stay() -> None:
    truth = np.array([[0.0], [4.0], [0.0], [9.0]])  # vehicle, drug, vehicle, drug
    plate = pd.Series(["p", "p", "q", "q"])
    shifted = truth + np.where(plate == "q", 2.0, 0.0)[:, None]
    corrected = remove_plate_effects(shifted, pd.Series(["B"] * 4), plate, np.array([True, False, True, False]))
    assert corrected - corrected[0] == pytest.approx(truth)


def test_a_plate_without_reference_wells_uses_all_its_samples() -> None:
    values = np.array([[1.0], [3.0], [11.0], [13.0]])
    corrected = remove_plate_effects(values, pd.Series(["B"] * 4), pd.Series(list("ppqq")), np.zeros(4, bool))
    assert corrected.ravel() == pytest.approx([6, 8, 6, 8])


def test_cell_types_are_corrected_apart_and_their_difference_stays() -> None:
    values = np.array([[0.0], [2.0], [100.0], [102.0]])
    corrected = remove_plate_effects(values, pd.Series(list("BBTT")), pd.Series(list("pqpq")))
    assert corrected.ravel() == pytest.approx([1, 1, 101, 101])


def test_relabelling_plates_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    values, plate = rng.normal(size=(12, 5)), pd.Series(list("abc") * 4)
    cell_type = pd.Series(["B"] * 6 + ["T"] * 6)
    renamed = plate.map({"a": "z", "b": "y", "c": "x"})
    assert remove_plate_effects(values, cell_type, plate) == pytest.approx(
        remove_plate_effects(values, cell_type, renamed)
    )


def test_variable_genes_keep_their_order() -> None:
    values = np.array([[0.0, 0.0, 0.0], [9.0, 0.0, 1.0]])
    assert variable_genes(values, 2).tolist() == [0, 2]


def test_embedding_separates_two_groups_and_one_seed_gives_one_map() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 15)
    values = rng.normal(size=(30, 40)) + 8 * group[:, None]
    first, second = embed(values, seed=1), embed(values, seed=1)
    pd.testing.assert_frame_equal(first, second)
    assert abs(np.corrcoef(first["PC1"], group)[0, 1]) > 0.95
    assert principal_components(values).shape == (30, 29)


def test_strength_is_the_distance_from_the_vehicle_of_the_same_cell_type() -> None:
    values = np.array([[0.0, 0.0], [3.0, 4.0], [10.0, 10.0], [10.0, 10.0], [11.0, 11.0]])
    compound = pd.Series(["v", "strong", "v", "none", "weak"])
    found = strength(values, pd.Series(list("BBTTT")), compound, "v")
    assert found.to_dict() == pytest.approx({"strong": np.sqrt(12.5), "weak": 1.0, "none": 0.0})
    assert found.index[0] == "strong"


def test_profiles_leave_out_samples_of_few_cells_and_genes_of_few_counts() -> None:
    counts = np.full((3, 60), 5)
    counts[:, 0] = 0
    obs = pd.DataFrame({"n_cells": [10, 4, 5]}, index=list("abc"))
    values, kept = profiles(ad.AnnData(counts.astype(np.float64), obs=obs))
    assert values.shape == (2, 59)
    assert kept["n_cells"].tolist() == [10, 5]
