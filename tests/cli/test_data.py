"""``perturbgen ingest`` and ``perturbgen data``: exit codes, what is printed, what is written."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbgen.cli import _run
from perturbgen.core import h5ad as h5ad_writer

MAPS = Path(__file__).parents[2] / "experiments" / "columns"


def test_ingest_writes_what_the_reader_reads(
    kaggle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "counts.h5ad"
    assert _run(["ingest", str(kaggle.write()), "--out", str(out)]) == 0
    adata = anndata.read_h5ad(out)
    np.testing.assert_array_equal(adata.X.toarray(), kaggle.counts)
    assert adata.X.dtype == np.int32
    assert list(adata.var_names) == kaggle.genes
    assert adata.uns["vehicle"] == "Dimethyl Sulfoxide"
    assert list(out.parent.iterdir()) == [out]
    assert "wrote" in capsys.readouterr().out


def test_ingest_options_reach_the_reader(kaggle: Any, tmp_path: Path) -> None:
    folder, out = (
        str(kaggle.write(excluded=[(kaggle.meta["obs_id"][0], "TP53")])),
        str(tmp_path / "counts.h5ad"),
    )
    assert _run(["ingest", folder, "--out", out, "--organisers-plates"]) == 0
    adata = anndata.read_h5ad(out)
    assert adata.X[0, 0] == 0
    assert set(adata.obs["plate"]) == {"plate_2", "plate_3"}
    assert _run(["ingest", folder, "--out", out, "--keep-excluded"]) == 0
    adata = anndata.read_h5ad(out)
    assert adata.X[0, 0] == 3
    assert set(adata.obs["plate"]) == {"plate_0", "plate_1"}


def test_ingest_reads_an_h5ad_of_open_problems_or_of_anyone(kaggle: Any, tmp_path: Path) -> None:
    obs = kaggle.meta.set_index("obs_id").drop(columns="control")
    anndata.AnnData(X=kaggle.counts, obs=obs, var=pd.DataFrame(index=kaggle.genes)).write_h5ad(
        tmp_path / "sc.h5ad"
    )
    out = tmp_path / "counts.h5ad"
    assert _run(["ingest", str(tmp_path / "sc.h5ad"), "--out", str(out), "--curated"]) == 0
    assert "curation" in anndata.read_h5ad(out).uns
    (tmp_path / "map.toml").write_text(
        'vehicle = "Dimethyl Sulfoxide"\n[columns]\ncompound = "sm_name"\ncell_type = "cell_type"\n'
    )
    columns = ["--columns", str(tmp_path / "map.toml")]
    assert _run(["ingest", str(tmp_path / "sc.h5ad"), "--out", str(out), *columns]) == 0
    assert _run(["data", "check", str(out)]) == 0


@pytest.mark.parametrize("room", [0, 1_000, 20_000])
def test_a_full_disk_is_an_error_and_leaves_nothing_or_the_older_file(
    kaggle: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    room: int,
) -> None:
    class Disk(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    class FileOnDisk(h5ad_writer._PatientFile, Disk):
        pass

    monkeypatch.setattr(h5ad_writer, "_PatientFile", FileOnDisk)
    out = tmp_path / "out" / "counts.h5ad"
    for older in (False, True):
        if older:
            out.write_text("older")
        assert _run(["ingest", str(kaggle.write()), "--out", str(out)]) == 1
        assert "no space left on the disk" in capsys.readouterr().err
        assert [(path.name, path.read_text()) for path in out.parent.iterdir()] == [
            ("counts.h5ad", "older")
        ] * older


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "{none}", "--out", "{out}"], "no h5ad file at"),
        (["ingest", "{folder}", "--out", "{out}.csv"], "not an .h5ad file"),
        (["ingest", "{folder}", "--out", "{out}", "--curated"], "--curated does not apply"),
        (["ingest", "{folder}", "--out", "{out}", "--layer", "x"], "--layer does not apply"),
        (
            ["ingest", "{h5ad}", "--out", "{out}", "--organisers-plates"],
            "--organisers-plates does not apply",
        ),
        (["ingest", "{h5ad}", "--out", "{out}", "--curated"], "--curated does not apply"),
        (["data", "check", "{folder}", "--columns", "{none}"], "--columns does not apply"),
        (["data", "check", "{none}"], "no h5ad file at"),
        (["data", "get", "nothing"], "no source is called 'nothing'"),
        (["data", "get", "op3-kaggle"], "cannot be fetched"),
    ],
)
def test_a_mistake_exits_with_2_and_no_traceback(
    kaggle: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    ours = anndata.AnnData(
        X=kaggle.counts, obs=pd.DataFrame({"compound": ["x"] * 6}, index=list("abcdef"))
    )
    ours.write_h5ad(tmp_path / "ours.h5ad")
    places = {
        "none": tmp_path / "none.h5ad",
        "folder": kaggle.write(),
        "out": tmp_path / "counts.h5ad",
    }
    assert _run([text.format(h5ad=tmp_path / "ours.h5ad", **places) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "counts.h5ad").exists()


def test_ingest_refuses_a_cell_type_without_vehicle_and_writes_nothing(
    kaggle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.meta.loc[4, "cell_type"] = "Myeloid cells"
    assert _run(["ingest", str(kaggle.write()), "--out", str(tmp_path / "counts.h5ad")]) == 2
    assert "no 'Dimethyl Sulfoxide' cell in cell_type 'Myeloid cells'" in capsys.readouterr().err
    assert not (tmp_path / "counts.h5ad").exists()


def test_check_prints_every_violation_and_exits_with_2(
    kaggle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.meta.loc[4, "cell_type"] = "Myeloid cells"
    kaggle.meta.loc[4, "well"] = "A1"
    folder = str(kaggle.write())
    assert _run(["data", "check", folder]) == 2
    shown = capsys.readouterr().out
    assert "Myeloid cells" in shown
    assert "plate_1 A1: Clotrimazole / Dimethyl Sulfoxide" in shown
    assert "1 cells have no counts" in shown
    assert "2 errors, 3 warnings" in shown


def test_check_as_json_holds_summary_and_violations(
    kaggle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["data", "check", str(kaggle.write()), "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)
    assert shown["summary"]["cells"] == 6
    assert shown["summary"]["zeros"] == pytest.approx(1 - np.count_nonzero(kaggle.counts) / 30)
    assert [violation["severity"] for violation in shown["violations"]] == ["warning"] * 3
    assert sum(row["B cells"] for row in shown["cells"]) == 3


def test_check_survives_a_file_without_our_columns(
    kaggle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adata = anndata.AnnData(
        X=kaggle.counts * 0.5, obs=pd.DataFrame({"drug": ["x"] * 6}, index=list("abcdef"))
    )
    adata.write_h5ad(tmp_path / "other.h5ad")
    assert _run(["data", "check", str(tmp_path / "other.h5ad")]) == 2
    shown = capsys.readouterr().out
    assert "holds non-integers" in shown
    assert "obs has no column 'cell_type'" in shown


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("kang_ifnb", "kang"),
        ("macseq_plate", "macseq"),
        ("glioblastoma_panobinostat", "glioblastoma"),
    ],
)
def test_the_real_files_pass(
    real_data: Path, capsys: pytest.CaptureFixture[str], name: str, columns: str
) -> None:
    path = str(real_data / "counts" / f"{name}.h5ad")
    assert _run(["data", "check", path, "--columns", str(MAPS / f"{columns}.toml")]) == 0
    assert capsys.readouterr().out.endswith("no violations\n")


def test_list_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["op3-cells"]["size"] == "3.5 GB"


def test_get_reports_a_dead_server_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(
        '[dead]\ntitle = "t"\npage = "p"\nlicence = "l"\n'
        'base = "http://127.0.0.1:9/"\nfiles = ["x"]\n'
    )
    arguments = [
        "data",
        "get",
        "dead",
        "--registry",
        str(tmp_path / "mine.toml"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert _run(arguments) == 1
    assert "DownloadError" in capsys.readouterr().err
