from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbgen import cli
from perturbgen.generate import CellSampler

from .conftest import draw_cells, is_hidden


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    obs, totals = draw_cells(1)
    kept = ~is_hidden(obs)
    half = totals.to_numpy()[kept] // 2
    counts = np.stack([half, totals.to_numpy()[kept] - half], axis=1).astype(np.int32)
    path = tmp_path_factory.mktemp("cli") / "cells.h5ad"
    anndata.AnnData(
        counts, obs[kept], pd.DataFrame(index=["a", "b"]), uns={"vehicle": "DMSO"}
    ).write_h5ad(path)
    return path


FAST = ["--folds", "2", "--set", "trees=8", "--set", "folds=2"]


def test_the_verb_fits_reports_and_foretells(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = pd.DataFrame({"id": [0, 1], "cell_type": ["B", "Myeloid"], "sm_name": ["c01", "c28"]})
    ids.to_csv(tmp_path / "id_map.csv", index=False)
    out, page = tmp_path / "out", tmp_path / "page.html"
    arguments = [
        "--out",
        str(out),
        "--plots",
        str(page),
        "--conditions",
        str(tmp_path / "id_map.csv"),
        "--json",
    ]
    assert cli._run(["-q", "samplers", str(source), *arguments, *FAST]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["quantity"], row["cell type"]) for row in rows} >= {
        ("cells", "all"),
        ("depth", "all"),
        ("cells", "B"),
    }
    assert CellSampler.load(out / "sampler.npz").settings.trees == 8
    predicted = pd.read_csv(out / "predicted.csv")
    assert predicted[["cell_type", "compound"]].drop_duplicates().to_numpy().tolist() == [
        ["B", "c01"],
        ["Myeloid", "c28"],
    ]
    assert len(predicted) == 6  # three plates each
    assert (predicted["q0.5"] <= predicted["q0.9"]).all()
    assert len(pd.read_csv(out / "scores.csv")) > 100
    assert "Median library size" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "FILE"], "is a file"),
        (["--out", "out", "--plots", "page.pdf"], "not a .html file"),
        (["--out", "out", "--set", "tres=3"], "did you mean 'trees'"),
        (["--out", "out", "--conditions", "FILE"], "FILE"),
        (["--out", "out", "--folds", "1"], "folds"),
    ],
)
def test_mistakes_are_explained(
    source: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        cli._run(
            [
                "-q",
                "samplers",
                str(source),
                *FAST,
                *[a.replace("FILE", str(source)) for a in arguments],
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert words.replace("FILE", source.name) in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
