"""The example package of the documentation, installed, beside our own methods in a comparison."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.cli import _run
from perturbgen.core import extensions
from tests.compare.test_trained_runs import COMPOUNDS, make_cells
from tests.conftest import without_pictures

EXAMPLE = Path(__file__).parents[2] / "docs" / "example_package"
TRAIN = """
name = "example"
[data]
path = "released.h5ad"
[conditions.cell_type]
[conditions.compound]
[conditions.plate]
[model]
kind = "free_bits"
settings = {free = 1.0}
latent = 2
decoder = {hidden = [4]}
[annealing]
warmup = 0
[training]
epochs = 1
threads = 1
"""
COMPARE = """
[data]
folder = "."
[splits.cell_types]
cell_types = ["B cells"]
[methods.cell_type_mean]
[methods.compound_mean]
[methods.shrunk_compound]
[methods.by_its_place]
baseline = "perturbgen_example:ShrunkCompound"
settings = {weight = 3.0}
[methods.free_bits]
predictions = "predicted.parquet"
[score]
resamples = 10
intervals = []
"""


@pytest.fixture
def installed(fresh: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as pip installs it, in a folder of its own."""
    # A copy, for pip writes into what it builds from.
    shutil.copytree(EXAMPLE, tmp_path / "source", ignore=shutil.ignore_patterns("build", "*-info"))
    site = tmp_path / "site"
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    pip = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site)]
    done = subprocess.run(
        [*pip, str(tmp_path / "source")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(site))
    extensions._named_in.cache_clear()
    monkeypatch.chdir(tmp_path)
    return site


def test_it_is_short() -> None:
    files = [EXAMPLE / "perturbgen_example.py", EXAMPLE / "pyproject.toml"]
    assert sum(len(file.read_text().splitlines()) for file in files) < 80


def test_it_keeps_its_promises(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["check-extension", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["name"], row["promises"]) for row in rows] == [
        ("model", "free_bits", []),
        ("metric", "strongest_sign", []),
        ("baseline", "shrunk_compound", []),
    ]


def test_it_shows_up_in_a_comparison(
    installed: Path, fresh: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = make_cells()
    withheld = (cells.obs["cell_type"] == "B cells") & cells.obs["compound"].isin(COMPOUNDS[2:])
    cells.write_h5ad("everything.h5ad")
    cells[~withheld.to_numpy()].copy().write_h5ad("released.h5ad")
    Path("train.toml").write_text(TRAIN)
    Path("compare.toml").write_text(COMPARE)
    wanted = "cell_type,compound\n" + "".join(f"B cells,{name}\n" for name in COMPOUNDS)
    Path("wanted.csv").write_text(wanted)
    with without_pictures():
        assert _run(["train", "train.toml", "--device", "cpu"]) == 0
    [run] = Path("runs").glob("0001-*")
    assert 'kind = "free_bits"' in (run / "config.toml").read_text()
    steps = ["pseudobulk", "everything.h5ad", "--out", "bulk.h5ad"]
    assert _run(steps) == 0
    de = ["de", "bulk.h5ad", "--design", "~0 + {group} + plate", "--group", "compound"]
    assert _run([*de, "--by", "cell_type", "--out", "de_train.parquet"]) == 0
    predict = ["predict", str(run), "--cells", "everything.h5ad", "--conditions", "wanted.csv"]
    chosen = ["--estimator", "mean_t", "--replicates", "1", "--out", "predicted.parquet"]
    assert _run([*predict, *chosen]) == 0
    capsys.readouterr()
    assert _run(["compare", "compare.toml", "--out", "out", "--workers", "2"]) == 0
    shown, card = capsys.readouterr().out, (tmp_path / "out" / "scorecard.md").read_text()
    for name in ("shrunk_compound", "by_its_place", "free_bits"):
        assert name in shown
        assert f"| {name} " in card
    assert "| Strongest sign ↑ | " in card
    assert "Strongest sign" in (tmp_path / "out" / "report.html").read_text()
    told = json.loads((tmp_path / "out" / "scorecard.json").read_text())
    assert "strongest_sign" in json.dumps(told["metrics"])
    assert [text.partition(" (")[0] for text in told["info"]["extensions"]] == [
        "the baseline 'shrunk_compound'",
        "the baseline 'perturbgen_example:ShrunkCompound'",
        "the metric 'strongest_sign'",
    ]
    assert _run(["compare", "compare.toml", "--out", "out", "--workers", "1"]) == 0
    assert "6 cached" in capsys.readouterr().out
    # Other code of the same name is another method, and another metric.
    module = installed / "perturbgen_example.py"
    module.write_text(module.read_text().replace("fillna(0.0)", "fillna(0.25)"))
    fresh()
    assert _run(["compare", "compare.toml", "--out", "out", "--workers", "1"]) == 0
    assert "6 cached" not in capsys.readouterr().out


def test_a_broken_one_fails_alone(
    installed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = installed / "perturbgen_example.py"
    module.write_text(module.read_text().replace("fillna(0.0)", "fillna(1 / 0)"))
    index = pd.MultiIndex.from_product([["A", "B", "C"], list("xyz")])
    values = [[i, -i] for i in range(9)]
    table = pd.DataFrame(values, index.set_names(["cell_type", "sm_name"]), ["g1", "g2"])
    table.astype(float).reset_index().to_parquet("de_train.parquet")
    text = COMPARE.replace('["B cells"]', '["A"]').partition("[methods.free_bits]")[0]
    Path("compare.toml").write_text(f"{text}\n[score]\nresamples = 5")
    with caplog.at_level(logging.ERROR, logger="perturbgen"):
        assert _run(["compare", "compare.toml", "--out", "out", "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "the rest is scored" in said.err
    failures = (tmp_path / "out" / "failures.txt").read_text()
    assert "the baseline 'shrunk_compound'" in failures
    assert "ZeroDivisionError: division by zero (perturbgen_example.py, line" in failures
    assert "Traceback" not in failures


def test_a_metric_that_is_asked_for_and_broken_ends_a_comparison_before_it_begins(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = installed / "perturbgen_example.py"
    module.write_text(
        module.read_text().replace("strongest.sum(axis=1) + 1) / 2", "strongest.sum(axis=1))")
    )
    index = pd.MultiIndex.from_product([["A", "B", "C"], list("xyz")])
    labels = index.set_names(["cell_type", "sm_name"])
    table = pd.DataFrame(np.arange(9.0)[:, None], labels, ["g1"])
    table.reset_index().to_parquet("de_train.parquet")
    text = COMPARE.replace('["B cells"]', '["A"]').partition("[methods.shrunk_compound]")[0]
    asked = 'metrics = ["strongest_sign", "mean_rowwise_rmse"]\nheadline = ["strongest_sign"]'
    Path("compare.toml").write_text(f"{text}\n[score]\n{asked}")
    assert _run(["compare", "compare.toml", "--out", "out"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ExtensionError: the metric 'strongest_sign'")
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("cells/*"))


def test_a_model_that_fails_in_training_is_named(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = installed / "perturbgen_example.py"
    module.write_text(module.read_text().replace("clamp(min=self.free)", "clump(min=self.free)"))
    make_cells().write_h5ad("released.h5ad")
    Path("train.toml").write_text(TRAIN)
    assert _run(["train", "train.toml", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "ExtensionError: the model 'free_bits' (perturbgen_example:FreeBits)" in said
    assert "has no attribute 'clump' (perturbgen_example.py, line" in said
    assert "Traceback" not in said
