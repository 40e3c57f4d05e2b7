"""Damage that HDF5 itself does not survive, or does not see."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from perturbgen.core import h5ad
from perturbgen.core.errors import InputError
from perturbgen.core.h5ad import open_h5ad, open_hdf5, write_h5ad

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are surveyed on Linux")


@pytest.fixture
def small() -> AnnData:
    """Two cells, two genes."""
    obs = pd.DataFrame({"cell_type": ["B cells", "NK cells"]}, index=["one", "two"])
    return AnnData(np.eye(2), obs=obs, var=pd.DataFrame(index=["TP53", "MYC"]))


def test_a_heap_over_which_hdf5_never_returns_is_an_error(small: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    small.write_h5ad(path)
    content = bytearray(path.read_bytes())
    # the objects of a heap come after its signature, version and size (16 bytes)
    at = content.index(b"GCOL") + 16
    content[at : at + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(InputError, match="HDF5 fails over it"):
        open_h5ad(path)


@pytest.mark.parametrize("name", ["TP53", "B cells", "two"])
def test_a_name_that_changed_is_an_error(name: str, small: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    write_h5ad(small, path)
    assert list(open_h5ad(path).var_names) == ["TP53", "MYC"]
    content = path.read_bytes()
    assert content.count(name.encode()) == 1
    path.write_bytes(content.replace(name.encode(), name.encode()[:-1] + b"?"))
    with pytest.raises(InputError, match="is not the text that was written"):
        open_h5ad(path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_value_that_changed_is_an_error(packed: bool, small: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    write_h5ad(small, path, packed=packed)
    with h5py.File(path) as file:
        place = file["X"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable h5ad"):
        open_h5ad(path)


def test_any_hdf5_file_holds_its_own_data(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["values"] = np.zeros(3)
        file["same"] = h5py.SoftLink("/values")
        file["itself"] = file["/"]
    with open_hdf5(tmp_path / "whole.h5") as file:
        assert file["same"].shape == (3,)
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["values"] = h5py.ExternalLink("whole.h5", "values")
    with pytest.raises(InputError, match="/values lies in another file"):
        open_hdf5(tmp_path / "linked.h5")


def test_a_file_is_gone_through_once_until_it_changes(
    small: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = tmp_path / "cells.h5ad", []
    survey = h5ad._survey
    monkeypatch.setattr(h5ad, "_survey", lambda path: (found.append(path), survey(path)))
    write_h5ad(small, path)
    for _ in range(3):
        open_h5ad(path)
    assert len(found) == 1
    write_h5ad(small[:1].copy(), path)
    assert open_h5ad(path).n_obs == 1
    assert len(found) == 2


def test_a_group_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        place = h5py.h5o.get_info(file.create_group("values").id).addr
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF  # the version of its header
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        open_hdf5(path)
