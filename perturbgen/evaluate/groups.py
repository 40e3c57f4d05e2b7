"""Groups of conditions: scored apart (effect size, cell type, ...), or resampled together."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.evaluate.values import Values

_logger = logging.getLogger(__name__)

_PARTS = 3
_LEVELS = 12  # a stratum of more levels (a compound, for instance) would be a list of conditions


def effect_sizes(truth: Values, conditions: pd.Index) -> pd.Series:
    """Number of responding genes of each condition (conditions,)."""
    strength = np.abs(truth.given)
    largest, genes = strength.max(), strength.shape[1]
    # p that were limited before we saw them, at a value that one gene alone does not respond with.
    if (
        truth.adjust
        and 0 < largest < -np.log10(truth.level / genes)
        and (strength == largest).sum() > 1
    ):
        _logger.warning(
            "the truth ends at ±%g: of %s genes, a few that reach it do not respond after "
            "adjustment and are missed by the DE metrics. Score the table as it was before "
            "(compare: data.clip), or compare p itself (--raw-p)",
            largest,
            f"{genes:,}",
        )
    de = np.concatenate([block.de for block in truth.blocks])
    return pd.Series(de.sum(axis=1), conditions, name="responding genes")


def strata(
    conditions: pd.Index, table: pd.DataFrame | None, effect: pd.Series | None = None
) -> pd.DataFrame:
    """A column of labels for each way to divide the conditions, joined by label.

    Levels of the index and columns of text or truth values are taken as they are where they have
    two to twelve levels; numbers are cut into thirds of the conditions. Other columns are dropped.
    """
    columns: dict[str, pd.Series] = {} if effect is None else {str(effect.name): _in_ranges(effect)}
    for name in conditions.names if isinstance(conditions, pd.MultiIndex) else ():
        labels = conditions.get_level_values(str(name)).astype(str)
        columns[str(name)] = pd.Series(labels, conditions)
    if table is not None:
        twice = table.index[table.index.duplicated()]
        if len(twice):
            raise SchemaError(f"the table of conditions names some twice: {shorten(twice)}")
        absent = conditions[~conditions.isin(table.index)]
        if len(absent):
            raise SchemaError(
                f"the table of conditions lacks {len(absent)} of {len(conditions)}: "
                f"{shorten(absent, 3)}",
                expected="a row for every condition of the truth, labelled as there",
            )
        columns |= {
            str(name): _in_ranges(column) for name, column in table.reindex(conditions).items()
        }
    kept = {name: column for name, column in columns.items() if 2 <= column.nunique() <= _LEVELS}
    return pd.DataFrame(kept, index=conditions)


def _in_ranges(column: pd.Series) -> pd.Series:
    """A numeric column as ranges of about equal numbers of conditions; any other as text."""
    # Truth values count as numbers in pandas, and have no ranges.
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column.astype(str)
    edges = np.zeros(0)
    if column.nunique() > _PARTS:
        edges = np.unique(np.quantile(column.dropna(), np.linspace(0, 1, _PARTS + 1)))
    if len(edges) < 3:
        return column.map(lambda value: f"{value:g}")
    codes = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, len(edges) - 2)
    # The number comes first, so that ranges sorted as text are in order.
    last = len(edges) - 2
    labels = [
        f"{code + 1}: {edges[code]:g} to {'' if code == last else 'below '}{edges[code + 1]:g}"
        for code in codes
    ]
    return pd.Series(labels, column.index)


def find_clusters(
    index: pd.Index, conditions: pd.DataFrame | None, name: str | None
) -> pd.Series | None:
    """The cluster of each condition: a level of the index, or a column about conditions."""
    if name is None:
        return None
    if name in index.names:
        return pd.Series(index.get_level_values(name), index)
    if conditions is not None and name in conditions:
        return conditions[name].reindex(index)
    columns = [] if conditions is None else list(conditions)
    raise SchemaError(
        f"there is no {name!r} to cluster by",
        expected=f"one of {shorten([*index.names, *columns], 12)}",
    )
