"""``perturbgen de`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import pytest

from perturbgen.cli import _run
from perturbgen.de import DETable
from tests.de.cases import case


@pytest.fixture(scope="module")
def pseudobulk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = case("balanced")
    path = tmp_path_factory.mktemp("cli") / "pseudobulk.h5ad"
    anndata.AnnData(experiment.counts, experiment.obs, uns={"vehicle": "vehicle"}).write_h5ad(path)
    return path


DESIGN = ["--design", "~0 + {group} + donor + plate"]


def test_a_table_and_a_page(
    pseudobulk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "de.parquet", tmp_path / "de.html"
    assert (
        _run(["-q", "de", str(pseudobulk), *DESIGN, "--out", str(out), "--plots", str(page)]) == 0
    )
    shown = capsys.readouterr().out
    assert "5 contrasts" in shown
    assert f"wrote {out}" in shown
    table = DETable.read(out)
    assert table.info["control"] == "vehicle"  # from the file's own uns
    assert table.t.shape == (5, 300)
    html = page.read_text()
    assert "Mean and variance" in html
    assert html.count("<figure>") == 1  # the trend; conditions are drawn when they are chosen
    assert html.count('class="plot" role="img"') == 2


def test_json(pseudobulk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _run(
            [
                "-q",
                "de",
                str(pseudobulk),
                *DESIGN,
                "--json",
                "--contrasts",
                "limma",
                "--robust",
                "--trend",
            ]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert {row["condition"] for row in rows} == {"10", "Abc", "B-12", "a b", "x(1)"}
    assert all(row["samples"] == row["controls"] == 6 for row in rows)


@pytest.mark.r
def test_verify(pseudobulk: Path, rscript: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["-q", "de", str(pseudobulk), *DESIGN, "--verify", "60", "--json"]) == 0
    rows = {row["statistic"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"logfc", "ave_expr", "t", "se", "df", "log10_p", "adj_p"}
    assert all(row["largest difference"] < 1e-8 for row in rows.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*DESIGN, "--out", "de.xlsx"], "is not a .parquet or .h5ad file"),
        ([*DESIGN, "--span", "half"], "--span 'half' is no number"),
        ([*DESIGN, "--control", "DMSO"], "no sample has compound = 'DMSO'"),
        ([*DESIGN, "--verify", "3"], "too few to compare on"),
        (["--flavour", "op4"], "did you mean 'op3'"),
    ],
)
def test_mistakes_end_in_exit_code_2(
    pseudobulk: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["-q", "de", str(pseudobulk), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_a_design_there_is_one_and_it_is_said(
    pseudobulk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "de.parquet"
    assert _run(["de", str(pseudobulk), "--out", str(out)]) == 0
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("design ")]
    assert len(told) == 1
    assert DETable.read(out).info["design"] in told[0]


def test_files_that_are_no_pseudobulk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.h5ad").write_text("not a matrix")
    assert _run(["-q", "de", str(tmp_path / "notes.h5ad"), *DESIGN]) == 2
    assert _run(["-q", "de", str(tmp_path / "absent.h5ad"), *DESIGN]) == 2
    shown = capsys.readouterr().err
    assert "is not a readable h5ad file" in shown
    assert "no h5ad file" in shown
