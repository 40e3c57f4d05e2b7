"""Published tables of images and L1000, recomputed."""

from pathlib import Path

import numpy as np
import published_tables as paired
import pytest

from perturbgen.core.errors import InputError, SchemaError


@pytest.mark.data
def test_the_published_accuracies_of_57_mechanisms(real_data: Path) -> None:
    predictions = paired.read_moa_predictions(
        real_data / "imaging" / "paired" / "pred_moa_LINCS.xlsx"
    )
    assert (len(predictions), predictions["moa"].nunique()) == (1655, 57)
    rows = {
        row["method"]: row
        for row in paired.moa_accuracies(predictions, rng=np.random.default_rng(0))
    }
    found = {name: round(row["accuracy"], 3) for name, row in rows.items()}
    assert found == {
        "CP": 0.237,
        "GE": 0.221,
        "Early Fusion": 0.250,
        "RGCCA_EarlyFusion": 0.256,
        "Late Fusion": 0.253,
    }
    assert all(row["low"] < row["accuracy"] < row["high"] for row in rows.values())


@pytest.mark.data
def test_shares_of_reproducible_perturbations(real_data: Path) -> None:
    folder = real_data / "imaging" / "paired"
    lincs = paired.replicability(folder / "RepCorrDF.xlsx", "lincs")
    assert (lincs["images perturbations"], lincs["L1000 perturbations"]) == (9394, 8321)
    assert (round(lincs["images share"], 3), round(lincs["L1000 share"], 3)) == (0.495, 0.281)
    table = paired.reproducible_by_dose(folder / "compound_activity_full.tsv.gz")
    assert table["uM"].tolist() == [0.04, 0.12, 0.37, 1.11, 3.33, 10.0]
    assert table["images"].is_monotonic_increasing
    assert table["L1000"].is_monotonic_increasing
    assert (table["both"] <= table[["images", "L1000"]].min(axis=1)).all()
    with pytest.raises(SchemaError, match="no sheet 'cp-lincz'"):
        paired.replicability(folder / "RepCorrDF.xlsx", "lincz")


def test_a_file_that_is_no_workbook(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("no workbook")
    with pytest.raises(InputError, match="not a readable workbook"):
        paired.read_sheet(tmp_path / "a.xlsx", "s")
