"""The labelled tables that every baseline takes and gives back: conditions (cell_type, compound) x genes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.errors import SchemaError, shorten

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Labels = NDArray[np.object_]

KEY: Final = ("cell_type", "compound")


@dataclass(frozen=True)
class TrainTable:
    """The training rows: ``values`` (rows, genes), the two labels of each row, the genes."""

    values: Array
    cell_types: Labels
    compounds: Labels
    genes: pd.Index

    @property
    def index(self) -> pd.MultiIndex:
        """(cell_type, compound) of each row."""
        return pd.MultiIndex.from_arrays([self.cell_types, self.compounds], names=KEY)


@dataclass(frozen=True)
class Conditions:
    """The conditions to predict, in the order they were asked for."""

    cell_types: Labels
    compounds: Labels

    def __len__(self) -> int:
        return len(self.cell_types)

    @property
    def index(self) -> pd.MultiIndex:
        """(cell_type, compound) of each condition."""
        return pd.MultiIndex.from_arrays([self.cell_types, self.compounds], names=KEY)

    def names(self, chosen: NDArray[np.bool_]) -> list[str]:
        """Readable names of some of them."""
        cells, compounds = self.cell_types[chosen], self.compounds[chosen]
        return [f"{cell} | {compound}" for cell, compound in zip(cells, compounds, strict=True)]


def read_train(train: pd.DataFrame, *, canonical: bool = True) -> TrainTable:
    """The training table, refused where a label is missing or repeated or a value is not a finite number.

    ``canonical`` has the rows sorted by label and stored row by row, so that nothing, the draws of a random baseline
    and the last bit of a sum included, depends on how they were given.
    """
    if not isinstance(train, pd.DataFrame):
        raise SchemaError(f"the training table is a {type(train).__name__}", expected="a pandas DataFrame")
    found = read_conditions(train.index, "the training table")
    if train.shape[1] == 0:
        raise SchemaError("the training table has no genes", expected="conditions x genes")
    if not train.columns.is_unique:
        twice = train.columns[train.columns.duplicated()]
        raise SchemaError(f"the training table holds genes twice: {shorten(twice)}", fix="drop the repeated columns")
    values = numeric(train)
    if not canonical:
        return TrainTable(values, found.cell_types, found.compounds, train.columns)
    order = np.lexsort((found.compounds.astype(str), found.cell_types.astype(str)))
    rows = np.ascontiguousarray(values if (order == np.arange(len(order))).all() else values[order])
    return TrainTable(rows, found.cell_types[order], found.compounds[order], train.columns)


def numeric(frame: pd.DataFrame) -> Array:
    """The values (rows, genes) in float64; the first one that is no finite number is named."""
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        text = [name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
        raise SchemaError(f"columns {shorten(text)} hold no numbers", expected="genes only", fix="drop them") from error
    finite = np.isfinite(values)
    if not finite.all():
        row, gene = divmod(int((~finite).argmax()), values.shape[1])
        raise SchemaError(
            f"{int((~finite).sum())} values are missing or infinite; the first is gene {frame.columns[gene]!r} of "
            f"{' | '.join(map(str, frame.index[row]))}",
            expected="a complete table of finite numbers",
            cause="contrasts that are not estimable, or genes that were filtered out in one cell type",
            fix="drop these rows or genes, or fill them knowingly: table.dropna(axis=1)",
        )
    return values


def read_conditions(conditions: pd.MultiIndex | pd.DataFrame | pd.Index, what: str = "the conditions") -> Conditions:
    """Cell type and compound by name, of a MultiIndex or of the columns of a table (``read_id_map`` gives such)."""
    names = list(conditions.columns if isinstance(conditions, pd.DataFrame) else conditions.names)
    if not set(KEY) <= set(names):
        raise SchemaError(
            f"{what} has labels {shorten(names)}",
            expected="(cell_type, compound): the levels of a MultiIndex, or columns",
            fix="table.set_index(['cell_type', 'compound'])",
        )
    if isinstance(conditions, pd.DataFrame):
        columns = [conditions[k].to_numpy(dtype=object) for k in KEY]
    else:
        columns = [conditions.get_level_values(k).to_numpy(dtype=object) for k in KEY]
    if not len(columns[0]):
        raise SchemaError(f"{what} has no rows", expected="at least one condition")
    if any(pd.isna(column).any() for column in columns):
        raise SchemaError(f"{what} has rows without a cell type or a compound", fix="complete or drop these rows")
    cells, compounds = (np.array([str(v) for v in column], dtype=object) for column in columns)
    found = Conditions(cells, compounds)
    twice = found.index.duplicated()
    if twice.any():
        raise SchemaError(f"{what} names conditions twice: {shorten(found.names(twice))}", fix="drop the repetitions")
    return found


def in_key_order(index: pd.Index) -> pd.MultiIndex:
    """The same labels with the cell type first."""
    return read_conditions(index, "the table").index


def unknown(wanted: Labels, known: Labels) -> NDArray[np.bool_]:
    """Which of the wanted labels (conditions,) are not among the known ones."""
    return ~pd.Index(wanted).isin(pd.unique(known))


def tell_fallback(name: str, conditions: Conditions, chosen: NDArray[np.bool_], falls_back_to: str) -> None:
    """Log the conditions (conditions,) that get something simpler than the baseline promises."""
    if chosen.any():
        shown = shorten(conditions.names(chosen), 3)
        log.warning("%s: %d conditions fall back to %s: %s", name, int(chosen.sum()), falls_back_to, shown)


def levels(labels: Labels) -> Labels:
    """The distinct labels in sorted order."""
    return np.array(sorted(set(labels)), dtype=object)


def one_hot(labels: Labels, known: Sequence[str] | Labels) -> Array:
    """Indicators (labels, known); a label that is not known has none."""
    return (np.asarray(labels)[:, None] == np.asarray(known, dtype=object)[None, :]).astype(float)
