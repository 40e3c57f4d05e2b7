"""Tables of perturbagens (pert_info of GEO, compoundinfo of LINCS2020): mechanisms and targets by canonical id."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from perturbgen.errors import SchemaError, suggest
from perturbgen.profiles.l1000.identifiers import core_id
from perturbgen.profiles.l1000.metadata import read_table, without_missing


def perturbagen_values(path: str | Path, column: str) -> pd.Series:
    """A column by canonical id; a perturbagen with several rows has all its different values, as ``a|b``."""
    table = read_table(path)
    for name in ("pert_id", column):
        if name not in table:
            raise SchemaError(f"{path} has no column {name!r}", fix=suggest(name, table.columns))
    known = table[["pert_id"]].assign(value=without_missing(table[column])).dropna().astype(str)
    known["pert_id"] = known["pert_id"].map(core_id)
    joined = known.groupby("pert_id")["value"].agg(lambda values: "|".join(sorted({*values})))
    return joined.rename(column).rename_axis("perturbagen")
