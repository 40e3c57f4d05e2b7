"""How strong real compounds were found to be, which strengths are dealt from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.files import require_file
from perturbgen.core.tables import read_frame, require_unique

_COLUMNS: Final = ("sm_name", "conserved")
# Quantiles of the strengths are dealt to invented compounds: fewer say nothing of a distribution.
_FEWEST: Final = 10


def read_measured_effects(path: str | Path) -> pd.Series:
    """Mean square log fold changes (index: sm_name) from a CSV with ``sm_name``, ``conserved``."""
    path = require_file(path, "effects CSV")
    table = read_frame(path, columns=_COLUMNS, text=["sm_name"])
    require_unique(pd.Index(table["sm_name"]), "compound", path)
    values = pd.to_numeric(table["conserved"], errors="coerce").to_numpy(dtype=float)
    wrong = ~np.isfinite(values) | (values < 0)
    if wrong.any():
        raise SchemaError(
            f"{path}: 'conserved' is negative, missing or text for "
            f"{shorten(table.loc[wrong, 'sm_name'].tolist())}",
            expected="mean squares of log fold changes, 0 or more",
            cause="a column of differences, or of logarithms",
        )
    if len(values) < _FEWEST:
        raise SchemaError(
            f"{path} has {len(values)} compounds", expected=f"{_FEWEST} or more, one a row"
        )
    return pd.Series(values, pd.Index(table["sm_name"].astype(str)), name="conserved")
