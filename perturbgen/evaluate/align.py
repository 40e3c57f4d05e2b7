"""Truth and prediction joined by their labels; what does not match is named, never dropped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten

_logger = logging.getLogger(__name__)

Policy = Literal["exact", "truth", "intersection"]


def align(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    *,
    genes: Policy = "exact",
    rows: Policy = "exact",
    name: str = "the prediction",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with the same conditions and genes, in the truth's order, as float64.

    * ``exact``: the labels must be the same;
    * ``truth``: the prediction may have more (Open Problems' rule for genes);
    * ``intersection``: what both have.

    Missing true values are an error; missing predictions become 0, with a warning.
    """
    truth, prediction = _in_common(truth, prediction, genes=genes, rows=rows, name=name)
    # By label, never by place: rows in another order would give plausible scores of nothing.
    true = _numbers(truth, "the truth")
    holes = true.isna().to_numpy()
    if holes.any():
        raise SchemaError(
            f"the truth has {int(holes.sum())} missing values, the first {place(holes, true)}",
            expected="a complete table",
            cause="genes that were filtered out, or contrasts that cannot be estimated",
            fix="drop these genes or conditions from the truth",
        )
    predicted = _numbers(prediction, name)
    holes = predicted.isna().to_numpy()
    if not holes.any():
        return true, predicted
    row, gene = divmod(int(holes.argmax()), predicted.shape[1])
    _logger.warning(
        "%s has %d missing values (the first for %r, %r); they count as 0, as in Open Problems",
        name,
        int(holes.sum()),
        predicted.index[row],
        predicted.columns[gene],
    )
    # Not dropped: each method would be scored on genes of its own.
    return true, predicted.fillna(0.0)


