"""What a baseline is: fit on labelled rows, predict labelled rows.

Most baselines are linear smoothers, whose predictions are weighted sums of training rows.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar, cast, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import t

from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError, shorten
from perturbgen.core.tables import CONDITION

_log = logging.getLogger(__name__)

_SPARSE: Final = 0.1  # below this share of non-zeros a sparse product is faster
_REPEATED: Final = 0.2  # below this share of distinct rows it pays to copy the result
_WORDS: Final = {"cell_type": "cell type", "compound": "compound"}


@dataclass(frozen=True)
class ConditionList:
    """The cell type and the compound of each row, as text, in the order given."""

    cell_types: np.ndarray
    compounds: np.ndarray

    @classmethod
    def read(
        cls, labels: pd.MultiIndex | pd.DataFrame | pd.Index, what: str = "the conditions"
    ) -> ConditionList:
        """Cell type and compound by name, from the levels of an index or the columns of a table."""
        names: list[Any]
        column: Callable[[str], Any]
        if isinstance(labels, pd.DataFrame):
            names, column = list(labels.columns), labels.__getitem__
        else:
            names, column = list(labels.names), labels.get_level_values
        if not set(CONDITION) <= set(names):
            raise SchemaError(
                f"{what} has labels {shorten(names)}",
                expected="(cell_type, compound): the levels of a MultiIndex, or columns",
                fix="table.set_index(['cell_type', 'compound'])",
            )
        columns = [column(key) for key in CONDITION]
        if not len(columns[0]):
            raise SchemaError(f"{what} has no rows", expected="at least one condition")
        if any(pd.isna(values).any() for values in columns):
            raise SchemaError(
                f"{what} has rows without a cell type or a compound",
                fix="complete or drop these rows",
            )
        # As text, whatever the labels came as (categories, numbers): they join by what they read.
        found = ConditionList(*(np.array([str(v) for v in c], dtype=object) for c in columns))
        # A row that is there twice would count twice in every mean, without a word.
        twice = found.index.duplicated()
        if twice.any():
            raise SchemaError(
                f"{what} names conditions twice: {shorten(found.names(twice))}",
                fix="drop the repetitions",
            )
        return found

    def __len__(self) -> int:
        return len(self.cell_types)

    def labels(self, key: str) -> np.ndarray:
        """One of the two labels, ``cell_type`` or ``compound``, of each row."""
        return self.cell_types if key == "cell_type" else self.compounds

    @property
    def index(self) -> pd.MultiIndex:
        """(cell_type, compound) of each row."""
        return pd.MultiIndex.from_arrays([self.cell_types, self.compounds], names=CONDITION)

    def names(self, chosen: np.ndarray) -> list[str]:
        """Readable names of the rows that a mask (rows,) chooses."""
        return [" | ".join(label) for label in self.index[chosen]]


@dataclass(frozen=True)
class TrainTable(ConditionList):
    """The rows to learn from, with their ``values`` (rows, genes)."""

    values: np.ndarray
    genes: pd.Index

    @classmethod
    def of(cls, train: pd.DataFrame, *, canonical: bool = True) -> TrainTable:
        """Refused where a label is missing or repeated or a value is not a finite number.

        ``canonical`` has the rows sorted by label and stored row by row, so that nothing, the draws
        of a random baseline and the last bit of a sum included, depends on how they were given.
        """
        if not isinstance(train, pd.DataFrame):
            raise SchemaError(
                f"the training table is a {type(train).__name__}", expected="a pandas DataFrame"
            )
        found = ConditionList.read(train.index, "the training table")
        if train.shape[1] == 0:
            raise SchemaError("the training table has no genes", expected="conditions x genes")
        if not train.columns.is_unique:
            twice = shorten(train.columns[train.columns.duplicated()])
            raise SchemaError(
                f"the training table holds genes twice: {twice}", fix="drop the repeated columns"
            )
        values = _finite_values(train)
        if not canonical:
            return cls(found.cell_types, found.compounds, values, train.columns)
        order = np.lexsort((found.compounds.astype(str), found.cell_types.astype(str)))
        sorted_already = (order == np.arange(len(order))).all()
        rows = np.ascontiguousarray(values if sorted_already else values[order])
        return cls(found.cell_types[order], found.compounds[order], rows, train.columns)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as the labelled table that predictors are fitted on."""
        return pd.DataFrame(self.values, self.index, self.genes, copy=False)

    def additive_weights(self, cell_types: np.ndarray, compounds: np.ndarray) -> np.ndarray:
        """Weights (conditions, rows) of y = cell type + compound, fitted by least squares.

        A label without a training row stands for the average one.
        """
        known = np.unique(self.cell_types), np.unique(self.compounds)
        design = np.hstack([one_hot(self.cell_types, known[0]), one_hot(self.compounds, known[1])])
        asked = zip((cell_types, compounds), known, strict=True)
        wanted = np.hstack([one_hot(labels, names, average=True) for labels, names in asked])
        return wanted @ np.linalg.pinv(design)


