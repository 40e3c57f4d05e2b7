"""The plates have the shape of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.core.tables import VEHICLE
from perturbgen.simulation import SimulationSettings
from perturbgen.simulation.op3.layout import _CONTROLS, _LIBRARY_PLATES, Layout, _invent_compounds


def invented(**plate: int) -> Layout:
    settings = SimulationSettings.model_validate({"plate": plate})
    return Layout.draw(settings, rng=np.random.default_rng(0))


def read_layout(folder: Path) -> Layout:
    settings = SimulationSettings.model_validate({"source": {"layout": str(folder)}})
    return Layout.draw(settings, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def full() -> Layout:
    return invented()


def test_six_plates_of_96_wells_with_eight_wells_of_each_control(full: Layout) -> None:
    assert full.wells.groupby("plate_name").size().to_dict() == {f"plate_{i}": 96 for i in range(6)}
    controls = full.wells[full.wells["sm_name"].isin(_CONTROLS)]
    assert set(controls.groupby(["plate_name", "sm_name"]).size()) == {8}
    assert set(controls["col"]) == {1, 2, 3}
    # Every row has each control once, so that row effects can be told from compound effects.
    assert set(controls.groupby(["plate_name", "row", "sm_name"]).size()) == {1}
    assert not full.wells.duplicated(["plate_name", "well"]).any()


def test_a_compound_has_one_well_on_the_three_plates_of_one_library(full: Layout) -> None:
    compounds = full.wells[~full.wells["sm_name"].isin(_CONTROLS)].groupby("sm_name")
    assert len(compounds) == 144
    assert (compounds["well"].nunique() == 1).all()
    assert (compounds["donor_id"].nunique() == 3).all()
    for plates in compounds["plate_name"].agg(set):
        assert plates in [set(library) for library in _LIBRARY_PLATES]


def test_each_plate_has_one_donor_and_each_of_its_rows_one_sequencing_library(full: Layout) -> None:
    assert (full.wells.groupby("plate_name")["donor_id"].nunique() == 1).all()
    assert full.wells["library_id"].nunique() == 48
    assert (full.wells.groupby("library_id")[["plate_name", "row"]].nunique() == 1).all(axis=None)


def test_lost_wells_are_of_different_compounds(full: Layout) -> None:
    lost = full.wells[full.wells["lost"]]
    assert len(lost) == SimulationSettings().plate.lost_wells
    assert lost["sm_name"].is_unique
    assert not lost["sm_name"].isin(_CONTROLS).any()


def test_every_compound_may_be_known_and_lose_a_well_but_no_more() -> None:
    settings = {"rows": 2, "compound_columns": 3}
    layout = invented(**settings, known_compounds=12, lost_wells=12)
    assert len(layout.known) == 12 + 2
    assert layout.wells["lost"].sum() == 12
    with pytest.raises(
        ConfigError, match="known_compounds is 13, but the plates hold 12 compounds"
    ):
        invented(**settings, known_compounds=13)
    with pytest.raises(ConfigError, match="lost_wells is 13") as refused:
        invented(**settings, known_compounds=1, lost_wells=13)
    assert refused.value.expected == "at most 2 libraries x 2 rows x 3 columns = 12"


def test_smiles_are_valid_and_unique_as_molecules() -> None:
    chem = pytest.importorskip("rdkit.Chem")
    smiles = _invent_compounds(144)["SMILES"]
    canonical = [chem.MolToSmiles(chem.MolFromSmiles(text)) for text in smiles]
    assert len(set(canonical)) == 147


def test_compound_table_marks_the_three_controls() -> None:
    table = _invent_compounds(10)
    assert set(table.index[table["control"]]) == set(_CONTROLS)
    assert table["sm_lincs_id"].is_unique
    assert table.loc[VEHICLE, "dose_uM"] != table.loc["Compound 001", "dose_uM"]


@pytest.mark.data
def test_the_real_layout_agrees_with_every_real_file(real_data: Path) -> None:
    folder = real_data / "op3"
    layout = read_layout(folder)
    wells = layout.wells
    assert len(wells) == 576
    assert not wells.duplicated(["plate_name", "well"]).any()
    assert wells["sm_name"].nunique() == 147
    named = pd.read_csv(folder / "plate_layout_and_predicted_counts.csv")
    ours = set(zip(wells["plate_name"], wells["well"], wells["sm_name"], strict=True))
    assert set(zip(named["plate_name"], named["well"], named["sm_name"], strict=True)) <= ours
    # 129 of those compounds have three wells, two have two, one has one.
    assert wells["lost"].sum() == 4
    assert wells[wells["lost"]].groupby("sm_name").size().sort_values().tolist() == [1, 1, 2]
    assert len(layout.known) == 17
    assert layout.genes is not None
    assert len(layout.genes) == 18_211


def test_a_layout_folder_that_lacks_a_file_or_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layout folder"):
        read_layout(tmp_path / "none")
    with pytest.raises(InputError, match="no compounds at"):
        read_layout(tmp_path)
    pd.DataFrame({"sm_name": ["a"]}).to_parquet(tmp_path / "compounds_147.parquet")
    with pytest.raises(SchemaError, match="has no column 'sm_lincs_id', 'smiles'"):
        read_layout(tmp_path)
