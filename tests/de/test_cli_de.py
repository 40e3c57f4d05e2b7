"""``perturbgen de`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest

from perturbgen.cli import _run
from perturbgen.core.errors import DesignError
from perturbgen.de import DETable, contrast_table, fit
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
    # the trend and the samples; conditions are drawn when they are chosen
    assert html.count("<figure>") == 2
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
        ([*DESIGN, "--contrast", "ab=Abd - vehicle"], "did you mean 'Abc'"),
        ([*DESIGN, "--contrast", "ab=Abc - system('x')"], "means nothing in it"),
        ([*DESIGN, "--contrast", "ab="], "has no formula"),
        ([*DESIGN, "--contrast", "=Abc"], "has no name"),
        ([*DESIGN, "--contrast", "Abc - vehicle", "--flavour", "op3"], "--flavour has no"),
        ([*DESIGN, "--contrast", "Abc - vehicle", "--verify", "60"], "R (--backend r, --verify)"),
        ([*DESIGN, "--treat", "-1"], "lfc=-1.0"),
        (["--design", "~ compound", "--treat", "1"], "does not say what is to be tested"),
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


def test_contrasts_by_formula(
    pseudobulk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "de.parquet", tmp_path / "de.html"
    asked = [
        "--plots",
        str(page),
        "--contrast",
        "gap=Abc - `a b`",
        "--contrast",
        "mean=(Abc + `a b`)/2 - vehicle",
    ]
    command = ["-q", "de", str(pseudobulk), *DESIGN, *asked, "--treat", "0.2", "--out", str(out)]
    assert _run([*command, "--json"]) == 0
    rows = {row["condition"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: (row["samples"], row["controls"]) for name, row in rows.items()} == {
        "gap": (6, 6),
        "mean": (12, 6),
    }
    html = page.read_text()
    assert '"gap"' in html
    assert "gap = Abc - `a b`, mean = (Abc + `a b`)/2 - vehicle; exact contrasts" in html
    assert "beyond a log2 fold change of 0.2" in html
    experiment, table = case("balanced"), DETable.read(out)
    made = fit(experiment.counts, experiment.obs, design=experiment.formula)
    expected = made.contrasts("Abc - `a b`").treat(0.2)
    np.testing.assert_allclose(table.t.loc["gap"], expected.t.iloc[:, 0])
    assert table.info["formulas"]["gap"] == "Abc - `a b`"
    assert table.info["lfc"] == 0.2


def test_a_toml_says_it_all_and_the_command_line_goes_over_it(
    pseudobulk: Path, tmp_path: Path
) -> None:
    config, out = tmp_path / "de.toml", tmp_path / "de.h5ad"
    config.write_text(
        'design = "~ {group} + plate"\nby = "donor"\nrobust = true\n[contrasts]\n'
        'one = "Abc - vehicle"\nplates = "platep1"\n'
    )
    command = ["-q", "de", str(pseudobulk), "--analysis", str(config), "--out", str(out)]
    assert _run(command) == 0
    table = DETable.read(out)
    assert table.conditions.index.names == ["donor", "contrast"]
    assert list(table.conditions.index) == [
        (donor, name) for donor in ("d0", "d1") for name in ("one", "plates")
    ]
    assert table.info["robust"]
    again = [*command, "--design", "~0 + {group}", "--contrast", "plates=`B-12` - `10`"]
    assert _run(again) == 0
    assert DETable.read(out).info["design"] == "~0 + {group}"


def test_a_toml_may_ask_for_blocks_and_sample_quality(pseudobulk: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "de.toml", tmp_path / "de.parquet"
    config.write_text('design = "~0 + {group}"\nblock = "donor"\nquality = true\n')
    assert _run(["-q", "de", str(pseudobulk), "--analysis", str(config), "--out", str(out)]) == 0
    experiment, table = case("balanced"), DETable.read(out)
    options = {"design": "~0 + compound", "block": "donor", "quality": True}
    made = fit(experiment.counts, experiment.obs, **options)
    expected = made.contrasts("`B-12` - vehicle").ebayes()
    np.testing.assert_allclose(table.t.loc["B-12"], expected.t.iloc[:, 0], rtol=1e-6)
    assert list(table.conditions.index) == ["10", "Abc", "B-12", "a b", "x(1)"]


def test_treat_alone_tests_every_level_beyond_it(pseudobulk: Path, tmp_path: Path) -> None:
    out = tmp_path / "de.parquet"
    assert _run(["-q", "de", str(pseudobulk), *DESIGN, "--treat", "1", "--out", str(out)]) == 0
    table = DETable.read(out)
    assert list(table.conditions.index) == ["10", "Abc", "B-12", "a b", "x(1)"]
    assert (table.t.where(table.logfc.abs() <= 1, 0) == 0).all(axis=None)
    assert (table.t != 0).any(axis=None)


def test_a_contrast_that_one_cell_type_cannot_answer_is_left_out_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    experiment = case("balanced")
    obs = experiment.obs.assign(n_cells=[3] * 6 + [50] * 30)
    kept = ~((obs["donor"] == "d1") & (obs["compound"] == "Abc"))
    asked = {"one": "Abc - vehicle", "two": "`B-12` - vehicle"}
    table = contrast_table(
        experiment.counts[kept], obs[kept], design="~0 + compound", wanted=asked, by="donor"
    )
    assert list(table.conditions.index) == [("d0", "one"), ("d0", "two"), ("d1", "two")]
    assert "one in donor 'd1'" in caplog.text
    assert table.conditions["n_cells"].tolist() == [9, 9, 9]  # of three vehicle samples
    with pytest.raises(DesignError, match="no coefficient or level"):
        contrast_table(
            experiment.counts, obs, design="~0 + compound", wanted={"no": "q - Abc"}, by="donor"
        )


def test_files_that_are_no_pseudobulk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.h5ad").write_text("not a matrix")
    assert _run(["-q", "de", str(tmp_path / "notes.h5ad"), *DESIGN]) == 2
    assert _run(["-q", "de", str(tmp_path / "absent.h5ad"), *DESIGN]) == 2
    shown = capsys.readouterr().err
    assert "is not a readable h5ad file" in shown
    assert "no h5ad file" in shown
