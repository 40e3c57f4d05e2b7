"""Labels of conditions and genes: tables are joined by them, conditions grouped by them.

What does not match is named, never dropped. Groups are scored apart (effect size, cell type, ...),
or resampled together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.evaluate.values import Values

_logger = logging.getLogger(__name__)

Policy = Literal["exact", "truth", "intersection"]
Missing = Literal["refuse", "zeros"]
_CONDITION = ("cell_type", "compound")  # this room knows no tables
_PARTS = 3
_LEVELS = 12  # a stratum of more levels (a compound, for instance) would be a list of conditions


def align(
    truth: pd.DataFrame,
    prediction: pd.DataFrame,
    *,
    genes: Policy = "exact",
    rows: Policy = "exact",
    missing: Missing = "refuse",
    name: str = "the prediction",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with the same conditions and genes, in the truth's order, as float64.

    * ``exact``: the labels must be the same;
    * ``truth``: the prediction may have more (Open Problems' rule for genes);
    * ``intersection``: what both have; of genes, those that were tested in every condition.

    Missing true values are an error; so are missing predictions, unless ``missing`` is ``zeros``.
    """
    # By label, never by place: rows in another order would give plausible scores of nothing. Genes
    # in another order once made a correlation of .97 one of -.07.
    truth, prediction = _in_common(truth, prediction, genes=genes, rows=rows, name=name)
    if genes == "intersection":
        truth, prediction = _tested(truth, prediction)
    true = _numbers(truth, "the truth")
    holes = true.isna().to_numpy()
    if holes.any():
        raise SchemaError(
            f"the truth has {int(holes.sum())} missing values, the first {place(holes, true)}",
            expected="a complete table",
            cause="genes that were filtered out, or contrasts that cannot be estimated",
            fix="genes='intersection' (--genes intersection) scores the genes that were tested in "
            "every condition; or drop the conditions",
        )
    predicted = _numbers(prediction, name)
    return true, _filled(predicted, missing, name)


def _filled(predicted: pd.DataFrame, missing: Missing, name: str) -> pd.DataFrame:
    """A prediction without holes: refused where it has some, or with zeros in them."""
    if missing not in get_args(Missing):
        raise ConfigError(
            f"missing={missing!r} is not known", expected=" or ".join(get_args(Missing))
        )
    holes = predicted.isna().to_numpy()
    if not holes.any():
        return predicted
    rows = predicted.index[np.flatnonzero(holes.any(axis=1))]
    named = [" | ".join(map(str, row)) if isinstance(row, tuple) else str(row) for row in rows]
    what = f"{name} has {int(holes.sum())} missing values, in {len(rows)} of {len(holes)} rows: "
    if missing == "refuse":
        raise SchemaError(
            what + f"{shorten(named, 3)}; the first {place(holes, predicted)}",
            expected="a finite number for every condition and gene",
            fix="missing='zeros' (--missing zeros) counts them as 0, as Open Problems does",
        )
    _logger.warning("%s; they count as 0, as in Open Problems", what + shorten(named, 3))
    # Not dropped: each method would be scored on genes of its own.
    return predicted.fillna(0.0)


