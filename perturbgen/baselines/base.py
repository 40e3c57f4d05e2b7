"""What a baseline is: fit on labelled rows, predict labelled rows; and the linear smoothers, which are most of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import norm, t

from perturbgen.baselines.table import Array, Conditions, TrainTable, read_conditions, read_train
from perturbgen.config import Settings
from perturbgen.errors import ConfigError, PerturbgenError

SPARSE = 0.1  # below this share of non-zeros a sparse product is faster
REPEATED = 0.2  # below this share of distinct rows it pays to copy the result


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


S = TypeVar("S", bound=Settings)


class Baseline(ABC, Generic[S]):
    """The shell around a baseline: labels are checked and joined here, the arithmetic is in the subclasses."""

    settings_class: ClassVar[type[Settings]] = NoSettings
    canonical: ClassVar[bool] = True  # whether the rows are put in the order of their labels first

    def __init__(self, settings: S | None = None) -> None:
        self.settings: S = settings if settings is not None else cast("S", self.settings_class())
        self._table: TrainTable | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

    @property
    def table(self) -> TrainTable:
        """The training rows it was fitted on."""
        if self._table is None:
            raise PerturbgenError(f"{self.name} has not been fitted", fix="call fit(train, rng=...) first")
        return self._table

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Learn from rows labelled (cell_type, compound), columns genes."""
        self._table = read_train(train, canonical=self.canonical)
        self._fit(self._table, rng)
        return self

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """A row for every condition, in the order asked for, with the genes of the training table."""
        table, wanted = self.table, read_conditions(conditions)
        return pd.DataFrame(self._predict(wanted), wanted.index, table.genes, copy=False)

    def predict_interval(self, conditions: pd.MultiIndex | pd.DataFrame, *, level: float = 0.9) -> Interval:
        """Where a new measurement of each condition should lie with probability ``level``."""
        if not 0 < level < 1:
            raise ConfigError(f"an interval of level {level:g}", expected="between 0 and 1")
        table, wanted = self.table, read_conditions(conditions)
        half = self._half_width(wanted, level)
        if half is None:
            raise ConfigError(f"{self.name} has no prediction intervals", fix="perturbgen baselines lists who has")
        centre = self._predict(wanted)
        ends = (pd.DataFrame(v, wanted.index, table.genes, copy=False) for v in (centre - half, centre + half))
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


class LinearSmoother(Baseline[S]):
    """A baseline that predicts weighted sums of training rows: prediction = W Y, W (conditions, rows).

    With rows y = f + e, e of variance s² in each gene, a new row's error has variance s² (1 + Σ w²), and s² is the sum
    of squared residuals over n − tr(2H − HHᵀ), H the weights of the training rows themselves.
    """

    canonical: ClassVar[bool] = False  # sums do not care, and sorting a large table takes longer than most of them

    @abstractmethod
    def weights(self, wanted: Conditions) -> Array | sp.csr_array:
        """W (conditions, rows)."""

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        """Weights come from the labels alone, when they are asked for."""

    def _predict(self, wanted: Conditions) -> Array:
        return apply_weights(self.weights(wanted), self.table.values)

    def _half_width(self, wanted: Conditions, level: float) -> Array | None:
        table = self.table
        hat = dense(self.weights(Conditions(table.cell_types, table.compounds)))
        freedom = len(hat) - 2 * np.trace(hat) + (hat**2).sum()
        residual = table.values - hat @ table.values
        if freedom < 1:
            return np.full((len(wanted), len(table.genes)), np.inf)
        sd = np.sqrt((residual**2).sum(axis=0) / freedom)
        spread = np.sqrt(1 + (dense(self.weights(wanted)) ** 2).sum(axis=1))
        return float(t.ppf((1 + level) / 2, freedom)) * np.outer(spread, sd)


def apply_weights(weights: Array | sp.csr_array, values: Array) -> Array:
    """W Y (conditions, genes): equal rows of W are multiplied once, and a W of few non-zeros as a sparse one."""
    distinct, inverse = np.unique(dense(weights), axis=0, return_inverse=True)
    if len(distinct) < REPEATED * weights.shape[0]:
        return np.asarray(distinct @ values)[inverse.ravel()]
    if not sp.issparse(weights) and np.count_nonzero(weights) < SPARSE * weights.size:
        weights = sp.csr_array(weights)
    return np.asarray(weights @ values)


def dense(weights: Array | sp.csr_array) -> Array:
    """Weights as an ordinary array."""
    return np.asarray(cast("Any", weights).toarray() if sp.issparse(weights) else weights)


def normal_half_width(sd: Array, conditions: int, level: float) -> Array:
    """Half widths (conditions, genes) of normal intervals with one standard deviation a gene (genes,)."""
    return np.broadcast_to(norm.ppf((1 + level) / 2) * sd, (conditions, len(sd)))
