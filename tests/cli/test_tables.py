import json
from pathlib import Path

import anndata as ad
import pytest

from perturbgen import cli
from perturbgen.data import Split

COLUMNS = Path(__file__).parents[2] / "experiments" / "columns" / "kang.toml"
pytestmark = pytest.mark.data


@pytest.fixture
def kang(real_data: Path) -> list[str]:
    return [str(real_data / "counts" / "kang_ifnb.h5ad"), "--columns", str(COLUMNS)]


def test_pseudobulk_of_a_real_file(
    kang: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pb.h5ad"
    assert (
        cli._run(
            [
                "-q",
                "pseudobulk",
                *kang,
                "--by",
                "cell_type, donor, compound",
                "--out",
                str(out),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)[0] == {
        "samples": 20,
        "genes": 1267,
        "cells": 1556,
        "median cells": 100.0,
    }
    bulk = ad.read_h5ad(out)
    assert bulk.X.sum() == ad.read_h5ad(kang[0]).X.sum()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["random", "--fraction", "0.1"], {"train": 1400, "validation": 156}),
        (
            ["leave-out", "--column", "cell_type", "--value", "B cells"],
            {"train": 1258, "test": 298},
        ),
        (["kfold", "--folds", "2", "--column", "donor"], None),
    ],
)
def test_splits_of_a_real_file(
    kang: list[str], tmp_path: Path, options: list[str], parts: dict[str, int] | None
) -> None:
    out = tmp_path / "split.csv"
    assert cli._run(["-q", "split", *kang, "--kind", *options, "--out", str(out)]) == 0
    found = Split.read(out).parts.value_counts().to_dict()
    assert sum(found.values()) == 1556
    assert parts is None or found == parts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pseudobulk", "--by", "wel", "--out", "x.h5ad"], "--by wel: obs has no column 'wel'"),
        (["pseudobulk", "--out", "x.csv"], "x.h5ad"),
        (["split", "--kind", "leave-out", "--out", "x.csv"], "--column and --value"),
        (
            [
                "split",
                "--kind",
                "leave-out",
                "--column",
                "cell_type",
                "--value",
                "B cell",
                "--out",
                "x.csv",
            ],
            "did you mean",
        ),
        (["split", "--kind", "random", "--fraction", "3", "--out", "x.csv"], "between 0 and 1"),
        (["split", "--kind", "kfold", "--folds", "1", "--out", "x.csv"], "folds"),
        (["split", "--kind", "nonsense", "--out", "x.csv"], "nonsense"),
    ],
)
def test_mistakes_are_explained(
    kang: list[str],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = [str(Path(kang[0]).resolve()), *kang[1:]]
    assert cli._run(["-q", arguments[0], *source, *arguments[1:]]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
