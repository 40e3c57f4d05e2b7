"""GctxFile on what CMap's many writers made of GCTX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.l1000 import GctxFile, landmarks

from .conftest import SAMPLES

Write = Callable[..., Path]
GENES = landmarks()["gene_id"].tolist()[:7]


@pytest.mark.parametrize(
    "how",
    [
        {"version": np.bytes_(b"GCTX1.0")},
        {"version": np.array([b"GCTX1.0"])},
        {"version": "GCTX1.0"},
        {"version": None},
        {"chunks": (2, 3)},
        {"chunks": (2, 3), "compression": "gzip"},
        {"chunks": (5, 7), "compression": "gzip", "shuffle": True},
    ],
)
def test_every_form_of_the_version_and_of_storage_reads_alike(
    gctx: Write, values: np.ndarray, how: dict
) -> None:
    with GctxFile(gctx(**how)) as file:
        assert file.shape == (5, 7)
        assert file.backend.version == ("" if how.get("version", "") is None else "GCTX1.0")
        np.testing.assert_array_equal(file.read(), values)
        assert file.samples.tolist() == SAMPLES


@pytest.mark.parametrize("chunks", [None, (2, 3), (1, 7)])
@pytest.mark.parametrize("columns", [[6, 0, 3], [2, 2, 1, 2], [4], [0, 1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("rows", [[3, 0, 3], [4], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
def test_subsets_come_in_the_order_asked_for_with_repeats(
    gctx: Write,
    values: np.ndarray,
    rows: list[int],
    columns: list[int],
    chunks: tuple[int, int] | None,
) -> None:
    with GctxFile(gctx(chunks=chunks)) as file:
        found = file.read(samples=[SAMPLES[i] for i in rows], genes=[GENES[j] for j in columns])
        np.testing.assert_array_equal(found, values[np.ix_(rows, columns)])
        assert found.dtype == np.float32


def test_scattered_rows_and_genes_of_a_larger_matrix(gctx: Write) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(700, 900)).astype(np.float32)
    samples = [f"P_A375_24H_X1_B{i}:A01" for i in range(700)]
    path = gctx(data=data, chunks=(16, 100), samples=samples)
    rows, columns = rng.integers(700, size=50), rng.integers(900, size=40)
    with GctxFile(path) as file:
        found = file.read(samples=[samples[i] for i in rows], genes=file.genes[columns])
        np.testing.assert_array_equal(found, data[np.ix_(rows, columns)])


def test_blocks_are_whole_chunks_cover_everything_and_stay_small(gctx: Write) -> None:
    data = np.random.default_rng(0).normal(size=(103, 50)).astype(np.float32)
    samples = [f"P_A375_24H_X1_B{i}:A01" for i in range(103)]
    with GctxFile(gctx(data=data, chunks=(8, 20), samples=samples)) as file:
        parts = list(file.blocks(genes=file.genes[[30, 2]], block_bytes=20 * 50 * 4))
        assert [part.start for part, _ in parts] == [*range(0, 103, 16)]
        assert max(len(values) for _, values in parts) == 16
        np.testing.assert_array_equal(
            np.concatenate([values for _, values in parts]), data[:, [30, 2]]
        )


def test_whole_number_ids_match_numbers_and_text(gctx: Write, values: np.ndarray) -> None:
    with GctxFile(gctx(genes=np.array([5720, 466, 7, 1, 2, 3, 4]))) as file:
        assert file.genes[0] == "5720"
        np.testing.assert_array_equal(file.read(genes=[466, "5720"]), values[:, [1, 0]])


def test_latin_1_and_utf_8_text_and_missing_values(gctx: Write) -> None:
    obs = {
        "pert_idose": np.array(
            [b"10 \xb5M", "10 \u00b5M".encode(), b"-666", b"-666.000000", b"3 uM"]
        ),
        "pert_time": np.array([24, -666, 6, 6, 6]),
        "tas": np.array([0.5, -666.0, 0.1, 0.2, 0.3]),
        "nsample": np.array([1, 2, 3, 4, 5]),
    }
    ids = ["LJP_A375_24H:DMSO:-666", "-666", *SAMPLES[:3]]
    with GctxFile(gctx(obs=obs, samples=ids)) as file:
        assert file.samples.tolist() == ids, "an id is never missing"
        assert file.obs["pert_idose"].tolist() == ["10 \u00b5M", "10 \u00b5M", None, None, "3 uM"]
        assert np.isnan(file.obs["pert_time"].iloc[1])
        assert file.obs["tas"].isna().tolist() == [False, True, False, False, False]
        assert file.obs["nsample"].dtype.kind == "i"
        raw = file.metadata("samples", ["tas", "pert_idose"], convert_missing=False)
        assert raw["tas"].iloc[1] == -666
        assert raw["pert_idose"].iloc[2] == "-666"


def test_to_anndata_is_samples_by_genes_with_both_metadata(gctx: Write, values: np.ndarray) -> None:
    path = gctx(obs={"dose": np.arange(5.0)}, var={"pr_gene_symbol": [f"G{i}" for i in range(7)]})
    data = GctxFile(path).to_anndata(
        samples=[SAMPLES[4], SAMPLES[1]], genes=[GENES[2], GENES[0], GENES[6]]
    )
    assert data.shape == (2, 3)
    assert data.obs["dose"].tolist() == [4, 1]
    assert data.var["pr_gene_symbol"].tolist() == ["G2", "G0", "G6"]
    np.testing.assert_array_equal(data.X, values[np.ix_([4, 1], [2, 0, 6])])
    assert GctxFile(path).to_anndata().shape == (5, 7)


def test_a_matrix_stored_the_other_way_round_is_read_as_it_should_be(
    tmp_path: Path, values: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    from .conftest import raw_gctx

    path = raw_gctx(tmp_path / "t.gctx", values.T, genes=GENES, samples=SAMPLES, chunks=(3, 2))
    with GctxFile(path) as file:
        assert "the other way round" in caplog.text
        assert file.chunks == (2, 3)
        np.testing.assert_array_equal(file.read(genes=GENES[3:5]), values[:, 3:5])


def test_rows_that_are_samples_are_read_with_transposed(tmp_path: Path, values: np.ndarray) -> None:
    from .conftest import raw_gctx

    path = raw_gctx(tmp_path / "t.gctx", values.T, genes=SAMPLES, samples=GENES)
    with GctxFile(path, transposed=True) as file:
        assert file.genes.tolist() == GENES
        np.testing.assert_array_equal(file.read(samples=SAMPLES[1:3]), values[1:3])


def test_text_under_a_gctx_name_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "text.gctx"
    path.write_text("#1.3\n1\t2\t0\t0\nid\ta\tb\n780\t1.5\t-2\n")
    with GctxFile(path) as file:
        assert file.format == "gct 1.3"
        assert file.read().tolist() == [[1.5], [-2.0]]


@pytest.mark.parametrize("size", [3000, 600, 40])
def test_a_truncated_file_is_called_truncated(gctx: Write, size: int) -> None:
    path = gctx()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"truncated|damaged") as error:
        GctxFile(path)
    assert "broke off" in str(error.value)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"<!DOCTYPE html>", "neither GCTX nor GCT"),
        (b"\x1f\x8b\x08\x00junkjunk", "gzipped"),
        (b"PK\x03\x04", "neither GCTX nor GCT"),
        (b"", "is empty"),
    ],
)
def test_other_files_are_refused_with_what_they_are(
    tmp_path: Path, start: bytes, says: str
) -> None:
    path = tmp_path / "a.gctx"
    path.write_bytes(start)
    with pytest.raises(InputError, match=says):
        GctxFile(path)


@pytest.mark.parametrize("lacking", ["0/DATA/0/matrix", "0/META/ROW/id", "0/META/COL/id"])
def test_a_file_that_lacks_a_part_is_refused_by_its_name(gctx: Write, lacking: str) -> None:
    with pytest.raises(InputError, match=f"lacks /{lacking}"):
        GctxFile(gctx(leave_out=(lacking,)))


def test_ids_that_do_not_fit_the_matrix_are_counted(gctx: Write) -> None:
    with pytest.raises(InputError, match="5 x 7, but there are 4 sample ids and 7 gene ids"):
        GctxFile(gctx(samples=SAMPLES[:4]))


def test_unknown_ids_are_counted_and_the_first_five_named(gctx: Write) -> None:
    with GctxFile(gctx()) as file:
        with pytest.raises(SchemaError, match="lacks 7 of the wanted samples") as error:
            file.read(samples=[f"CPC006_A375_6H:BRD-K{i}" for i in range(7)])
        assert "and 2 more" in str(error.value)
        with pytest.raises(SchemaError, match="did you mean"):
            file.read(samples=["LJP005_A375_24H_X1_B19:A3"])


def test_repeated_ids_are_refused_only_when_asked_for(gctx: Write, values: np.ndarray) -> None:
    with GctxFile(gctx(samples=["a", "b", "a", "c", "d"])) as file:
        np.testing.assert_array_equal(file.read(samples=["c", "b"]), values[[3, 1]])
        with pytest.raises(SchemaError, match="occur more than once: 'a'"):
            file.read(samples=["b", "a"])


def test_an_unknown_field_has_a_near_one(gctx: Write) -> None:
    with (
        GctxFile(gctx(obs={"pert_iname": ["x"] * 5})) as file,
        pytest.raises(SchemaError, match="pert_iname"),
    ):
        file.metadata("samples", ["pert_name"])


def test_a_field_of_another_length_is_not_a_field(gctx: Write) -> None:
    path = gctx(obs={"tas": np.arange(5.0)})
    with h5py.File(path, "a") as file:
        file["0/META/COL/odd"] = np.arange(3)
    with GctxFile(path) as file:
        assert file.fields("samples") == ["tas"]