def _tested(truth: pd.DataFrame, prediction: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables on the genes that have a true value in every condition."""
    tested = truth.notna().all().to_numpy()
    if tested.all() or not tested.any():  # none: the error names a condition without any
        return truth, prediction
    words = "%d of %d genes were not tested in every condition of the truth, and are left out"
    _logger.warning(words, (~tested).sum(), len(tested))
    return truth.loc[:, tested], prediction.loc[:, tested]


def align_all(
    truth: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    genes: Policy,
    rows: Policy,
    missing: Missing = "refuse",
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Truth and predictions with the same labels: with ``intersection``, what all of them have."""
    if not predictions:
        raise ConfigError("there is no prediction to score", expected="{name: conditions x genes}")
    kept = {}
    for name, table in predictions.items():
        truth, kept[name] = _in_common(truth, table, genes=genes, rows=rows, name=name)
    if genes == "intersection":
        truth, _ = _tested(truth, truth)
    # A second time, since each prediction may have taken labels from the truth that the ones before
    # it still have.
    true, aligned = truth, {}
    for name, table in kept.items():
        table = _select(table, truth.index, truth.columns)
        true, aligned[name] = align(truth, table, missing=missing, name=name)
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
    asked: list[Any] = [
        (truth.index, prediction.index, rows, "conditions", "rows"),
        (truth.columns, prediction.columns, genes, "genes", "genes"),
    ]
    kept, refused = [], []
    for one in asked:
        try:
            kept.append(shared(one[0], one[1], one[2], one[3], one[4], name))
        except SchemaError as error:
            refused.append(error)
    if len(refused) > 1 and all("--" in (error.fix or "") for error in refused):
        # told together: who mends one of them would only then be told of the other
        raise SchemaError(
            "; ".join(error.what for error in refused),
            expected=" and ".join(error.expected or "" for error in refused),
            cause=refused[0].cause,
            fix="rows='intersection', genes='intersection' (--rows intersection --genes "
            "intersection) scores what both have",
        )
    if refused:
        raise refused[0]
    kept_rows, kept_genes = kept
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
        if (told := _told_alike(table, index)) is not None:
            return told
        raise SchemaError(
            f"the conditions of {name} are {_levels(table.index)}, those of the truth "
            f"{_levels(index)}",
            expected="the same labels, for instance (cell_type, compound)",
            fix="set_index(['cell_type', 'compound'])",
        )
    # Unnamed levels stay: their order is all that is known of them.
    names = list(map(str, index.names))
    named = isinstance(table.index, pd.MultiIndex) and None not in index.names
    same = named and sorted(names) == sorted(map(str, table.index.names))
    return table.reorder_levels(names) if same else table


def _told_alike(table: pd.DataFrame, index: pd.Index) -> pd.DataFrame | None:
    """The table with rows labelled as ``index`` is, where one of them only lacks the cell type.

    A differential expression of all cells together says nothing of their type: it is that of a
    table whose cells are all of one.
    """
    if {table.index.nlevels, index.nlevels} != {1, 2}:
        return None
    both: Any = index if index.nlevels == 2 else table.index
    if list(both.names) != list(_CONDITION) or both.get_level_values(0).nunique() != 1:
        return None
    if both is index:
        kind = both.get_level_values(0)[0]
        labels = pd.MultiIndex.from_product([[kind], table.index.astype(str)], names=_CONDITION)
        return table.set_axis(labels, axis=0)
    return table.set_axis(table.index.get_level_values(1), axis=0)


def _levels(index: pd.Index) -> str:
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
    lacks = f"{len(absent)} of {len(truth)} are absent ({shorten(absent, 3)})"
    more = f"{len(extra)} are unknown to the truth ({shorten(extra, 3)})"
    told = ((absent, lacks), (extra, more))
    difference = "; ".join(text for labels, text in told if len(labels))
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
        _logger.warning(
            "%s: scoring %d of %d %s; %s", name, len(both), len(truth), what, difference
        )
    return both


def _select(table: pd.DataFrame, rows: pd.Index, genes: pd.Index) -> pd.DataFrame:
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
        edges = np.quantile(column.dropna(), np.linspace(0, 1, _PARTS + 1))
        if (column.dropna() % 1 == 0).all():
            edges = np.ceil(edges)  # "35 to 57.67 genes": the same groups by a whole number
        edges = np.unique(edges)
    if len(edges) < 3:
        return column.map(lambda value: f"{value:g}")
    last = len(edges) - 2
    codes = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, last)
    # The number comes first, so that ranges sorted as text are in order.
    labels = [
        f"{code + 1}: {edges[code]:g} to {'' if code == last else 'below '}{edges[code + 1]:g}"
        for code in codes
    ]
    return pd.Series(labels, column.index)


def find_labels(
    index: pd.Index, conditions: pd.DataFrame | None, name: str | None
) -> pd.Series | None:
    """A label of each condition: a level of the index, or a column about conditions."""
    if name is None:
        return None
    if name in index.names:
        return pd.Series(index.get_level_values(name), index)
    if conditions is not None and name in conditions:
        return conditions[name].reindex(index)
    columns = [] if conditions is None else list(conditions)
    raise SchemaError(
        f"nothing about conditions is called {name!r}",
        expected=f"one of {shorten([*index.names, *columns], 12)}",
    )
