"""Groups of conditions that are scored apart: by effect size, cell type, whether the compound was seen, cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.evaluate.align import Values

_logger = logging.getLogger(__name__)

_PARTS = 3
_LEVELS = 12  # a stratum of more levels (a compound, for instance) would be a list of conditions


def effect_sizes(truth: Values, conditions: pd.Index) -> pd.Series:
    """Number of responding genes of each condition (conditions,)."""
    _warn_if_limited(truth)
    de = np.concatenate([block.de for block in truth.blocks])
    return pd.Series(de.sum(axis=1), conditions, name="responding genes")


def _warn_if_limited(truth: Values) -> None:
    """Say so where p were limited before we saw them, at a value that one gene alone does not respond with."""
    strength = np.abs(truth.given)
    largest, genes = strength.max(), strength.shape[1]
    if (
        truth.adjust
        and 0 < largest < -np.log10(truth.level / genes)
        and (strength == largest).sum() > 1
    ):
        _logger.warning(
            "the truth ends at ±%g: of %s genes, a few that reach it do not respond after adjustment and are missed by "
            "the DE metrics. Score the table as it was before (compare: data.clip), or compare p itself (--raw-p)",
            largest,
            f"{genes:,}",
        )


def strata(
    conditions: pd.Index, table: pd.DataFrame | None, effect: pd.Series | None = None
) -> pd.DataFrame:
    """A column of labels for each way to divide the conditions, joined by label.

    Levels of the index and columns of text or truth values are taken as they are where they have two to twelve levels;
    numbers are cut into thirds of the conditions. Other columns are left out.
    """
    columns: dict[str, pd.Series] = {} if effect is None else {str(effect.name): _cut(effect)}
    for name in conditions.names if isinstance(conditions, pd.MultiIndex) else ():
        columns[str(name)] = pd.Series(
            conditions.get_level_values(str(name)).astype(str), conditions
        )
    if table is not None:
        columns |= _describe(conditions, table)
    kept = {name: column for name, column in columns.items() if 2 <= column.nunique() <= _LEVELS}
    return pd.DataFrame(kept, index=conditions)


def _describe(conditions: pd.Index, table: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns of a table about conditions, numbers cut; a condition it lacks is an error."""
    if table.index.has_duplicates:
        raise SchemaError(
            f"the table of conditions names some twice: {shorten(table.index[table.index.duplicated()])}"
        )
    absent = conditions[~conditions.isin(table.index)]
    if len(absent):
        raise SchemaError(
            f"the table of conditions lacks {len(absent)} of {len(conditions)}: {shorten(absent, 3)}",
            expected="a row for every condition of the truth, labelled as there",
        )
    return {str(name): _cut(column) for name, column in table.reindex(conditions).items()}


def _cut(column: pd.Series, parts: int = _PARTS) -> pd.Series:
    """A numeric column as labelled ranges of about equal numbers of conditions; any other as text."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column.astype(str)
    if column.nunique() <= parts:
        return column.map(lambda value: f"{value:g}")
    edges = np.unique(np.quantile(column.dropna(), np.linspace(0, 1, parts + 1)))
    if len(edges) < 3:
        return column.map(lambda value: f"{value:g}")
    codes = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, len(edges) - 2)
    return pd.Series([_range_label(edges, code) for code in codes], column.index)


def _range_label(edges: Sequence[float] | np.ndarray, code: int) -> str:
    """A range in words that sort in its order."""
    last = code == len(edges) - 2
    return f"{code + 1}: {edges[code]:g} to {'' if last else 'below '}{edges[code + 1]:g}"
