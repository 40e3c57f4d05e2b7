"""Small labelled tables: one by hand, one random with structure, and the task's shape."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.tables import CONDITION as KEY


def labelled(rows: dict[tuple[str, str], list[float]], genes: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=KEY), genes)


@pytest.fixture
def small() -> pd.DataFrame:
    """Three cell types x three compounds x two genes, with two holes."""
    rows = {
        ("A", "x"): [1.0, 2.0],
        ("A", "y"): [3.0, 0.0],
        ("A", "z"): [5.0, -2.0],
        ("B", "x"): [2.0, 2.0],
        ("B", "y"): [6.0, 4.0],
        ("C", "x"): [9.0, -1.0],
    }
    return labelled(rows, ["g", "h"])


@pytest.fixture(scope="session")
def task() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(train, test) of a low-rank world: 5 cell types x 30 compounds x 80 genes; T1, T2 know 8
    compounds only.
    """
    return make_task(np.random.default_rng(5))


def make_task(rng: np.random.Generator, *, noise: float = 0.5) -> tuple[pd.DataFrame, pd.DataFrame]:
    cells, compounds, genes = ["S1", "S2", "S3", "T1", "T2"], [f"c{i:02d}" for i in range(30)], 80
    programmes = rng.normal(size=(4, genes))
    strength = rng.normal(size=(len(compounds), 4))
    rows = {}
    for cell in cells:
        offset, tilt = 0.7 * rng.normal(size=genes), 1 + 0.2 * rng.normal(size=4)
        for i, compound in enumerate(compounds):
            rows[cell, compound] = (
                offset + (strength[i] * tilt) @ programmes + noise * rng.normal(size=genes)
            )
    full = labelled({k: list(v) for k, v in rows.items()}, [f"g{i}" for i in range(genes)])
    known = compounds[:8]
    hidden = full.index.get_level_values(0).isin(["T1", "T2"]) & ~full.index.get_level_values(
        1
    ).isin(known)
    return full[~hidden], full[hidden]
