"""Values read past HDF5 are those that HDF5 reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from perturbgen.core.errors import InputError
from perturbgen.l1000 import GctxFile
from perturbgen.l1000.hdf5 import Hdf5Matrix, _RawReader

from .conftest import raw_gctx

RNG = np.random.default_rng(0)
GENES = [str(i) for i in range(90)]
SAMPLES = [f"P{i}_A375_24H_X1_B1:A01" for i in range(70)]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(
    "how",
    [{}, {"chunks": (16, 20)}, {"chunks": (70, 90)}, {"chunks": (1, 90)}, {"chunks": (70, 1)}],
)
@pytest.mark.parametrize("rows", [slice(0, 70), slice(5, 6), slice(15, 49), slice(64, 70)])
def test_it_reads_what_hdf5_reads(
    tmp_path: Path, rows: slice, how: dict[str, Any], kind: type
) -> None:
    values = RNG.normal(size=(70, 90)).astype(kind)
    matrix = Hdf5Matrix(raw_gctx(tmp_path / "a.gctx", values, genes=GENES, samples=SAMPLES, **how))
    assert matrix.raw is not None
    for columns in ([0], [89], [3, 19, 20, 21, 60], list(range(90)), [50, 2, 2, 88]):
        np.testing.assert_array_equal(
            matrix.block(rows, np.array(columns)), values[rows][:, columns]
        )
    matrix.close()


@pytest.mark.parametrize(
    ("values", "how"),
    [
        (RNG.normal(size=(70, 90)), {"chunks": (16, 20), "compression": "gzip"}),
        (RNG.normal(size=(70, 90)), {"chunks": (16, 20), "fletcher32": True}),
        (RNG.normal(size=(70, 90)).astype(">f4"), {}),
        (RNG.integers(100, size=(70, 90)), {}),
        (RNG.normal(size=(90, 70)), {}),
    ],
)
def test_what_does_not_lie_in_the_file_as_it_is_goes_through_hdf5(
    tmp_path: Path, values: np.ndarray, how: dict[str, Any]
) -> None:
    path = raw_gctx(tmp_path / "a.gctx", values, genes=GENES, samples=SAMPLES, **how)
    upright = values if values.shape == (70, 90) else values.T
    with GctxFile(path) as file:
        assert isinstance(file.backend, Hdf5Matrix)
        assert file.backend.raw is None
        found = file.read(genes=["80", "3", "4"], samples=SAMPLES[60:10:-7])
        np.testing.assert_allclose(found, upright[60:10:-7][:, [80, 3, 4]].astype(np.float32))


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        values = file.create_dataset("m", (40, 30), "f4", chunks=(10, 10), fillvalue=7.0)
        values[10:20, 20:30] = 1
    with h5py.File(path, "r") as file:
        reader = _RawReader(path, file["m"])
        np.testing.assert_array_equal(
            reader.block(slice(5, 35), np.array([0, 25])), file["m"][5:35][:, [0, 25]]
        )
        reader.close()


def test_a_file_that_shrinks_while_it_is_read_is_called_truncated(tmp_path: Path) -> None:
    values = RNG.normal(size=(70, 90)).astype(np.float32)
    path = raw_gctx(tmp_path / "a.gctx", values, genes=GENES, samples=SAMPLES)
    with GctxFile(path) as file:
        with open(path, "r+b") as handle:
            handle.truncate(path.stat().st_size - 12_000)
        with pytest.raises(InputError, match="ends within its matrix"):
            file.values(slice(0, 70), np.array([5]))
