"""What a baseline is: fit on labelled rows, predict labelled rows; and the linear smoothers, which are most of them.

Scales that signed −log10 p values can be modelled on.

The labelled tables that every baseline takes and gives back: conditions (cell_type, compound) x genes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import (
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
    cast,
    runtime_checkable,
)

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp
from scipy.stats import norm, t

from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError, shorten

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


def _read_train(train: pd.DataFrame, *, canonical: bool = True) -> TrainTable:
    """The training table, refused where a label is missing or repeated or a value is not a finite number.

    ``canonical`` has the rows sorted by label and stored row by row, so that nothing, the draws of a random baseline
    and the last bit of a sum included, depends on how they were given.
    """
    if not isinstance(train, pd.DataFrame):
        raise SchemaError(
            f"the training table is a {type(train).__name__}", expected="a pandas DataFrame"
        )
    found = read_conditions(train.index, "the training table")
    if train.shape[1] == 0:
        raise SchemaError("the training table has no genes", expected="conditions x genes")
    if not train.columns.is_unique:
        twice = train.columns[train.columns.duplicated()]
        raise SchemaError(
            f"the training table holds genes twice: {shorten(twice)}",
            fix="drop the repeated columns",
        )
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
        text = [
            name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)
        ]
        raise SchemaError(
            f"columns {shorten(text)} hold no numbers", expected="genes only", fix="drop them"
        ) from error
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


def read_conditions(
    conditions: pd.MultiIndex | pd.DataFrame | pd.Index, what: str = "the conditions"
) -> Conditions:
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
        raise SchemaError(
            f"{what} has rows without a cell type or a compound", fix="complete or drop these rows"
        )
    cells, compounds = (np.array([str(v) for v in column], dtype=object) for column in columns)
    found = Conditions(cells, compounds)
    twice = found.index.duplicated()
    if twice.any():
        raise SchemaError(
            f"{what} names conditions twice: {shorten(found.names(twice))}",
            fix="drop the repetitions",
        )
    return found


def in_key_order(index: pd.Index) -> pd.MultiIndex:
    """The same labels with the cell type first."""
    return read_conditions(index, "the table").index


def unknown(wanted: Labels, known: Labels) -> NDArray[np.bool_]:
    """Which of the wanted labels (conditions,) are not among the known ones."""
    return ~pd.Index(wanted).isin(pd.unique(known))


def tell_fallback(
    name: str, conditions: Conditions, chosen: NDArray[np.bool_], falls_back_to: str
) -> None:
    """Log the conditions (conditions,) that get something simpler than the baseline promises."""
    if chosen.any():
        shown = shorten(conditions.names(chosen), 3)
        log.warning(
            "%s: %d conditions fall back to %s: %s", name, int(chosen.sum()), falls_back_to, shown
        )


def levels(labels: Labels) -> Labels:
    """The distinct labels in sorted order."""
    return np.array(sorted(set(labels)), dtype=object)


def one_hot(labels: Labels, known: Sequence[str] | Labels) -> Array:
    """Indicators (labels, known); a label that is not known has none."""
    return (np.asarray(labels)[:, None] == np.asarray(known, dtype=object)[None, :]).astype(float)


_SPARSE = 0.1  # below this share of non-zeros a sparse product is faster
_REPEATED = 0.2  # below this share of distinct rows it pays to copy the result


@runtime_checkable
class Predictor(Protocol):
    """Whatever predicts a DE table; generative models come in this form too."""

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Learn from rows labelled (cell_type, compound), columns genes."""

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """A row for every condition, in the order asked for, with the genes of the training table."""


class Interval(NamedTuple):
    """Lower and upper ends for every condition and gene."""

    lower: pd.DataFrame
    upper: pd.DataFrame


class NoSettings(Settings):
    """There is nothing to set."""


_S = TypeVar("S", bound=Settings)


