"""A small table with an additive truth, as a file, and comparisons on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perturbgen.compare import CompareSettings, Comparison, compare

CELLS = ("B cells", "Myeloid cells", "NK cells", "T cells CD4+")
TARGETS = CELLS[:2]
COMPOUNDS = tuple(f"drug {i}" for i in range(8))
GENES = tuple(f"g{i}" for i in range(30))
CLOSED_FORM: dict[str, Any] = {"zeros": {}, "additive": {}, "cell_type_mean": {}}


def additive_table(rows: pd.MultiIndex, seed: int = 0) -> pd.DataFrame:
    """Cell type + compound + noise, drawn by label: any choice of rows has the same values."""
    rng = np.random.default_rng(seed)
    cells = pd.DataFrame(rng.normal(size=(len(CELLS), len(GENES))), CELLS, GENES)
    compounds = pd.DataFrame(2 * rng.normal(size=(len(COMPOUNDS), len(GENES))), COMPOUNDS, GENES)
    every = pd.MultiIndex.from_product([CELLS, COMPOUNDS], names=["cell_type", "compound"])
    noise = pd.DataFrame(0.5 * rng.normal(size=(len(every), len(GENES))), every, GENES)
    values = [
        cells.loc[cell] + compounds.loc[compound] + noise.loc[(cell, compound)]
        for cell, compound in rows
    ]
    return pd.DataFrame(np.array(values), rows, GENES)


def write_flat(table: pd.DataFrame, path: Path) -> Path:
    table.rename_axis(["cell_type", "sm_name"]).reset_index().to_parquet(path, index=False)
    return path


@pytest.fixture(scope="session")
def full() -> pd.DataFrame:
    """Every cell type x compound."""
    return additive_table(
        pd.MultiIndex.from_product([CELLS, COMPOUNDS], names=["cell_type", "compound"])
    )


@pytest.fixture
def folder(tmp_path: Path, full: pd.DataFrame) -> Path:
    """The table divided as the competition's: in the targets only the first three compounds are
    released.
    """
    path = tmp_path / "data"
    path.mkdir()
    cell, compound = (full.index.get_level_values(name) for name in full.index.names)
    hidden = cell.isin(TARGETS) & ~compound.isin(COMPOUNDS[:3])
    write_flat(full[~hidden], path / "de_train.parquet")
    write_flat(full[hidden], path / "de_truth.parquet")
    return path


Build = Callable[..., CompareSettings]
Run = Callable[..., Comparison]


@pytest.fixture
def build(folder: Path) -> Build:
    """Settings over the small ones."""

    def made(**changes: Any) -> CompareSettings:
        base = {
            "data": {"folder": str(folder), "truth": "de_truth.parquet"},
            "splits": {"kaggle": {}},
            "methods": CLOSED_FORM,
            "score": {"resamples": 20},
        }
        return CompareSettings.load(base=base | changes)

    return made


@pytest.fixture
def run(build: Build, tmp_path: Path) -> Run:
    """A comparison in this process."""

    def ran(
        out: Path | None = None, *, workers: int = 1, scheduler: str = "processes", **changes: Any
    ) -> Comparison:
        return compare(
            build(**changes), out or tmp_path / "out", workers=workers, scheduler=scheduler
        )

    return ran


def states(found: Comparison) -> dict[str, int]:
    return found.jobs["state"].value_counts().to_dict()
