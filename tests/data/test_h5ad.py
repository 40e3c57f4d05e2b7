"""Any h5ad file through a column map: what is mapped, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from perturbgen.core.errors import ConfigError, CountsError, InputError, SchemaError
from perturbgen.data import find_violations
from perturbgen.data.h5ad import _column_map, read_h5ad, write_h5ad

COUNTS = np.array([[1, 0, 2], [0, 0, 3], [4, 1, 0], [0, 5, 0]])
COLUMNS = {"cell_type": "cluster", "compound": "group"}
MAPS = Path(__file__).parents[2] / "experiments" / "columns"


def make(tmp_path: Path, matrix: Any = None, **changes: Any) -> Path:
    obs = pd.DataFrame(
        {
            "cluster": ["T", "B", "T", "B"],
            "group": ["ctrl", "ctrl", "stim", "stim"],
            "sample": ["c1", "c2", "s1", "s2"],
        },
        index=["a", "b", "c", "d"],
    )
    X = sparse.csr_matrix(COUNTS.astype(np.float32)) if matrix is None else matrix
    adata = anndata.AnnData(X=X, obs=obs, var=pd.DataFrame(index=["G1", "G2", "G3"]))
    for name, value in changes.items():
        setattr(adata, name, value)
    adata.write_h5ad(tmp_path / "file.h5ad")
    return tmp_path / "file.h5ad"


def test_mapped_names_stand_beside_the_originals(tmp_path: Path) -> None:
    adata = read_h5ad(make(tmp_path), COLUMNS, vehicle="ctrl")
    assert list(adata.obs["cell_type"]) == list(adata.obs["cluster"]) == ["T", "B", "T", "B"]
    assert list(adata.obs["compound"]) == ["ctrl", "ctrl", "stim", "stim"]
    assert list(adata.obs["control"]) == [True, True, False, False]
    assert adata.uns["vehicle"] == "ctrl"
    assert "sample" in adata.obs


@pytest.mark.parametrize(
    "kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asarray]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint32])
def test_any_storage_of_whole_numbers_becomes_csr_int32(
    tmp_path: Path, kind: Any, dtype: Any
) -> None:
    adata = read_h5ad(make(tmp_path, kind(COUNTS.astype(dtype))), COLUMNS)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.int32
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0.31, "non-integers"),
        (-1, "negative"),
        (np.nan, "missing"),
        (np.inf, "infinite"),
        (2.0**40, "32 bits"),
    ],
)
@pytest.mark.parametrize("store", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_what_is_no_count_is_named_with_cell_and_gene(
    tmp_path: Path, value: float, kind: str, store: Any
) -> None:
    matrix = COUNTS.astype(float)
    matrix[2, 1] = value
    with pytest.raises(CountsError, match=f"{kind}.* cell 'c' has .* in gene 'G2'") as caught:
        read_h5ad(make(tmp_path, store(matrix)), COLUMNS)
    assert "--layer" in str(caught.value)


def test_a_named_layer_and_raw_hold_the_counts(tmp_path: Path) -> None:
    logged = sparse.csr_matrix(np.log1p(COUNTS))
    path = make(tmp_path, logged, layers={"counts": sparse.csr_matrix(COUNTS)})
    np.testing.assert_array_equal(read_h5ad(path, COLUMNS, layer="counts").X.toarray(), COUNTS)
    with pytest.raises(CountsError, match=r"cell 'a' has 0\.693147 in gene 'G1'"):
        read_h5ad(path, COLUMNS)
    raw = anndata.AnnData(X=sparse.csr_matrix(COUNTS), var=pd.DataFrame(index=["R1", "R2", "R3"]))
    adata = read_h5ad(make(tmp_path, logged, raw=raw), COLUMNS, layer="raw", vehicle="ctrl")
    assert list(adata.var_names) == ["R1", "R2", "R3"]
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)


def test_an_unknown_layer_names_those_there_are(tmp_path: Path) -> None:
    path = make(tmp_path, layers={"counts": sparse.csr_matrix(COUNTS)})
    with pytest.raises(SchemaError, match="no layer 'count'") as caught:
        read_h5ad(path, COLUMNS, layer="count")
    assert "'counts'" in str(caught.value)


def test_a_file_with_our_names_needs_no_map_and_keeps_its_vehicle(tmp_path: Path) -> None:
    first = read_h5ad(make(tmp_path), COLUMNS, vehicle="ctrl")
    first.write_h5ad(tmp_path / "ours.h5ad")
    again = read_h5ad(tmp_path / "ours.h5ad")
    assert again.uns["vehicle"] == "ctrl"
    pd.testing.assert_frame_equal(again.obs, first.obs)
    np.testing.assert_array_equal(again.X.toarray(), COUNTS)


def test_a_toml_map_with_constants_extraction_and_controls(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(
        'vehicle = "ctrl"\n[columns]\ncompound = "group"\n'
        '[constants]\ncell_type = "T"\ndose = 2.5\n'
        '[extract]\ndonor = { column = "sample", pattern = "^[cs](.)$" }\n'
        '[control]\ncolumn = "sample"\nvalues = ["c1", "s1"]\n'
    )
    obs = read_h5ad(make(tmp_path), tmp_path / "map.toml").obs
    assert list(obs["donor"]) == ["1", "2", "1", "2"]
    assert set(obs["cell_type"]) == {"T"}
    assert set(obs["dose"]) == {2.5}
    assert list(obs["control"]) == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            '[column]\ncompound = "group"',
            ConfigError,
            "unknown key 'column': did you mean 'columns'",
        ),
        ('[columns]\ncompund = "group"', ConfigError, "'compund', .* did you mean 'compound'"),
        ("[columns]\ncompound = group", ConfigError, "not valid TOML"),
        ('[columns]\ncompound = "groop"', SchemaError, "no column 'groop'"),
        ('[columns]\ncompound = "group"', SchemaError, "no column 'cell_type'"),
        (
            '[extract]\ndonor = { column = "sample", pattern = "x(.)" }',
            SchemaError,
            "does not match sample 'c1'",
        ),
        (
            '[extract]\ndonor = { column = "sample", pattern = "(" }',
            ConfigError,
            "no regular expression",
        ),
        ('[extract]\ndonor = { column = "sample", pattern = "c" }', ConfigError, "has 0 groups"),
        (
            '[columns]\ncompound = "group"\n[control]\nvalues = ["DMSO"]',
            SchemaError,
            "never holds 'DMSO'",
        ),
    ],
)
def test_a_wrong_map_says_what_is_wrong(
    tmp_path: Path, text: str, error: type, message: str
) -> None:
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(error, match=message):
        read_h5ad(make(tmp_path), tmp_path / "map.toml")


def test_all_missing_columns_are_named_at_once_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as caught:
        read_h5ad(make(tmp_path), {"cell_type": "clusters", "compound": "groups"})
    assert "'clusters', 'groups'" in str(caught.value)
    assert "'clusters': did you mean 'cluster'?" in str(caught.value)


def test_a_missing_file_and_an_empty_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no h5ad file at .*none\.h5ad"):
        read_h5ad(tmp_path / "none.h5ad")
    (tmp_path / "empty.h5ad").touch()
    with pytest.raises(InputError, match="0 bytes"):
        read_h5ad(tmp_path / "empty.h5ad")


@pytest.mark.parametrize("keep", [100, 5000, -100])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = make(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a readable h5ad"):
        read_h5ad(path, COLUMNS)


def test_another_format_under_this_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5ad").write_text("gene,cell\n")
    with pytest.raises(InputError, match="not a readable h5ad"):
        read_h5ad(tmp_path / "text.h5ad")


def test_an_hdf5_file_that_is_no_anndata_is_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["matrix"] = COUNTS
    with pytest.raises(InputError, match="has no obs"):
        read_h5ad(tmp_path / "other.h5ad", COLUMNS)


def test_our_writer_writes_what_anndata_writes(tmp_path: Path) -> None:
    adata = read_h5ad(make(tmp_path), COLUMNS, vehicle="ctrl")
    write_h5ad(adata, tmp_path / "ours.h5ad")
    adata.write_h5ad(tmp_path / "theirs.h5ad")
    ours, theirs = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    pd.testing.assert_frame_equal(ours.var, theirs.var)
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    assert ours.X.dtype == theirs.X.dtype
    assert dict(ours.uns) == dict(theirs.uns)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "columns", "shape"),
    [
        ("kang_ifnb", "kang", (1556, 1267)),
        ("macseq_plate", "macseq", (308, 500)),
        ("glioblastoma_panobinostat", "glioblastoma", (5000, 300)),
    ],
)
def test_the_real_files_pass_with_their_maps(
    real_data: Path, name: str, columns: str, shape: tuple[int, int]
) -> None:
    path = real_data / "counts" / f"{name}.h5ad"
    adata = read_h5ad(path, MAPS / f"{columns}.toml")
    assert adata.shape == shape
    assert find_violations(adata) == []
    np.testing.assert_array_equal(adata.X.toarray(), anndata.read_h5ad(path).X.toarray())


@pytest.mark.data
def test_kang_has_two_donors_each_with_and_without_interferon(real_data: Path) -> None:
    obs = read_h5ad(real_data / "counts" / "kang_ifnb.h5ad", MAPS / "kang.toml").obs
    assert set(zip(obs["donor"], obs["compound"], strict=True)) == {
        ("101", "ctrl"),
        ("101", "stim"),
        ("107", "ctrl"),
        ("107", "stim"),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[extract]\ndonor = {colum = 'x', pattern = '(.)'}\n",
            "'extract.donor.colum': did you mean 'column'",
        ),
        ("[control]\nvalue = ['x']\n", "'control.value': did you mean 'values'"),
    ],
)
def test_a_typo_deep_in_a_column_map_is_answered_with_the_nearest_key(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        _column_map(tmp_path / "map.toml")
