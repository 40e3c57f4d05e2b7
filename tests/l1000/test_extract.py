"""Landmark extraction: what is written, what is refused, and going on after an interruption."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError, StorageError
from perturbgen.core.files import only_writer
from perturbgen.l1000 import ExtractionOptions, extract, growing, landmarks
from perturbgen.l1000.growing import Growing, _Moments
from perturbgen.profiles import Profiles, read_profiles

from .conftest import SAMPLES, raw_gctx

Write = Callable[..., Path]
GENES = landmarks()["gene_id"].tolist()[:7]
WANTED = "\n".join(GENES[:3])


@pytest.fixture
def wanted(tmp_path: Path) -> Path:
    """A list of three genes."""
    path = tmp_path / "genes.grp"
    path.write_text(WANTED + "\n")
    return path


def manifest(extracted: Profiles) -> Any:
    """What an extraction says of itself."""
    return json.loads((Path(extracted.source) / "manifest.json").read_text())


def genes_of(extracted: Profiles) -> pd.DataFrame:
    """What is known of the genes of an extraction."""
    assert extracted.feature_table is not None
    return extracted.feature_table


def test_genes_are_found_by_id_wherever_they_are(
    gctx: Write, inst_info: Write, wanted: Path, values: np.ndarray, tmp_path: Path
) -> None:
    order = [5, 2, 6, 0, 3, 1, 4]
    path = gctx(data=values[:, order], genes=[GENES[i] for i in order], chunks=(2, 2))
    found = extract([path], tmp_path / "out", metadata=[inst_info()], genes=wanted)
    np.testing.assert_array_equal(found.values, values[:, :3])
    assert found.features.tolist() == GENES[:3]
    assert found.meta.index.tolist() == SAMPLES
    assert found.meta["control"].tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(genes_of(found)["mean"], values[:, :3].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(genes_of(found)["sd"], values[:, :3].std(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(found.meta["norm"], np.linalg.norm(values[:, :3], axis=1), rtol=1e-6)
    assert manifest(found)["pert_types"] == {
        "trt_cp": 2,
        "ctl_vehicle": 1,
        "trt_poscon": 1,
        "trt_sh": 1,
    }
    assert not (tmp_path / "out.part").exists()
    data = found.to_anndata(SAMPLES[3:1:-1])
    np.testing.assert_array_equal(data.X, values[[3, 2], :3])
    with pytest.raises(SchemaError, match="lacks 1 of the wanted rows: 'x'"):
        found.to_anndata(["x"])


def test_probe_ids_and_symbols_are_understood(
    gctx: Write, wanted: Path, inst_info: Write, tmp_path: Path
) -> None:
    probes = [f"20000{i}_at" for i in range(7)]
    by_column = gctx("a.gctx", genes=probes, var={"pr_gene_id": np.array(GENES, dtype=np.float32)})
    by_symbol = gctx("b.gctx", genes=landmarks()["gene_symbol"].tolist()[:7])
    for name, path in (("A", by_column), ("B", by_symbol)):
        found = extract([path], tmp_path / name, metadata=[inst_info()], genes=wanted)
        assert found.features.tolist() == GENES[:3]


def test_several_files_are_joined_by_gene_id(
    gctx: Write, wanted: Path, values: np.ndarray, tmp_path: Path
) -> None:
    others = [f"LJP006_MCF7_24H_X1_B19:{well}" for well in ("A03", "A04", "B07", "P24", "C01")]
    first = gctx("a.gctx")
    second = gctx("b.gctx", data=values[:, ::-1], genes=GENES[::-1], samples=others, chunks=(2, 3))
    found = extract([first, second], tmp_path / "out", genes=wanted)
    np.testing.assert_array_equal(found.values, np.concatenate([values[:, :3]] * 2))
    assert found.meta["source"].tolist() == ["a.gctx"] * 5 + ["b.gctx"] * 5
    assert found.meta["cell_line"].tolist() == ["A375"] * 5 + ["MCF7"] * 5


def test_other_gene_sets_are_refused_by_name_or_cut_to_what_is_common(
    gctx: Write, wanted: Path, values: np.ndarray, tmp_path: Path
) -> None:
    others = [f"LJP006_MCF7_24H_X1_B19:{well}" for well in ("A03", "A04", "B07", "P24", "C01")]
    paths = [gctx("a.gctx"), gctx("b.gctx", data=values[:, 1:], genes=GENES[1:], samples=others)]
    with pytest.raises(SchemaError, match=rf"b.gctx lacks 1 \('{GENES[0]}'\)"):
        extract(paths, tmp_path / "out", genes=wanted)
    found = extract(paths, tmp_path / "out", genes=wanted, common_genes=True)
    assert found.features.tolist() == GENES[1:3]
    np.testing.assert_array_equal(found.values, np.concatenate([values[:, 1:3]] * 2))


def test_files_of_other_genes_or_turned_around_are_told_apart(
    gctx: Write, wanted: Path, tmp_path: Path
) -> None:
    with pytest.raises(SchemaError, match="holds none of the 3 wanted genes; its ids are 'x0'"):
        extract([gctx(genes=[f"x{i}" for i in range(7)])], tmp_path / "out", genes=wanted)
    turned = raw_gctx(
        tmp_path / "t.gctx", np.zeros((7, 5), np.float32), genes=SAMPLES, samples=GENES
    )
    with pytest.raises(SchemaError, match="has its genes where the samples belong") as error:
        extract([turned], tmp_path / "out", genes=wanted)
    assert "--transposed" in str(error.value)
    assert extract([turned], tmp_path / "out", genes=wanted, transposed=True).values.shape == (5, 3)


def test_ids_without_metadata_are_counted_and_the_first_five_named(
    gctx: Write, inst_info: Write, wanted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, table = gctx(), inst_info(rows=slice(0, 3))
    with pytest.raises(
        SchemaError,
        match=r"2 of 5 ids .* 'LJP005_A375_24H_X1_B19:P24', 'LJP005_A375_24H_X1_B19:C01'",
    ):
        extract([path], tmp_path / "out", metadata=[table], genes=wanted)
    assert not (tmp_path / "out.part").exists()
    found = extract([path], tmp_path / "out", metadata=[table], genes=wanted, keep_unknown=True)
    assert "they are kept" in caplog.text
    assert found.meta["perturbagen"].isna().tolist() == [False] * 3 + [True] * 2
    assert found.meta["control"].tolist() == [True] + [False] * 4
    assert manifest(found)["pert_types"]["unknown"] == 2


def test_metadata_may_come_in_several_tables(
    gctx: Write, inst_info: Write, wanted: Path, tmp_path: Path
) -> None:
    tables = [inst_info("a.txt", rows=[4, 0, 2]), inst_info("b.txt", rows=[3, 1])]
    found = extract([gctx()], tmp_path / "out", metadata=tables, genes=wanted)
    whole = extract([gctx()], tmp_path / "whole", metadata=[inst_info()], genes=wanted)
    assert found.meta["dose"].tolist()[1:4] == [10, 0.5, 3.33]
    for column in whole.meta:
        pd.testing.assert_series_equal(
            found.meta[column].astype(str), whole.meta[column].astype(str), check_names=False
        )


def test_signatures_and_samples_are_not_mixed(
    gctx: Write, inst_info: Write, wanted: Path, tmp_path: Path
) -> None:
    signatures = [f"CPC006_A375_6H:BRD-K5634397{i}:10" for i in range(5)]
    level5 = gctx("5.gctx", samples=signatures)
    with pytest.raises(
        SchemaError, match=r"holds signatures .level 5., but the metadata describe samples"
    ) as error:
        extract([level5], tmp_path / "out", metadata=[inst_info()], genes=wanted)
    assert "sig_info" in str(error.value)
    with pytest.raises(SchemaError, match="of different levels"):
        extract([gctx("4.gctx"), level5], tmp_path / "out", genes=wanted)
    with pytest.raises(SchemaError, match="says nothing of its samples"):
        extract([level5], tmp_path / "out", genes=wanted)


def test_the_same_sample_twice_is_refused(gctx: Write, wanted: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"5 samples are in .*a.gctx and in .*b.gctx"):
        extract([gctx("a.gctx"), gctx("b.gctx")], tmp_path / "out", genes=wanted)
    with pytest.raises(SchemaError, match="1 sample ids occur more than once"):
        extract(
            [gctx("c.gctx", samples=[*SAMPLES[:4], SAMPLES[0]])], tmp_path / "out", genes=wanted
        )


def test_missing_values_are_kept_and_counted_or_filled(
    gctx: Write, wanted: Path, values: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values[1, 2] = np.nan
    values[3] = 0
    path = gctx(data=values)
    found = extract([path], tmp_path / "out", genes=wanted)
    assert genes_of(found)["missing"].tolist() == [0, 0, 1]
    assert "1 genes have missing values: 'RPS5'" in caplog.text
    assert "1 profiles are all zeros" in caplog.text
    assert found.meta["norm"].eq(0).tolist() == [False, False, False, True, False]
    np.testing.assert_allclose(
        genes_of(found)["mean"], np.nanmean(values[:, :3], axis=0), rtol=1e-6
    )
    np.testing.assert_allclose(
        genes_of(found)["sd"], np.nanstd(values[:, :3], axis=0, ddof=1), rtol=1e-6
    )
    filled = extract([path], tmp_path / "filled", genes=wanted, options=ExtractionOptions(fill=0.0))
    np.testing.assert_array_equal(filled.values, np.nan_to_num(values[:, :3]))


def test_half_precision_and_limits(
    gctx: Write, wanted: Path, values: np.ndarray, tmp_path: Path
) -> None:
    values[0, 0], values[1, 1] = 1e6, -76
    found = extract(
        [gctx(data=values)], tmp_path / "out", genes=wanted, options=ExtractionOptions("float16")
    )
    assert found.values.dtype == np.float16
    assert np.isfinite(found.values).all()
    clipped = extract(
        [gctx(data=values)],
        tmp_path / "c",
        genes=wanted,
        options=ExtractionOptions("float16", clip=10),
    )
    np.testing.assert_array_equal(clipped.values, np.clip(values[:, :3], -10, 10))


def big(tmp_path: Path) -> Path:
    """A matrix of many blocks, with its metadata in its ids only."""
    data = np.random.default_rng(0).normal(3, 2, (403, 7)).astype(np.float32)
    wells = [f"P{i}_A375_24H_X1_B1:A01" for i in range(403)]
    return raw_gctx(tmp_path / "big.gctx", data, samples=wells, chunks=(10, 3))


def test_an_interrupted_extraction_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, wanted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, blocks = big(tmp_path), 40 * 7 * 4
    extract([path], tmp_path / "whole", genes=wanted, block_bytes=blocks)
    calls, append = 0, Growing.append

    def full(self: Growing, values: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, values)

    monkeypatch.setattr(Growing, "append", full)
    with pytest.raises(StorageError, match="no space left on the disk"):
        extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    assert not (tmp_path / "out").exists()
    state = json.loads((tmp_path / "out.part" / growing._STATE).read_text())
    assert state["rows"] == 120
    caplog.set_level("INFO")
    extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    assert "going on after 120 of 403 samples" in caplog.text
    assert calls == 4 + (403 - 120 + 39) // 40
    for name in ("profiles.npy", "genes.parquet", "samples.parquet", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (
            name
        )


@pytest.mark.parametrize("failing", ["matrix", "norms"])
def test_rows_whose_writing_failed_are_not_counted_before_they_are_written_again(
    tmp_path: Path, wanted: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path, blocks = big(tmp_path), 40 * 7 * 4
    whole = extract([path], tmp_path / "whole", genes=wanted, block_bytes=blocks)
    append = Growing.append

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        write = staticmethod(full)
        flush = close = staticmethod(lambda: None)

    def to_a_full_disk(self: Growing, values: np.ndarray) -> None:
        if self.rows < 160:
            return append(self, values)
        kept = getattr(self, failing)
        setattr(self, failing, Full())
        try:
            append(self, values)
        finally:
            setattr(self, failing, kept)

    monkeypatch.setattr(Growing, "append", to_a_full_disk)
    with pytest.raises(StorageError, match="no space left on the disk"):
        extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    assert json.loads((tmp_path / "out.part" / growing._STATE).read_text())["rows"] == 160
    monkeypatch.setattr(Growing, "append", append)
    resumed = extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    np.testing.assert_array_equal(resumed.values, whole.values)
    pd.testing.assert_frame_equal(genes_of(resumed), genes_of(whole))
    pd.testing.assert_series_equal(resumed.meta["norm"], whole.meta["norm"])


def test_a_disk_so_full_that_no_note_can_be_made_goes_on_from_the_last_one(
    tmp_path: Path, wanted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, blocks = big(tmp_path), 40 * 7 * 4
    monkeypatch.setattr(growing, "_SECONDS", 0.0)
    note, calls = Growing.note, 0

    def full(self: Growing) -> None:
        nonlocal calls
        calls += 1
        if calls >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        note(self)

    monkeypatch.setattr(Growing, "note", full)
    with pytest.raises(StorageError):
        extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    assert json.loads((tmp_path / "out.part" / growing._STATE).read_text())["rows"] == 80
    monkeypatch.setattr(Growing, "note", note)
    resumed = extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    whole = extract([path], tmp_path / "whole", genes=wanted, block_bytes=blocks)
    np.testing.assert_array_equal(resumed.values, whole.values)
    pd.testing.assert_frame_equal(genes_of(resumed), genes_of(whole))


def test_a_disk_that_is_too_small_is_said_before_anything_is_read(
    tmp_path: Path, wanted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    monkeypatch.setattr(Growing, "append", lambda *_: pytest.fail("a block was read"))
    with pytest.raises(StorageError, match="no space left on the disk"):
        extract([big(tmp_path)], tmp_path / "out", genes=wanted)


def test_unfinished_work_on_other_options_is_not_gone_on_with(
    tmp_path: Path, wanted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = big(tmp_path)
    monkeypatch.setattr("perturbgen.l1000.extraction._finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract([path], tmp_path / "out", genes=wanted)
    monkeypatch.undo()
    found = extract([path], tmp_path / "out", genes=wanted, options=ExtractionOptions(clip=1))
    assert "starting anew" in caplog.text
    assert np.abs(found.values).max() == 1


def renormalise(path: Path) -> None:
    """Other values under the same name, size and ids."""
    with h5py.File(path, "r+") as file:
        file["0/DATA/0/matrix"][:] *= 2


def test_values_changed_in_place_are_not_taken_for_the_old_ones(
    gctx: Write, inst_info: Write, wanted: Path, values: np.ndarray, tmp_path: Path
) -> None:
    path, table, out = gctx(), inst_info(), tmp_path / "out"
    extract([path], out, metadata=[table], genes=wanted)
    renormalise(path)
    with pytest.raises(InputError, match=r"holds another extraction[\s\S]*written anew since"):
        extract([path], out, metadata=[table], genes=wanted)
    found = extract([path], out, metadata=[table], genes=wanted, force=True)
    np.testing.assert_array_equal(found.values, 2 * values[:, :3])
    table.write_text(table.read_text().replace("MECP2", "MECP3"))
    with pytest.raises(InputError, match="holds another extraction"):
        extract([path], out, metadata=[table], genes=wanted)


def test_an_extraction_of_before_files_were_dated_is_another_one(
    gctx: Write, wanted: Path, tmp_path: Path
) -> None:
    old = manifest(extract([gctx()], tmp_path / "out", genes=wanted))
    del old["plan"]["sources"][0]["modified_ns"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"holds another extraction \(5 samples\)"):
        extract([tmp_path / "a.gctx"], tmp_path / "out", genes=wanted)


def test_unfinished_work_on_values_changed_since_is_not_gone_on_with(
    tmp_path: Path, wanted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, blocks, append = big(tmp_path), 40 * 7 * 4, Growing.append

    def interrupted(self: Growing, values: np.ndarray) -> None:
        if self.rows == 120:
            raise KeyboardInterrupt
        append(self, values)

    monkeypatch.setattr(Growing, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    monkeypatch.undo()
    renormalise(path)
    found = extract([path], tmp_path / "out", genes=wanted, block_bytes=blocks)
    assert "starting anew" in caplog.text
    with h5py.File(path) as file:
        np.testing.assert_array_equal(found.values, file["0/DATA/0/matrix"][:, :3])


def test_a_finished_extraction_is_not_done_again_nor_overwritten(
    gctx: Write, wanted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = gctx(), tmp_path / "out"
    extract([path], out, genes=wanted)
    before = (out / "profiles.npy").stat().st_mtime_ns
    extract([path], out, genes=wanted)
    assert (out / "profiles.npy").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds another extraction"):
        extract([path], out, genes=wanted, options=ExtractionOptions(clip=1))
    assert (
        np.abs(
            extract([path], out, genes=wanted, options=ExtractionOptions(clip=1), force=True).values
        ).max()
        == 1
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="is no extraction"):
        extract([path], tmp_path / "mine", genes=wanted, force=True)
    with pytest.raises(InputError, match="no file to extract from"):
        extract([], tmp_path / "none")


def test_a_folder_put_together_by_hand_is_refused(
    gctx: Write, wanted: Path, tmp_path: Path
) -> None:
    extract([gctx()], tmp_path / "out", genes=wanted)
    np.save(tmp_path / "out" / "profiles.npy", np.zeros((2, 2)))
    with pytest.raises(InputError, match="2 x 2, the manifest says 5 x 3"):
        read_profiles(tmp_path / "out")


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_in_blocks_are_those_of_the_whole(offset: float) -> None:
    values = (np.random.default_rng(0).normal(size=(1000, 5)) + offset).astype(np.float32)
    values[7, 2] = np.nan
    moments = _Moments.empty(5)
    for start in range(0, 1000, 77):
        moments.update(values[start : start + 77])
    exact = values.astype(float)
    np.testing.assert_allclose(moments.mean, np.nanmean(exact, axis=0), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(moments.sd, np.nanstd(exact, axis=0, ddof=1), rtol=1e-5)
    assert moments.missing.tolist() == [0, 0, 1, 0, 0]
    again = _Moments.from_json(json.loads(json.dumps(moments.to_json())))
    np.testing.assert_array_equal(again.squares, moments.squares)


def test_a_users_own_folder_of_that_name_is_left_alone(tmp_path: Path, wanted: Path) -> None:
    path, mine = big(tmp_path), tmp_path / "out.part"
    mine.mkdir()
    (mine / "profiles.npy").write_text("mine")
    with pytest.raises(InputError, match=r"out\.part exists and is no unfinished extraction"):
        extract([path], tmp_path / "out", genes=wanted)
    assert [(p.name, p.read_text()) for p in mine.iterdir()] == [("profiles.npy", "mine")]


def test_two_extractions_into_one_folder_do_not_meet(tmp_path: Path, wanted: Path) -> None:
    path = big(tmp_path)
    with (
        only_writer(tmp_path / "out.part"),
        pytest.raises(StorageError, match=r"is being written by process"),
    ):
        extract([path], tmp_path / "out", genes=wanted)
    extract([path], tmp_path / "out", genes=wanted)
    assert not (tmp_path / "out.part").exists()
    assert not (tmp_path / "out" / ".lock").exists()
