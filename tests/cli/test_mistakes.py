"""What a hostile user does to the command line: exit codes, no traceback, nothing lost."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import typer

from perturbgen import cli
from perturbgen.cli import _run

Files = dict[str, Path]


def cells(**changes: Any) -> anndata.AnnData:
    """Sixteen cells of two compounds in eight wells, with every column that the verbs look for."""
    obs = pd.DataFrame(
        {
            "cell_type": ["A", "B"] * 8,
            "compound": ["DMSO", "DMSO", "d1", "d1"] * 4,
            "plate": "p1",
            "well": [f"{row}{column}" for row in "ABCD" for column in (1, 1, 2, 2)],
        },
        index=[f"c{i}" for i in range(16)],
    ).assign(**changes)
    counts = np.random.default_rng(0).poisson(2, (16, 6)).astype(np.int32)
    return anndata.AnnData(counts, obs, pd.DataFrame(index=list("ghijkl")), uns={"vehicle": "DMSO"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are right, and files that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("made")
    kinds = {"ok": cells(), "few": cells()[:3].copy(), "odd wells": cells()[:3].copy()}
    kinds |= {"no cells": cells()[:0].copy(), "text": cells()}
    kinds |= {"zeros": cells(), "nan": cells(), "raw": cells()}
    kinds["odd wells"].obs["well"] = ["17", "17", "18"]
    kinds["zeros"].X[:] = 0
    kinds["nan"].X = kinds["nan"].X.astype(float)
    kinds["nan"].X[0, 0] = np.nan
    kinds["text"].X = kinds["text"].X.astype(str).astype(object)
    kinds["raw"].raw = kinds["raw"].copy()
    kinds["raw"].X = kinds["raw"].X * 0.5
    for name, adata in kinds.items():
        adata.write_h5ad(folder / f"{name}.h5ad")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("years of work")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """The files in a working directory of the test's own."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return {path.stem: path for path in tmp_path.glob("*.h5ad")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("split ok.h5ad --kind random --fraction 0.5 --out thesis", "not a .csv file"),
        ("simulate thesis --force", "it may be something else"),
        ("simulate ok.h5ad --force", "it may be something else"),
        ("simulate . --force", "it may be something else"),
        ("ingest ok.h5ad --out ok.h5ad/x.h5ad", "is a file"),
        ("de ok.h5ad --design ~0+{group} --plots page.pdf", "--plots page.pdf is not a .html file"),
        ("de ok.h5ad --design ~0+{group} --device tpu", "'cpu' or 'cuda'"),
        ("de ok.h5ad --design ~0+{group} --keep-plates", "belongs to a flavour"),
        ("de ok.h5ad --design ~0+{group} --layer nope", "the file holds no other matrix"),
        ("pseudobulk zeros.h5ad --out x.h5ad", "no cell has a single count"),
        ("ingest text.h5ad --out x.h5ad", "a matrix of text"),
        ("data check text.h5ad", "a matrix of text"),
        ("split ok.h5ad --kind random --fraction 0.001 --out x.csv", "not one validation cell"),
        ("split no\\ cells.h5ad --kind random --out x.csv", "not one validation cell"),
        ("split ok.h5ad --kind random --seed -1 --out x.csv", "greater than or equal to 0"),
        ("split ok.h5ad --kind random --folds 3 --out x.csv", "does not use --folds"),
        (
            "split ok.h5ad --kind kfold --value A --public 3 --out x.csv",
            "does not use --value --public",
        ),
        ("simulate x --set cells.per_well=inf", "finite number"),
    ],
)
def test_a_mistake_is_explained_and_costs_nothing(
    files: Files, arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert _run(["-q", *shlex.split(arguments)]) == 2
    assert words in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.parametrize("name", ["nan", "no cells"])
def test_check_reports_on_data_that_have_no_quantiles(
    files: Files, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert _run(["data", "check", str(files[name]), "--json"]) == 2
    [shown] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert shown["depth"][0]["median"] is None
    assert _run(["data", "check", str(files[name])]) == 2


@pytest.mark.parametrize("name", ["few", "odd wells"])
def test_a_dense_matrix_and_odd_wells_can_be_shown(files: Files, name: str) -> None:
    assert _run(["-q", "data", "show", str(files[name]), "--out", "page.html"]) == 0
    assert ("No picture" in Path("page.html").read_text()) == (name == "odd wells")


def test_a_repeated_column_sums_once(files: Files) -> None:
    for by, out in (("compound,cell_type,compound", "a.h5ad"), ("compound,cell_type", "b.h5ad")):
        assert _run(["-q", "pseudobulk", str(files["ok"]), "--by", by, "--out", out]) == 0
    np.testing.assert_array_equal(
        *(anndata.read_h5ad(name).X.toarray() for name in ("a.h5ad", "b.h5ad"))
    )


def test_de_takes_counts_from_raw(files: Files) -> None:
    options = ["--design", "~0 + {group}", "--out", "de.parquet"]
    assert _run(["-q", "de", str(files["raw"]), *options]) == 2
    assert _run(["-q", "de", str(files["raw"]), "--layer", "raw", *options]) == 0


def test_ingest_prints_json(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["ingest", str(files["ok"]), "--out", "x.h5ad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["cells"] == 16


def test_simulate_replaces_an_older_simulation(tmp_path: Path) -> None:
    from perturbgen.core.errors import InputError
    from perturbgen.simulation.op3.experiment import _require_replaceable

    (tmp_path / "simulation.toml").touch()
    _require_replaceable(tmp_path, force=True)
    with pytest.raises(InputError, match="already exists"):
        _require_replaceable(tmp_path, force=False)


def test_an_empty_list_of_excluded_pairs_excludes_nothing(kaggle: Any, tmp_path: Path) -> None:
    assert (
        _run(["-q", "ingest", str(kaggle.write(excluded=[])), "--out", str(tmp_path / "x.h5ad")])
        == 0
    )
    assert anndata.read_h5ad(tmp_path / "x.h5ad").X.sum() == kaggle.counts.sum()


def test_a_dose_is_a_number(
    kaggle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.meta["dose_uM"] = kaggle.meta["dose_uM"].astype(object)
    kaggle.meta.loc[0, "dose_uM"] = "much"
    assert _run(["-q", "ingest", str(kaggle.write()), "--out", str(tmp_path / "x.h5ad")]) == 2
    assert "'dose_uM' holds 'much'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("binary", b"\xff\xfe\n", "not a readable CSV"),
        ("text", b",g1\n%s", "or text"),
        ("twice", b",g1,g1\n%s", "duplicated gene"),
        ("flat", b",g1,g2\n%s", "no depth"),
    ],
)
def test_a_bad_baseline_is_explained(
    tmp_path: Path, name: str, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from perturbgen.simulation import CELL_TYPES

    value = {"text": "a", "twice": "1,1", "flat": "0,0"}.get(name, "")
    rows = "".join(f"{cell_type},{value}\n" for cell_type in CELL_TYPES).encode()
    (tmp_path / "means.csv").write_bytes(content.replace(b"%s", rows))
    assert (
        _run(["-q", "simulate", str(tmp_path / "out"), "--means", str(tmp_path / "means.csv")]) == 2
    )
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_operating_system_error_names_its_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error", "disk.h5ad")

    monkeypatch.setattr(cli, "_app", app)
    assert _run([]) == 1
    assert capsys.readouterr().err == "OSError: disk.h5ad: Input/output error\n"


def test_names_are_shown_as_they_are_and_paths_in_one_piece(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = cells()
    odd.obs["cell_type"] = odd.obs["cell_type"].replace({"A": "T [red]CD4"})
    odd.write_h5ad("odd.h5ad")
    assert _run(["data", "check", "odd.h5ad"]) == 0
    assert "T [red]CD4" in capsys.readouterr().out
    out = "a rather long name [bold] of a file.csv"
    assert _run(["split", "odd.h5ad", "--kind", "random", "--fraction", "0.5", "--out", out]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"random cells: wrote {out}"
