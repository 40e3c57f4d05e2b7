"""The Open Problems files: where the counts are, the curated filter, the DE tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from perturbgen.core.errors import CountsError, InputError, SchemaError
from perturbgen.data.openproblems import (
    _CURATION,
    _curate,
    _Removal,
    is_openproblems,
    read_openproblems,
    read_openproblems_de,
)

ROWS = [
    ("R428", "Donor 1", "NK cells", False),
    ("R428", "Donor 1", "T cells", True),
    ("Alvocidib", "Donor 3", "T cells", False),
    ("BMS-387032", "Donor 2", "T cells", False),
    ("BMS-387032", "Donor 2", "B cells", False),
    ("BMS-387032", "Donor 1", "Myeloid cells", False),
    ("BMS-387032", "Donor 1", "NK cells", True),
    ("Navitoclax", "Donor 3", "B cells", False),
    ("Navitoclax", "Donor 2", "B cells", True),
    ("Proscillaridin A;Proscillaridin-A", "Donor 2", "Myeloid cells", False),
    ("Dimethyl Sulfoxide", "Donor 2", "Myeloid cells", True),
]


def cells(**changes: Any) -> anndata.AnnData:
    obs = pd.DataFrame([row[:3] for row in ROWS], columns=["sm_name", "donor_id", "cell_type"])
    obs = obs.assign(plate_name="plate_0", well="A1", split="train", dose_uM=1.0)
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = np.arange(len(obs) * 2).reshape(-1, 2)
    adata = anndata.AnnData(
        X=sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["G1", "G2"])
    )
    for name, value in changes.items():
        setattr(adata, name, value)
    return adata


def write(adata: anndata.AnnData, tmp_path: Path) -> Path:
    adata.write_h5ad(tmp_path / "sc_counts.h5ad")
    return tmp_path / "sc_counts.h5ad"


def test_cells_have_our_names_and_keep_their_split(tmp_path: Path) -> None:
    adata = read_openproblems(write(cells(), tmp_path))
    assert list(adata.obs["compound"]) == [row[0] for row in ROWS]
    assert list(adata.obs["donor"]) == [row[1] for row in ROWS]
    assert set(adata.obs["split"]) == {"train"}
    assert "library" not in adata.obs
    assert not adata.obs["control"].any()
    assert adata.uns["vehicle"] == "Dimethyl Sulfoxide"
    assert adata.X.dtype == np.int32


def test_control_is_the_files_own_or_follows_its_split(tmp_path: Path) -> None:
    adata = cells()
    adata.obs.loc["cell10", "split"] = "control"
    obs = read_openproblems(write(adata, tmp_path)).obs
    assert list(obs.index[obs["control"]]) == ["cell10"]
    adata.obs["control"] = True
    assert read_openproblems(write(adata, tmp_path)).obs["control"].all()


def test_counts_come_from_raw_then_the_counts_layer_then_x(tmp_path: Path) -> None:
    plain = cells()
    logged = sparse.csr_matrix(np.log1p(plain.X.toarray()))
    raw = read_openproblems(write(cells(raw=plain, X=logged), tmp_path))
    np.testing.assert_array_equal(raw.X.toarray(), plain.X.toarray())
    layered = read_openproblems(write(cells(X=logged, layers={"counts": plain.X}), tmp_path))
    np.testing.assert_array_equal(layered.X.toarray(), plain.X.toarray())
    with pytest.raises(CountsError, match=r"cell 'cell0' has 0\.693147"):
        read_openproblems(write(cells(X=logged), tmp_path))


def test_curation_drops_the_listed_conditions_and_no_other(tmp_path: Path) -> None:
    adata = read_openproblems(write(cells(), tmp_path), curated=True)
    assert list(adata.obs_names) == [f"cell{i}" for i, row in enumerate(ROWS) if row[3]]
    report = adata.uns["curation"].set_index("rule")["cells"]
    assert report["BMS-387032 / Donor 2"] == 2
    assert report["BMS-387032 / B cells"] == 1
    assert report["R428 / NK cells"] == 1
    assert report["Canertinib / Myeloid cells"] == 0
    assert len(report) == len(_CURATION)
    adata.write_h5ad(tmp_path / "curated.h5ad")


def test_a_rule_on_a_column_the_data_lack_is_an_error() -> None:
    adata = cells()
    adata.obs = adata.obs.rename(columns={"sm_name": "compound"})
    with pytest.raises(SchemaError, match="no column 'donor'"):
        _curate(adata, (_Removal("R428", donor="Donor 1"),))
    assert _curate(adata, (_Removal("R428"),)).n_obs == len(ROWS) - 2


def test_cells_without_a_compound_column_are_refused(tmp_path: Path) -> None:
    adata = cells()
    adata.obs = adata.obs.rename(columns={"sm_name": "sm_nam"})
    with pytest.raises(SchemaError, match="no column 'sm_name'"):
        read_openproblems(write(adata, tmp_path))


def test_the_file_is_recognised_by_its_header(tmp_path: Path) -> None:
    path = write(cells(), tmp_path)
    assert is_openproblems(path)
    read_openproblems(path).write_h5ad(tmp_path / "ours.h5ad")
    assert not is_openproblems(tmp_path / "ours.h5ad")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="not a readable h5ad"):
        is_openproblems(path)


def de_file(tmp_path: Path, **obs: Any) -> Path:
    table = pd.DataFrame(
        {"cell_type": ["B cells", "T cells"], "sm_name": ["x", "x"], "split": ["train", "control"]}
        | obs
    )
    table.index = table.index.astype(str)
    layers = {
        "clipped_sign_log10_pval": np.array([[1.5, -4.0], [0.0, 4.0]]),
        "logFC": np.array([[0.1, 0.2], [0.3, 0.4]]),
    }
    anndata.AnnData(
        X=None, obs=table, var=pd.DataFrame(index=["G1", "G2"]), layers=layers
    ).write_h5ad(tmp_path / "de.h5ad")
    return tmp_path / "de.h5ad"


def test_de_layers_are_labelled_by_condition_and_gene(tmp_path: Path) -> None:
    path = de_file(tmp_path)
    values = read_openproblems_de(path)
    assert values.loc[("B cells", "x"), "G2"] == -4.0
    assert read_openproblems_de(path, layer="logFC").loc[("T cells", "x"), "G1"] == 0.3


def test_an_unknown_layer_and_a_repeated_condition_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no layer 'logfc': did you mean 'logFC'"):
        read_openproblems_de(de_file(tmp_path), layer="logfc")
    with pytest.raises(SchemaError, match="1 duplicated condition"):
        read_openproblems_de(de_file(tmp_path, cell_type=["B cells", "B cells"]))
