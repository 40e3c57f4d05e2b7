"""Damaged files are named where they are opened, before any compiled code sees them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from perturbgen.core.errors import InputError, UserError
from perturbgen.core.h5ad import open_h5ad
from perturbgen.data import CountStore, read_h5ad
from perturbgen.profiles import read_profiles

Damage = Callable[[h5py.File], None]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Twenty cells of two compounds, with the counts in X and in a layer, and an embedding."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.7, (20, 9)).astype(np.float32))
    obs = pd.DataFrame(
        {"compound": ["a", "b"] * 10, "cell_type": "T"}, [f"c{i}" for i in range(20)]
    )
    adata = anndata.AnnData(counts, obs, pd.DataFrame(index=[f"g{i}" for i in range(9)]))
    adata.layers["counts"] = counts.copy()
    adata.obsm["X_pca"] = rng.normal(size=(20, 3))
    path = tmp_path / "whole.h5ad"
    adata.write_h5ad(path)
    return path


def replace(root: h5py.Group, name: str, values: np.ndarray) -> None:
    del root[name]
    root[name] = values


def column_out_of_range(file: h5py.File) -> None:
    file["X/indices"][3] = 9


def column_negative(file: h5py.File) -> None:
    file["X/indices"][3] = -1


def rows_not_rising(file: h5py.File) -> None:
    file["X/indptr"][5] = file["X/indptr"][7] + 1


def rows_too_short(file: h5py.File) -> None:
    file["X/indptr"][-1] -= 4


def rows_too_long(file: h5py.File) -> None:
    file["X/indptr"][-1] += 4


def values_cut(file: h5py.File) -> None:
    replace(file["X"], "data", file["X/data"][:-5])


def both_cut(file: h5py.File) -> None:
    for name in ("data", "indices"):
        replace(file["X"], name, file[f"X/{name}"][:-5])


def values_added(file: h5py.File) -> None:
    for name in ("data", "indices"):
        replace(file["X"], name, np.append(file[f"X/{name}"][:], 1))


def shape_wider(file: h5py.File) -> None:
    file["X"].attrs["shape"] = [20, 12]


def shape_taller(file: h5py.File) -> None:
    file["X"].attrs["shape"] = [25, 9]


SPARSE = (
    column_out_of_range,
    column_negative,
    rows_not_rising,
    rows_too_short,
    rows_too_long,
    values_cut,
    both_cut,
    values_added,
    shape_wider,
    shape_taller,
)


def damaged(whole: Path, how: Damage) -> Path:
    path = whole.with_name("damaged.h5ad")
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        how(file)
    return path


@pytest.mark.parametrize("how", SPARSE)
@pytest.mark.parametrize("read", [read_h5ad, partial(read_profiles, key="X")])
def test_a_damaged_sparse_matrix_is_refused(
    whole: Path, how: Damage, read: Callable[[Path], object]
) -> None:
    read(whole)
    with pytest.raises(UserError, match=r"damaged|labels and features|not a readable"):
        read(damaged(whole, how))


def test_so_is_one_in_a_layer(whole: Path) -> None:
    def how(file: h5py.File) -> None:
        file["layers/counts/indices"][0] = 40

    with pytest.raises(InputError, match="counts is damaged"):
        open_h5ad(damaged(whole, how))


@pytest.mark.parametrize("how", SPARSE)
def test_so_is_one_that_is_read_from_the_disk(whole: Path, how: Damage) -> None:
    def read(path: Path) -> int:
        store = CountStore.open(path)
        return sum(len(batch.counts) for batch in store.batches(4))

    assert read(whole) == 20
    with pytest.raises(InputError, match="damaged"):
        read(damaged(whole, how))


def linked_group(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5ad", "X")


def linked_values(file: h5py.File) -> None:
    del file["X/data"]
    file["X/data"] = h5py.ExternalLink("other.h5ad", "X/data")


def external_storage(file: h5py.File) -> None:
    size = len(file["X/data"])
    del file["X/data"]
    file["X"].create_dataset("data", (size,), "f4", external=[("/etc/passwd", 0, 4 * size)])


def virtual_values(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((20, 3), "f8")
    layout[:] = h5py.VirtualSource("other.h5ad", "obsm/X_pca", (20, 3))
    del file["obsm/X_pca"]
    file.create_virtual_dataset("obsm/X_pca", layout)


@pytest.mark.parametrize("how", [linked_group, linked_values, external_storage, virtual_values])
@pytest.mark.parametrize("backed", [False, True])
def test_nothing_outside_the_file_is_read(whole: Path, how: Damage, backed: bool) -> None:
    shutil.copy(whole, whole.with_name("other.h5ad"))
    with pytest.raises(InputError, match="another file"):
        open_h5ad(damaged(whole, how), backed=backed)