def _finite_values(frame: pd.DataFrame) -> np.ndarray:
    """The values (rows, genes) in float64; the first one that is no finite number is named."""
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        text = frame.columns[~frame.dtypes.map(pd.api.types.is_numeric_dtype).to_numpy(bool)]
        raise SchemaError(
            f"columns {shorten(text)} hold no numbers", expected="genes only", fix="drop them"
        ) from error
    # One NaN would reach every gene and condition through the products that follow.
    finite = np.isfinite(values)
    if not finite.all():
        row, gene = divmod(int((~finite).argmax()), values.shape[1])
        raise SchemaError(
            f"{int((~finite).sum())} values are missing or infinite; the first is gene "
            f"{frame.columns[gene]!r} of {' | '.join(map(str, frame.index[row]))}",
            expected="a complete table of finite numbers",
            cause="contrasts that are not estimable, or genes filtered out in one cell type",
            fix="drop these rows or genes, or fill them knowingly: table.dropna(axis=1)",
        )
    return values


def one_hot(labels: np.ndarray, known: np.ndarray, *, average: bool = False) -> np.ndarray:
    """Indicators (labels, known); an unknown label has none, or an equal share (``average``)."""
    asked = np.asarray(labels)[:, None]
    hot = (asked == np.asarray(known, dtype=object)[None, :]).astype(float)
    if average:
        hot[hot.sum(axis=1) == 0] = 1 / len(known)
    return hot


@runtime_checkable
class Predictor(Protocol):
    """Whatever predicts a DE table; generative models come in this form too."""

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Learn from rows labelled (cell_type, compound), columns genes."""

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """A row for every condition, in the order asked for, with the training table's genes."""


_S = TypeVar("_S", bound=Settings)


