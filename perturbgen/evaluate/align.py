"""Truth and prediction joined by their labels; what does not match is named, never silently left out.

A truth and a prediction as arrays, with what several metrics need of them computed once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array
from perturbgen.evaluate.metrics import centre, centred_ranks, evidence_weights, significant

_logger = logging.getLogger(__name__)

Policy = Literal["exact", "truth", "intersection"]
_POLICIES: tuple[Policy, ...] = ("exact", "truth", "intersection")


def align(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    *,
    genes: Policy = "exact",
    rows: Policy = "exact",
    name: str = "the prediction",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with the same conditions and genes, in the truth's order, as float64.

    ``exact``: the labels must be the same. ``truth``: the prediction may have more (Open Problems' rule for genes).
    ``intersection``: what both have. Missing true values are an error; missing predictions become 0, with a warning.
    """
    truth, prediction = in_common(truth, prediction, genes=genes, rows=rows, name=name)
    true = _numbers(truth, "the truth")
    holes = true.isna().to_numpy()
    if holes.any():
        raise SchemaError(
            f"the truth has {int(holes.sum())} missing values, the first {place(holes, true)}",
            expected="a complete table",
            cause="genes that were filtered out, or contrasts that cannot be estimated",
            fix="drop these genes or conditions from the truth",
        )
    return true, _filled(_numbers(prediction, name), name)


def place(wrong: np.ndarray, table: pd.DataFrame) -> str:
    """Where the first True of a mask (conditions, genes) stands, in the words of an error."""
    row, gene = divmod(int(wrong.argmax()), table.shape[1])
    return f"for condition {table.index[row]!r} and gene {table.columns[gene]!r}"


def in_common(
    truth: pd.DataFrame, prediction: pd.DataFrame, *, genes: Policy, rows: Policy, name: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with the labels that the policies allow, in the truth's order, values untouched."""
    truth = _checked(truth, "the truth")
    if isinstance(prediction, pd.DataFrame):
        prediction = same_levels(
            prediction, truth.index, name
        )  # before labels that are one short look doubled
    prediction = _checked(prediction, name)
    kept_rows = shared(truth.index, prediction.index, rows, "conditions", "rows", name)
    kept_genes = shared(truth.columns, prediction.columns, genes, "genes", "genes", name)
    return select(truth, kept_rows, kept_genes), select(prediction, kept_rows, kept_genes)


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
            f"the conditions of {name} are {_levels(table.index)}, those of the truth {_levels(index)}",
            expected="the same labels, for instance (cell_type, compound)",
            fix="set_index(['cell_type', 'compound'])",
        )
    names = [str(name) for name in index.names]
    if isinstance(table.index, pd.MultiIndex) and sorted(names) == sorted(
        map(str, table.index.names)
    ):
        return table.reorder_levels(names) if None not in index.names else table
    return table


def _levels(index: pd.Index) -> str:
    """What the labels of an index are made of."""
    return (
        f"({', '.join(str(name) for name in index.names)})"
        if index.nlevels > 1
        else f"like {index[0]!r}"
    )


