"""The simulated experiment in the benchmark's files, without any cell of a private row."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from simulated import write_openproblems

from perturbgen.core.h5ad import open_h5ad
from perturbgen.data.openproblems import read_openproblems, read_openproblems_de
from perturbgen.simulation import simulate

KEY = ["cell_type", "compound"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("openproblems")
    return write_openproblems(simulate("tiny", seed=0, out=made / "kaggle"), made / "op", seed=0)


def test_our_reader_takes_the_cells(folder: Path) -> None:
    cells = read_openproblems(folder / "sc_counts.h5ad")
    assert set(cells.obs["cell_type"]) == {"B cells", "Myeloid cells", "NK cells", "T cells"}
    assert set(cells.obs["split"]) == {"control", "train", "public_test"}
    assert cells.X.dtype == np.int32
    assert set(cells.obs.loc[cells.obs["split"] == "control", "compound"]) == {
        "Belinostat",
        "Dabrafenib",
        "Dimethyl Sulfoxide",
    }


def test_private_rows_are_those_of_id_map_and_have_no_cells(folder: Path) -> None:
    cells = read_openproblems(folder / "sc_counts.h5ad")
    ids = pd.read_csv(folder / "id_map.csv")
    assert ids.columns.tolist() == ["id", "sm_name", "cell_type"]
    test = read_openproblems_de(folder / "de_test.h5ad")
    assert test.index.tolist() == list(zip(ids["cell_type"], ids["sm_name"], strict=True))
    assert set(open_h5ad(folder / "de_test.h5ad").obs["split"]) == {"private_test"}
    measured = pd.MultiIndex.from_frame(cells.obs[KEY].astype(str))
    assert not measured.isin(test.index).any()
    train = read_openproblems_de(folder / "de_train.h5ad")
    assert not train.index.intersection(test.index).size
    public = open_h5ad(folder / "de_train.h5ad").obs.query("split == 'public_test'")
    assert not set(public["sm_name"]) & set(test.index.get_level_values(1)), "by compound"


def test_the_tables_agree_with_themselves(folder: Path) -> None:
    table = anndata.read_h5ad(folder / "de_train.h5ad")
    p, logfc = table.layers["P.Value"], table.layers["logFC"]
    clipped = np.clip(-np.sign(logfc) * np.log10(p), -4, 4)
    np.testing.assert_allclose(table.layers["clipped_sign_log10_pval"], clipped, atol=1e-6)
    assert np.array_equal(table.layers["is_de"], p < 0.05)
    assert (table.layers["adj.P.Value"] >= p).all()
    assert set(table.var_names) < set(read_openproblems(folder / "sc_counts.h5ad").var_names), (
        "some are not tested"
    )
    assert table.uns["dataset_id"] == "neurips-2023-data"