class Baseline(ABC, Generic[_S]):
    """The shell around a baseline: labels are checked and joined here, the arithmetic is in the subclasses."""

    settings_class: ClassVar[type[Settings]] = NoSettings
    canonical: ClassVar[bool] = True  # whether the rows are put in the order of their labels first

    def __init__(self, settings: _S | None = None) -> None:
        self.settings: _S = settings if settings is not None else cast("_S", self.settings_class())
        self._table: TrainTable | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

    @property
    def table(self) -> TrainTable:
        """The training rows it was fitted on."""
        if self._table is None:
            raise PerturbgenError(
                f"{self.name} has not been fitted", fix="call fit(train, rng=...) first"
            )
        return self._table

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Learn from rows labelled (cell_type, compound), columns genes."""
        self._table = _read_train(train, canonical=self.canonical)
        self._fit(self._table, rng)
        return self

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """A row for every condition, in the order asked for, with the genes of the training table."""
        table, wanted = self.table, read_conditions(conditions)
        return pd.DataFrame(self._predict(wanted), wanted.index, table.genes, copy=False)

    def predict_interval(
        self, conditions: pd.MultiIndex | pd.DataFrame, *, level: float = 0.9
    ) -> Interval:
        """Where a new measurement of each condition should lie with probability ``level``."""
        if not 0 < level < 1:
            raise ConfigError(f"an interval of level {level:g}", expected="between 0 and 1")
        table, wanted = self.table, read_conditions(conditions)
        half = self._half_width(wanted, level)
        if half is None:
            raise ConfigError(
                f"{self.name} has no prediction intervals", fix="perturbgen baselines lists who has"
            )
        centre = self._predict(wanted)
        ends = (
            pd.DataFrame(v, wanted.index, table.genes, copy=False)
            for v in (centre - half, centre + half)
        )
        return Interval(*ends)

    @abstractmethod
    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        """Learn from arrays."""

    @abstractmethod
    def _predict(self, wanted: Conditions) -> Array:
        """Values (conditions, genes)."""

    def _half_width(self, wanted: Conditions, level: float) -> Array | None:
        """Half the width of the interval (conditions, genes), where there is one."""
        return None


class LinearSmoother(Baseline[_S]):
    """A baseline that predicts weighted sums of training rows: prediction = W Y, W (conditions, rows).

    With rows y = f + e, e of variance s² in each gene, a new row's error has variance s² (1 + Σ w²), and s² is the sum
    of squared residuals over n − tr(2H − HHᵀ), H the weights of the training rows themselves.
    """

    canonical: ClassVar[bool] = (
        False  # sums do not care, and sorting a large table takes longer than most of them
    )

    @abstractmethod
    def weights(self, wanted: Conditions) -> Array | sp.csr_array:
        """W (conditions, rows)."""

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        """Weights come from the labels alone, when they are asked for."""

    def _predict(self, wanted: Conditions) -> Array:
        return _apply_weights(self.weights(wanted), self.table.values)

    def _half_width(self, wanted: Conditions, level: float) -> Array | None:
        table = self.table
        hat = _dense(self.weights(Conditions(table.cell_types, table.compounds)))
        freedom = len(hat) - 2 * np.trace(hat) + (hat**2).sum()
        residual = table.values - hat @ table.values
        if freedom < 1:
            return np.full((len(wanted), len(table.genes)), np.inf)
        sd = np.sqrt((residual**2).sum(axis=0) / freedom)
        spread = np.sqrt(1 + (_dense(self.weights(wanted)) ** 2).sum(axis=1))
        return float(t.ppf((1 + level) / 2, freedom)) * np.outer(spread, sd)


def _apply_weights(weights: Array | sp.csr_array, values: Array) -> Array:
    """W Y (conditions, genes): equal rows of W are multiplied once, and a W of few non-zeros as a sparse one."""
    distinct, inverse = np.unique(_dense(weights), axis=0, return_inverse=True)
    if len(distinct) < _REPEATED * weights.shape[0]:
        return np.asarray(distinct @ values)[inverse.ravel()]
    if not sp.issparse(weights) and np.count_nonzero(weights) < _SPARSE * weights.size:
        weights = sp.csr_array(weights)
    return np.asarray(weights @ values)


def _dense(weights: Array | sp.csr_array) -> Array:
    """Weights as an ordinary array."""
    return np.asarray(cast("Any", weights).toarray() if sp.issparse(weights) else weights)


def normal_half_width(sd: Array, conditions: int, level: float) -> Array:
    """Half widths (conditions, genes) of normal intervals with one standard deviation a gene (genes,)."""
    return np.broadcast_to(norm.ppf((1 + level) / 2) * sd, (conditions, len(sd)))


Transform = Literal["t", "none"]
_LOG_2, _LOG_10 = np.log(2.0), np.log(10.0)


def _to_t(signed: Array) -> Array:
    """The normal deviate with two-sided p = 10^−|y| and the sign of y: t = sign(y) Φ⁻¹(1 − 10^−|y| / 2).

    Log p enters as it is, so that y = 300 is no infinity. The tails of y, which grow as t², become those of t.
    """
    return -np.sign(signed) * ndtri_exp(-np.abs(signed) * _LOG_10 - _LOG_2)


def _from_t(t: Array) -> Array:
    """The inverse: y = sign(t) · −log10(2 Φ(−|t|))."""
    return -np.sign(t) * (log_ndtr(-np.abs(t)) + _LOG_2) / _LOG_10


def forward(values: Array, transform: Transform) -> Array:
    """The values on the scale that is modelled."""
    return _to_t(values) if transform == "t" else values


def backward(values: Array, transform: Transform) -> Array:
    """The values on the scale of the table."""
    return _from_t(values) if transform == "t" else values
