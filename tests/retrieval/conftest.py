"""A small screen that several tests of retrieval share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def screen() -> tuple[np.ndarray, pd.DataFrame]:
    """90 profiles of 12 compounds on 3 plates; a compound and a plate effect."""
    rng = np.random.default_rng(0)
    compound, plate = rng.integers(12, size=90), rng.integers(3, size=90)
    x = (
        rng.normal(size=(12, 10))[compound]
        + rng.normal(size=(3, 10))[plate]
        + rng.normal(size=(90, 10))
    )
    names = [f"r{i}" for i in range(90)]
    return x, pd.DataFrame(
        {"compound": compound.astype(str), "plate": plate.astype(str)}, index=names
    )