def align_all(
    truth: pd.DataFrame, predictions: Mapping[str, pd.DataFrame], *, genes: Policy, rows: Policy
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Truth and predictions with the same labels: with ``intersection``, what all of them have."""
    if not predictions:
        raise ConfigError("there is no prediction to score", expected="{name: conditions x genes}")
    kept = {}
    for name, table in predictions.items():
        truth, kept[name] = _in_common(truth, table, genes=genes, rows=rows, name=name)
    # A second time, since each prediction may have taken labels from the truth that the ones before
    # it still have.
    true, aligned = truth, {}
    for name, table in kept.items():
        true, aligned[name] = align(truth, _select(table, truth.index, truth.columns), name=name)
    return true, aligned


def place(wrong: np.ndarray, table: pd.DataFrame) -> str:
    """Where the first True of a mask (conditions, genes) stands, in the words of an error."""
    row, gene = divmod(int(wrong.argmax()), table.shape[1])
    return f"for condition {table.index[row]!r} and gene {table.columns[gene]!r}"


def _in_common(
    truth: pd.DataFrame, prediction: pd.DataFrame, *, genes: Policy, rows: Policy, name: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with the labels that the policies allow, in the truth's order."""
    truth = _checked(truth, "the truth")
    if isinstance(prediction, pd.DataFrame):
        # Before the check: labels that have too few levels would look doubled.
        prediction = same_levels(prediction, truth.index, name)
    prediction = _checked(prediction, name)
    kept_rows = shared(truth.index, prediction.index, rows, "conditions", "rows", name)
    kept_genes = shared(truth.columns, prediction.columns, genes, "genes", "genes", name)
    return _select(truth, kept_rows, kept_genes), _select(prediction, kept_rows, kept_genes)


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table, if it has rows, columns, and no label twice."""
    if not isinstance(table, pd.DataFrame):
        raise SchemaError(
            f"{name} is a {type(table).__name__}",
            expected="a DataFrame, conditions x genes, joined by its labels",
        )
    for labels, what in ((table.index, "condition"), (table.columns, "gene")):
        if not len(labels):
            raise SchemaError(f"{name} has no {what}", expected="a table of conditions x genes")
        twice = labels[labels.duplicated()]
        if len(twice):
            raise SchemaError(
                f"{name} holds {what}s twice: {shorten(twice.unique())}",
                expected=f"every {what} once",
            )
    return table


def same_levels(table: pd.DataFrame, index: pd.Index, name: str) -> pd.DataFrame:
    """The table with the levels of its rows in the order of ``index``, where both have names."""
    if table.index.nlevels != index.nlevels:
        raise SchemaError(
            f"the conditions of {name} are {_levels(table.index)}, those of the truth "
            f"{_levels(index)}",
            expected="the same labels, for instance (cell_type, compound)",
            fix="set_index(['cell_type', 'compound'])",
        )
    # Unnamed levels stay: their order is all that is known of them.
    names, found = list(map(str, index.names)), list(map(str, table.index.names))
    named = isinstance(table.index, pd.MultiIndex) and None not in index.names
    return table.reorder_levels(names) if named and sorted(names) == sorted(found) else table


def _levels(index: pd.Index) -> str:
    """What the labels of an index are made of."""
    if index.nlevels == 1:
        return f"like {index[0]!r}"
    return f"({', '.join(str(name) for name in index.names)})"


def shared(
    truth: pd.Index, found: pd.Index, policy: Policy, what: str, option: str, name: str
) -> pd.Index:
    """The labels to score, in the truth's order; an error where the policy lets none differ."""
    if policy not in get_args(Policy):
        raise SchemaError(
            f"{option}={policy!r} is no policy", expected=f"one of {shorten(get_args(Policy))}"
        )
    absent, extra = truth[~truth.isin(found)], found[~found.isin(truth)]
    differences = []
    if len(absent):
        differences.append(f"{len(absent)} of {len(truth)} are absent ({shorten(absent, 3)})")
    if len(extra):
        differences.append(f"{len(extra)} are unknown to the truth ({shorten(extra, 3)})")
    difference = "; ".join(differences)
    if (len(absent) and policy != "intersection") or (len(extra) and policy == "exact"):
        raise SchemaError(
            f"{name} has other {what} than the truth: {difference}",
            expected=f"the {len(truth)} {what} of the truth",
            cause="another release of the data, another split, or renamed labels",
            fix=f"{option}='intersection' (--{option} intersection) scores what both have"
            + ("" if len(absent) else f"; 'truth' ignores the rest of {name}"),
        )
    both = truth[truth.isin(found)]
    if not len(both):
        raise SchemaError(
            f"{name} and the truth have no {what} in common",
            expected=f"{what} {shorten(truth, 3)}, ...",
        )
    if difference:
        scored = f"{len(both)} of {len(truth)} {what}"
        _logger.warning("%s: scoring %s; %s", name, scored, difference)
    return both


def _select(table: pd.DataFrame, rows: pd.Index, genes: pd.Index) -> pd.DataFrame:
    """Rows and genes by label."""
    # A table that has them already is not copied: it may fill much of the memory.
    same = table.index.equals(rows) and table.columns.equals(genes)
    return table if same else table.reindex(index=rows, columns=genes)


def _numbers(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table as float64; text and infinities are errors."""
    numeric = pd.api.types.is_numeric_dtype
    if not all(numeric(kind) for kind in table.dtypes.unique()):
        text = [str(column) for column, kind in table.dtypes.items() if not numeric(kind)]
        raise SchemaError(
            f"{name} has columns that are not numbers: {shorten(text)}",
            expected="genes only, one column each",
            fix="put what describes a condition into the index",
        )
    values = table.astype(np.float64)
    infinite = np.isinf(values.to_numpy())
    if infinite.any():
        raise SchemaError(
            f"{name} has {int(infinite.sum())} infinite values, the first "
            f"{place(infinite, values)}",
            expected="finite numbers",
            cause="-log10 of p = 0",
            fix="compute p in log space, or clip the table",
        )
    return values
