"""What is written comes back, in GCTX and in GCT."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError, StorageError
from perturbgen.l1000 import GctxFile, GctxWriter, write_gct, write_gctx


@pytest.fixture
def data() -> ad.AnnData:
    """Three samples of four genes with every kind of metadata."""
    obs = pd.DataFrame(
        {
            "dose": [0.5, np.nan, 3.0],
            "name": ["a", None, "\u00b5-drug"],
            "plate/well": ["x", "y", "z"],
            "n": [1, 2, 3],
        },
        index=["s1", "s2", "P_DMSO:-666"],
    )
    var = pd.DataFrame({"symbol": ["A", "B", "C", "D"]}, index=["1", "2", "3", "4"])
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    return ad.AnnData(values, obs=obs, var=var)


@pytest.mark.parametrize("compression", [None, 4])
def test_gctx_comes_back(data: ad.AnnData, tmp_path: Path, compression: int | None) -> None:
    path = tmp_path / "a.gctx"
    write_gctx(data, path, compression=compression)
    with GctxFile(path) as file:
        found = file.to_anndata()
    np.testing.assert_array_equal(found.X, data.X)
    assert found.obs_names.tolist() == data.obs_names.tolist()
    assert found.obs["plate|well"].tolist() == ["x", "y", "z"]
    assert found.obs["name"].tolist() == ["a", None, "\u00b5-drug"]
    np.testing.assert_array_equal(found.obs["dose"], data.obs["dose"])
    assert found.var["symbol"].tolist() == data.var["symbol"].tolist()
    with h5py.File(path) as file:
        assert file["0/META/COL/dose"][1] == -666
        assert file["0/META/COL/name"][1] == b"-666"


def test_gct_comes_back_to_the_last_bit(data: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.gct"
    write_gct(data, path)
    found = GctxFile(path).to_anndata()
    np.testing.assert_array_equal(found.X, data.X)
    assert found.obs["n"].tolist() == [1, 2, 3]
    assert found.obs["name"].tolist() == ["a", None, "\u00b5-drug"]
    assert found.obs["dose"].isna().tolist() == [False, True, False]


def test_gct_1_2_keeps_one_field_of_the_genes(data: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.gct"
    write_gct(data, path, version="1.2")
    file = GctxFile(path)
    assert file.format == "gct 1.2"
    assert file.var["Description"].tolist() == ["A", "B", "C", "D"]
    np.testing.assert_array_equal(file.read(), data.X)
    with pytest.raises(InputError, match=r"GCT 1.4"):
        write_gct(data, path, version="1.4")


def test_blocks_written_one_by_one_have_real_chunks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(600, 1200)).astype(np.float32)
    ids = pd.DataFrame(index=[f"s{i}" for i in range(600)])
    var = pd.DataFrame(index=[str(i) for i in range(1200)])
    with GctxWriter(tmp_path / "a.gctx", var, samples=600) as writer:
        for start in range(0, 600, 250):
            writer.append(values[start : start + 250], ids.iloc[start : start + 250])
    with GctxFile(tmp_path / "a.gctx") as file:
        assert file.chunks == (262, 1000)
        np.testing.assert_array_equal(file.read(), values)
        assert file.samples.tolist() == ids.index.tolist()


def test_the_chunks_are_cmaps() -> None:
    assert GctxWriter.chunk_shape(1_319_138, 12_328) == (262, 1000)
    assert GctxWriter.chunk_shape(10, 978) == (10, 978)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    var = pd.DataFrame(index=["1", "2"])
    with (
        pytest.raises(SchemaError, match="3 x 2 values came with 2 ids"),
        GctxWriter(tmp_path / "a.gctx", var) as writer,
    ):
        writer.append(np.zeros((3, 2)), pd.DataFrame(index=["a", "b"]))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GctxWriter, "write_metadata", full)
    with (
        pytest.raises(StorageError, match="no space left on the disk"),
        GctxWriter(tmp_path / "a.gctx", pd.DataFrame(index=["1"])) as writer,
    ):
        writer.append(np.zeros((1, 1)), pd.DataFrame(index=["a"]))
    assert list(tmp_path.iterdir()) == []
