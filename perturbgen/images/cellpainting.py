"""Any table of profiles with ``Metadata_`` columns: Cell Painting as CellProfiler, pycytominer and JUMP write it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import read_frame, require_unique
from perturbgen.profiles.table import Profiles

_PREFIX: Final = "Metadata_"
_OURS: Final = {"Metadata_Plate": "plate", "Metadata_Well": "well"}


def read_profiles(path: str | Path) -> Profiles:
    """A csv(.gz) or parquet: ``Metadata_*`` columns are labels, the others features, which must be numbers.

    ``plate`` and ``well`` stand beside ``Metadata_Plate`` and ``Metadata_Well``, where these are given.
    """
    table = read_frame(path)
    labels = [name for name in table if str(name).startswith(_PREFIX)]
    if not labels:
        raise SchemaError(
            f"{path} has no {_PREFIX} column",
            expected="labels such as Metadata_Plate, Metadata_Well",
            fix=f"its columns are {shorten(table.columns)}",
        )
    features = table.columns.drop(labels)
    words = [name for name in features if not pd.api.types.is_numeric_dtype(table[name])]
    if words or not len(features):
        raise SchemaError(
            f"{path}: {shorten(words) or 'no column'} is not a number and not {_PREFIX}*",
            expected="features are numbers",
            fix=f"rename labels to {_PREFIX}...",
        )
    meta = table[labels].assign(
        **{ours: table[theirs].astype(str) for theirs, ours in _OURS.items() if theirs in table}
    )
    if {"plate", "well"} <= set(meta):
        require_unique(meta["plate"] + " " + meta["well"], "well", path)
    return Profiles(table[features].to_numpy(np.float64), meta, features, str(path))
