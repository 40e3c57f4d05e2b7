"""What our GCTX files hold is read as it was written, or not at all."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, PerturbgenError
from perturbgen.l1000 import GctxFile, GctxWriter

MATRIX = "0/DATA/0/matrix"
SAMPLES, GENES = 30, 1203  # two blocks of columns


@pytest.fixture(params=[None, 4])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(SAMPLES, GENES)).astype(np.float32)
    obs = pd.DataFrame({"plate": "P1", "dose": rng.random(SAMPLES)}, index=map(str, range(SAMPLES)))
    var = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
    path = tmp_path / "a.gctx"
    with GctxWriter(path, var, samples=SAMPLES, compression=request.param) as writer:
        for start in (0, 11):
            stop = 11 if start == 0 else SAMPLES
            writer.append(values[start:stop], obs.iloc[start:stop])
    return path


def everything(path: Path) -> tuple[bytes, str]:
    """Values, ids and metadata."""
    with GctxFile(path) as file:
        return file.read().tobytes(), file.obs.to_csv() + file.var.to_csv()


@pytest.mark.parametrize("zeroed", [1, 40])
def test_no_changed_byte_gives_something_else(path: Path, zeroed: int) -> None:
    whole, content = everything(path), path.read_bytes()
    rng = np.random.default_rng(zeroed)
    # most of what leads HDF5 astray lies outside of the matrix, whose bytes are all alike
    first = np.arange(0, 2000, 97)
    for at in [*first.tolist(), *rng.integers(len(content), size=60).tolist()]:
        changed = bytearray(content)
        if zeroed == 1:
            changed[at] ^= 1 << int(rng.integers(8))
        else:
            size = min(zeroed, len(content) - at)
            changed[at : at + size] = bytes(size)
        path.write_bytes(changed)
        try:
            found = everything(path)
        except PerturbgenError:
            continue
        assert found == whole, f"byte {at}"


def edit(path: Path) -> None:
    """Rows that changed places, in the second block of columns."""
    with h5py.File(path, "r+") as file:
        file[MATRIX][3:5, 1000:] = file[MATRIX][3:5, 1000:][::-1]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"genes": ["g1100"]},
        {"samples": ["4", "9"]},
        {"genes": ["g1202", "g0"], "samples": ["3"]},
    ],
)
def test_damage_is_found_however_little_of_a_block_is_wanted(
    path: Path, how: dict[str, list[str]]
) -> None:
    edit(path)
    with GctxFile(path) as file, pytest.raises(InputError, match="rows of the matrix, from") as e:
        file.read(**how)
    assert "remove /checksums" in str(e.value)


def test_what_was_not_damaged_is_still_read(path: Path) -> None:
    with GctxFile(path) as file:
        samples = file.read(samples=["22", "20"])
        genes = file.read(genes=["g7", "g0"])
    edit(path)
    with GctxFile(path) as file:
        np.testing.assert_array_equal(file.read(samples=["22", "20"]), samples)
        np.testing.assert_array_equal(file.read(genes=["g7", "g0"]), genes)


def test_genes_are_read_piece_by_piece(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GctxFile(path) as file:
        whole = file.read(genes=["g1100", "g3"])
        monkeypatch.setattr("perturbgen.l1000.checksums._PIECE", 7 * 1000 * 4)
        np.testing.assert_array_equal(file.read(genes=["g1100", "g3"]), whole)


def test_ids_and_fields_have_checksums(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["0/META/COL/id"][0] = b"7x"
        file["0/META/COL/dose"][0] = 5.0
    with GctxFile(path) as file:
        with pytest.raises(InputError, match=r"/0/META/COL/id: not what was written"):
            assert len(file.samples)
        with pytest.raises(InputError, match=r"/0/META/COL/dose: not what was written"):
            file.backend.field("samples", "dose")
        assert file.genes[0] == "g0"


def test_an_edited_file_is_read_once_its_checksums_are_removed(path: Path) -> None:
    edit(path)
    with h5py.File(path, "r+") as file:
        del file["checksums"]
        rows = file[MATRIX][3:5]
    with GctxFile(path) as file:
        np.testing.assert_array_equal(file.read(samples=["3", "4"]), rows)


def test_a_matrix_that_grew_in_another_program_is_not_half_checked(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file[MATRIX].resize(SAMPLES + 1, axis=0)
    with pytest.raises(InputError, match="another shape than its checksums"):
        GctxFile(path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16", "int8"])
def test_every_stored_type_has_them(tmp_path: Path, dtype: str) -> None:
    path, var = tmp_path / "a.gctx", pd.DataFrame(index=["a", "b", "c"])
    values = np.array([[1.5, -2.0, 7.0], [3.0, 0.0, 9.25]])
    with GctxWriter(path, var, samples=2, dtype=dtype) as writer:
        writer.append(values, pd.DataFrame(index=["s", "t"]))
    with GctxFile(path) as file:
        np.testing.assert_array_equal(file.read(), values.astype(dtype).astype(np.float32))
    with h5py.File(path, "r+") as file:
        file[MATRIX][1, 2] = 4
    with GctxFile(path) as file, pytest.raises(InputError, match="1 rows of the matrix"):
        file.read()