class Baseline(ABC, Generic[_S]):
    """The shell around a baseline: labels are checked and joined here, subclasses do arithmetic."""

    settings_class: ClassVar[type[Settings]] = Settings
    canonical: ClassVar[bool] = True  # whether the rows are put in the order of their labels first

    def __init__(self, settings: _S | None = None) -> None:
        self.settings: _S = settings if settings is not None else cast("_S", self.settings_class())
        self._table: TrainTable | None = None

    @property
    def name(self) -> str:
        """How messages call it: its class, which is private to its file."""
        return type(self).__name__.removeprefix("_")

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.__repr_args__())
        if self._table is None:
            return f"{self.name}({settings}), not fitted yet"
        rows, genes = self._table.values.shape
        return f"{self.name}({settings}), fitted on {rows:,} conditions x {genes:,} genes"

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
        # Kept before the fit: subclasses reach the rows through ``table`` while they learn.
        self._table = TrainTable.of(train, canonical=self.canonical)
        self._fit(self._table, rng)
        return self

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """A row for every condition, in the order asked for, with the training table's genes."""
        table, wanted = self.table, ConditionList.read(conditions)
        return pd.DataFrame(self._predict(wanted), wanted.index, table.genes, copy=False)

    def predict_interval(
        self, conditions: pd.MultiIndex | pd.DataFrame, *, level: float = 0.9
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Lower and upper ends of where a new measurement lies with probability ``level``."""
        if not 0 < level < 1:
            raise ConfigError(f"an interval of level {level:g}", expected="between 0 and 1")
        table, wanted = self.table, ConditionList.read(conditions)
        half = self._half_width(wanted, level)
        if half is None:
            raise ConfigError(
                f"{self.name} has no prediction intervals", fix="perturbgen baseline lists which do"
            )
        # The same centre as ``predict`` has, so that an interval always holds the prediction.
        centre = self._predict(wanted)
        lower, upper = (
            pd.DataFrame(end, wanted.index, table.genes, copy=False)
            for end in (centre - half, centre + half)
        )
        return lower, upper

    @abstractmethod
    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        """Learn from arrays."""

    @abstractmethod
    def _predict(self, wanted: ConditionList) -> np.ndarray:
        """Values (conditions, genes)."""

    def _half_width(self, wanted: ConditionList, level: float) -> np.ndarray | None:
        """Half the width of the interval (conditions, genes), where there is one."""
        return None

    def _lacks(self, wanted: ConditionList, key: str) -> np.ndarray:
        """Which of the conditions (conditions,) have a cell type or compound never trained on."""
        return ~pd.Index(wanted.labels(key)).isin(pd.unique(self.table.labels(key)))

    def _tell(self, wanted: ConditionList, chosen: np.ndarray, falls_back_to: str) -> None:
        """Log the conditions (conditions,) that get something simpler than what is promised."""
        if chosen.any():
            count, shown = int(chosen.sum()), shorten(wanted.names(chosen), 3)
            _log.warning(
                "%s: %d conditions fall back to %s: %s%s",
                *(self.name, count, falls_back_to, shown, self._nearest(wanted, chosen)),
            )

    def _nearest(self, wanted: ConditionList, chosen: np.ndarray) -> str:
        """A cell type nobody measured may be a slip of the pen: the one that was meant."""
        for name in pd.unique(wanted.labels("cell_type")[chosen]):
            known = pd.unique(self.table.labels("cell_type"))
            near = get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.8)
            if name not in known and near:
                return f" (did you mean {near[0]!r}?)"
        return ""

    def _tell_unknown(self, wanted: ConditionList, *, cell_type: str, compound: str) -> None:
        """Log what conditions of an unknown cell type get, and those of an unknown compound."""
        self._tell(wanted, self._lacks(wanted, "cell_type"), cell_type)
        self._tell(wanted, self._lacks(wanted, "compound"), compound)

    def _mean_weights(self, wanted: ConditionList, order: tuple[str, str]) -> sp.csr_array:
        """Weights (conditions, rows) of the mean over the rows that share the first label.

        Where no row does, over those that share the second; where none does either, over all rows.
        """
        rows = len(self.table)
        lost = [self._lacks(wanted, key) for key in order]
        # Sparse: the mean of a compound is a handful of weights among hundreds of rows.
        first, second = (
            _group_weights(self.table.labels(key), wanted.labels(key)) for key in order
        )
        stranger = lost[0] & lost[1]
        self._tell(wanted, lost[0] & ~lost[1], f"the mean of the {_WORDS[order[1]]}")
        self._tell(wanted, stranger, "the mean of all training rows")
        known, unknown = (sp.diags_array(mask.astype(float)) for mask in (~lost[0], lost[0]))
        result = known @ first + unknown @ second
        if not stranger.any():
            return sp.csr_array(result)
        scatter = sp.csr_array(np.eye(len(wanted))[:, stranger])
        everything = sp.csr_array(np.full((int(stranger.sum()), rows), 1 / rows))
        return sp.csr_array(result + scatter @ everything)


def _group_weights(labels: np.ndarray, asked: np.ndarray) -> sp.csr_array:
    """Mean weights (conditions, rows) over the rows of each label; none where no row has it."""
    known = np.unique(labels)
    hot = one_hot(labels, known)
    member = sp.csr_array(hot / np.maximum(hot.sum(axis=0), 1))
    return sp.csr_array(sp.csr_array(one_hot(asked, known)) @ member.T)


class LinearSmoother(Baseline[_S]):
    """Predicts weighted sums of training rows: prediction = W Y, W (conditions, rows).

    With rows y = f + e, e of variance s² in each gene, a new row's error has variance
    s² (1 + Σ w²), and s² is the sum of squared residuals over n − tr(2H − HHᵀ), H the weights of
    the training rows themselves.
    """

    # A sum is the same in any order of its terms, and sorting a large table takes longer.
    canonical: ClassVar[bool] = False

    @abstractmethod
    def weights(self, wanted: ConditionList) -> np.ndarray | sp.csr_array:
        """W (conditions, rows)."""

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        """Weights come from the labels alone, when they are asked for."""

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        weights, values = self.weights(wanted), self.table.values
        # Conditions with equal weights (all of an unknown compound, say) are multiplied once.
        distinct, inverse = np.unique(_full_weights(weights), axis=0, return_inverse=True)
        if len(distinct) < _REPEATED * weights.shape[0]:
            return np.asarray(distinct @ values)[inverse.ravel()]
        if not sp.issparse(weights) and np.count_nonzero(weights) < _SPARSE * weights.size:
            weights = sp.csr_array(weights)
        return np.asarray(weights @ values)

    def _half_width(self, wanted: ConditionList, level: float) -> np.ndarray | None:
        table = self.table
        hat = _full_weights(self.weights(table))
        freedom = len(hat) - 2 * np.trace(hat) + (hat**2).sum()
        residual = table.values - hat @ table.values
        # As many parameters as rows leave no residual, from which nothing is known of the noise.
        if freedom < 1:
            return np.full((len(wanted), len(table.genes)), np.inf)
        sd = np.sqrt((residual**2).sum(axis=0) / freedom)
        spread = np.sqrt(1 + (_full_weights(self.weights(wanted)) ** 2).sum(axis=1))
        return float(t.ppf((1 + level) / 2, freedom)) * np.outer(spread, sd)


def _full_weights(weights: np.ndarray | sp.csr_array) -> np.ndarray:
    return np.asarray(cast("Any", weights).toarray() if sp.issparse(weights) else weights)
