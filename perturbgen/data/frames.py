"""Small questions asked of label tables by several files of this room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten, suggest


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Complain about columns that are absent or named twice, with the nearest known name."""
    if not columns:
        raise SchemaError("no column was named", expected="at least one column of obs", fix=suggest("", table.columns))
    for column in columns:
        if column not in table.columns:
            raise SchemaError(f"obs has no column {column!r}", fix=suggest(column, table.columns))
    if len(dict.fromkeys(columns)) < len(columns):
        raise SchemaError(f"a column is named twice: {shorten(columns)}", fix="name each column once")


def require_values(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Complain about missing values."""
    for column in columns:
        missing = table[column].isna().to_numpy()
        if missing.any():
            raise SchemaError(
                f"column {column!r} has no value for {missing.sum():,} of {len(table):,} rows: "
                f"{shorten(table.index[missing])}",
                expected="a value in every row",
                fix="drop these rows, or fill in the column",
            )


def factorize(column: pd.Series) -> np.ndarray:
    """Integer codes of the values (rows,), missing values sharing a code of their own."""
    return np.asarray(pd.factorize(column, use_na_sentinel=False)[0])
