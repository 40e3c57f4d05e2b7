"""Values of a GCTX are read right however HDF5 holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from perturbgen.core.errors import InputError
from perturbgen.l1000 import GctxFile

from .conftest import raw_gctx

RNG = np.random.default_rng(0)
GENES = [str(i) for i in range(90)]
SAMPLES = [f"P{i}_A375_24H_X1_B1:A01" for i in range(70)]


@pytest.mark.parametrize(
    ("values", "how"),
    [
        (RNG.normal(size=(70, 90)).astype(np.float32), {}),
        (RNG.normal(size=(70, 90)), {"chunks": (16, 20)}),
        (RNG.normal(size=(70, 90)).astype(np.float32), {"chunks": (1, 90)}),
        (RNG.normal(size=(70, 90)).astype(np.float32), {"chunks": (70, 1)}),
        (RNG.normal(size=(70, 90)), {"chunks": (16, 20), "compression": "gzip"}),
        (RNG.normal(size=(70, 90)), {"chunks": (16, 20), "fletcher32": True}),
        (RNG.normal(size=(70, 90)).astype(">f4"), {}),
        (RNG.integers(100, size=(70, 90)), {}),
        (RNG.normal(size=(90, 70)), {}),
    ],
)
@pytest.mark.parametrize("rows", [slice(0, 70), slice(5, 6), slice(15, 49), slice(64, 70)])
def test_blocks_are_read_from_every_layout(
    tmp_path: Path, values: np.ndarray, how: dict[str, Any], rows: slice
) -> None:
    path = raw_gctx(tmp_path / "a.gctx", values, genes=GENES, samples=SAMPLES, **how)
    upright = (values if values.shape == (70, 90) else values.T).astype(np.float32)
    with GctxFile(path) as file:
        for columns in ([0], [89], [3, 19, 20, 21, 60], list(range(90)), [50, 2, 2, 88]):
            np.testing.assert_array_equal(
                file.values(rows, np.array(columns)), upright[rows][:, columns]
            )
        found = file.read(genes=["80", "3", "4"], samples=SAMPLES[60:10:-7])
    np.testing.assert_array_equal(found, upright[60:10:-7][:, [80, 3, 4]])


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    path = raw_gctx(tmp_path / "a.gctx", np.zeros((70, 90)), genes=GENES, samples=SAMPLES)
    with h5py.File(path, "r+") as file:
        del file["0/DATA/0/matrix"]
        values = file.create_dataset(
            "0/DATA/0/matrix", (70, 90), "f4", chunks=(10, 10), fillvalue=7.0
        )
        values[10:20, 20:30] = 1
        expected = values[5:35][:, [0, 25]]
    with GctxFile(path) as file:
        np.testing.assert_array_equal(file.values(slice(5, 35), np.array([0, 25])), expected)


def test_a_file_that_shrinks_while_it_is_read_is_called_truncated(tmp_path: Path) -> None:
    values = RNG.normal(size=(70, 90)).astype(np.float32)
    path = raw_gctx(tmp_path / "a.gctx", values, genes=GENES, samples=SAMPLES)
    with GctxFile(path) as file:
        with open(path, "r+b") as handle:
            handle.truncate(path.stat().st_size - 12_000)
        with pytest.raises(InputError, match="is truncated"):
            file.values(slice(0, 70), np.array([5]))
