"""Shared fixtures: where real data and R are, and what to do when they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CI = os.environ.get("CI") == "true"
DATA = Path(os.environ.get("PERTURBGEN_DATA", Path(__file__).parents[2] / "shared" / "data"))


def absent(what: str) -> None:
    """Skip, saying why; under CI an absence is a failure."""
    if CI:
        pytest.fail(f"{what}, and CI=true allows no such skip")
    pytest.skip(what)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data (see PERTURBGEN_DATA)."""
    if not DATA.is_dir():
        absent(f"no real data at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def rscript() -> str:
    """The Rscript program, with limma, edgeR and statmod installed."""
    from perturbgen.cli.doctor import r_rows

    missing = [row["what"] for row in r_rows() if row["found"] is None]
    if missing:
        absent(f"{', '.join(missing)} not found; r/install.sh installs them")
    return "Rscript"