def shared(
    truth: pd.Index, found: pd.Index, policy: Policy, what: str, option: str, name: str
) -> pd.Index:
    """The labels to score, in the truth's order; what the policy does not allow to differ is an error."""
    if policy not in _POLICIES:
        raise SchemaError(
            f"{option}={policy!r} is no policy", expected=f"one of {shorten(_POLICIES)}"
        )
    absent, extra = truth[~truth.isin(found)], found[~found.isin(truth)]
    if (len(absent) and policy != "intersection") or (len(extra) and policy == "exact"):
        raise SchemaError(
            f"{name} has other {what} than the truth: {_difference(absent, extra, len(truth))}",
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
    if len(absent) or len(extra):
        _logger.warning(
            "%s: scoring %d of %d %s; %s",
            name,
            len(both),
            len(truth),
            what,
            _difference(absent, extra, len(truth)),
        )
    return both


def _difference(absent: pd.Index, extra: pd.Index, total: int) -> str:
    """What is missing and what is unknown, in words."""
    parts = [f"{len(absent)} of {total} are absent ({shorten(absent, 3)})"] if len(absent) else []
    parts += [f"{len(extra)} are unknown to the truth ({shorten(extra, 3)})"] if len(extra) else []
    return "; ".join(parts)


def select(table: pd.DataFrame, rows: pd.Index, genes: pd.Index) -> pd.DataFrame:
    """Rows and genes by label."""
    same = table.index.equals(rows) and table.columns.equals(genes)
    return table if same else table.reindex(index=rows, columns=genes)


def _numbers(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table as float64; text and infinities are errors."""
    if not all(pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes.unique()):
        text = [
            str(column)
            for column, kind in table.dtypes.items()
            if not pd.api.types.is_numeric_dtype(kind)
        ]
        raise SchemaError(
            f"{name} has columns that are not numbers: {shorten(text)}",
            expected="genes only, one column each",
            fix="put what describes a condition into the index",
        )
    values = table.astype(np.float64)
    infinite = np.isinf(values.to_numpy())
    if infinite.any():
        raise SchemaError(
            f"{name} has {int(infinite.sum())} infinite values, the first {place(infinite, values)}",
            expected="finite numbers",
            cause="-log10 of p = 0",
            fix="compute p in log space, or clip the table",
        )
    return values


def _filled(prediction: pd.DataFrame, name: str) -> pd.DataFrame:
    """The prediction with 0 for what is missing, as Open Problems has it."""
    holes = prediction.isna().to_numpy()
    if not holes.any():
        return prediction
    row, gene = divmod(int(holes.argmax()), prediction.shape[1])
    _logger.warning(
        "%s has %d missing values (the first for %r, %r); they count as 0, as in Open Problems",
        name,
        int(holes.sum()),
        prediction.index[row],
        prediction.columns[gene],
    )
    return prediction.fillna(0.0)


BLOCK_ROWS = 8


@dataclass(frozen=True, eq=False)
class Values:
    """A table (conditions, genes) of signed −log10 p; genes are responding at ``level``, adjusted p or not.

    Errors and correlations see it within ± ``clip``. Which genes respond is found before: of p that end at 1e-4, a few
    out of thousands of genes would not pass the adjustment, however strong they are.
    """

    given: Array
    level: float = 0.05
    adjust: bool = True
    clip: float | None = None

    @cached_property
    def values(self) -> Array:
        """The table within ± ``clip``."""
        return self.given if self.clip is None else np.clip(self.given, -self.clip, self.clip)

    @cached_property
    def blocks(self) -> list[Values]:
        """A few rows each: so many fit into a processor's cache, which makes row-wise metrics several times faster."""
        starts = range(0, len(self.given), BLOCK_ROWS)
        return [
            Values(self.given[i : i + BLOCK_ROWS], self.level, self.adjust, self.clip)
            for i in starts
        ]

    @cached_property
    def centred(self) -> Array:
        """Rows less their mean."""
        return centre(self.values)

    @cached_property
    def ranks(self) -> Array:
        """Centred average ranks within rows."""
        return centred_ranks(self.values)

    @cached_property
    def de(self) -> Array:
        """Which genes respond."""
        return significant(self.given, level=self.level, adjust=self.adjust)

    @cached_property
    def weights(self) -> Array:
        """Weights by evidence, of a truth."""
        return evidence_weights(self.values)


@dataclass(frozen=True, eq=False)
class Rows:
    """What a row-wise metric is computed from; ``reference`` (conditions, genes) is the mean perturbation."""

    truth: Values
    prediction: Values
    reference: Array | None = None

    @property
    def deviations(self) -> tuple[Array, Array]:
        """Truth and prediction less the reference, or as they are where there is none."""
        reference = 0.0 if self.reference is None else self.reference
        return self.truth.values - reference, self.prediction.values - reference


RowMetric = Callable[[Rows], Array]
