"""The R backend: what it says without R, what R says to us, the same code without Python."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import MissingDependencyError, PerturbgenError
from perturbgen.de import limma_table, r
from tests.de.cases import case
from tests.de.compare import relative

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh() -> None:
    """Look for R anew."""
    r._start_r.cache_clear()
    yield
    r._start_r.cache_clear()


def ask_r() -> None:
    experiment = case("balanced")
    limma_table(
        experiment.counts,
        experiment.obs,
        design=experiment.template,
        group="compound",
        control="vehicle",
        backend="r",
    )


def test_without_r_one_error_names_all_that_is_missing(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(r.shutil, "which", lambda name: None)
    monkeypatch.setattr(r, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as raised:
        ask_r()
    for word in ("R, rpy2, limma, edgeR, statmod", "apt-get install", "backend='native'"):
        assert word in str(raised.value)


def test_an_rpy2_that_does_not_fit_and_absent_packages_are_named_together(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(r.shutil, "which", lambda name: "/usr/bin/R")
    monkeypatch.setattr(
        r,
        "_import_problem",
        lambda: "an rpy2 that fits this R (importing it failed: OSError: no libR.so)",
    )
    monkeypatch.setattr(r, "_absent_packages", lambda: ["the R package statmod"])
    with pytest.raises(MissingDependencyError, match=r"no libR\.so\), the R package statmod"):
        ask_r()


@pytest.mark.r
def test_warnings_of_r_become_ours_and_nothing_is_printed(
    rscript: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    counts = case("balanced").counts.to_numpy()
    with caplog.at_level(logging.DEBUG, "perturbgen"):
        # a repeated column: limma warns and prints
        r._call("limma_fit", counts.T, np.ones((len(counts), 2)))
    said = {record.levelname: record.getMessage() for record in caplog.records}
    assert said["WARNING"].startswith("R: Partial NA coefficients")
    assert "not estimable" in said["DEBUG"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.r
def test_errors_of_r_become_ours(rscript: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PerturbgenError, match="R failed in limma_fit"):
        r._call("limma_fit", np.full((5, 4), np.nan), np.ones((4, 1)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.r
def test_the_same_r_code_runs_without_python(rscript: str, tmp_path: Path) -> None:
    experiment = case("unbalanced")
    experiment.counts.T.to_csv(tmp_path / "counts.csv")
    experiment.obs.to_csv(tmp_path / "obs.csv")
    files = [str(tmp_path / name) for name in ("counts.csv", "obs.csv")]
    command = [
        rscript,
        str(ROOT / "r" / "limma_fit.R"),
        *files,
        experiment.formula,
        "compound",
        "vehicle",
    ]
    subprocess.run([*command, str(tmp_path / "de.csv")], check=True, capture_output=True)
    found = pd.read_csv(tmp_path / "de.csv", dtype={"condition": str}).pivot(
        index="condition", columns="gene"
    )
    table = limma_table(
        experiment.counts,
        experiment.obs,
        design=experiment.template,
        group="compound",
        control="vehicle",
        contrasts="limma",
    )
    for name in ("t", "log10_p"):
        expected = getattr(table, name)
        assert (
            relative(
                expected.to_numpy(), found[name].loc[expected.index, expected.columns].to_numpy()
            )
            < 1e-7
        )


@pytest.mark.r
def test_starting_r_leaves_the_library_path_of_child_processes_alone(rscript: str) -> None:
    code = (
        "import os; from perturbgen.de.r import _start_r\n"
        "before = os.environ.get('LD_LIBRARY_PATH')\n"
        "_start_r(); assert os.environ.get('LD_LIBRARY_PATH') == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # in this process R has started
