"""Metrics that compare two samples of cells: (cells, features) of truth and of prediction, numbers of cells may differ.

Distances in thousands of genes say little; give components of a PCA that was fitted on the training cells, and say so.

``score_cells``: true and predicted cells of each condition, to a table of metrics x conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array, divide
from perturbgen.evaluate.align import Policy, shared
from perturbgen.evaluate.records import choose_metrics

_BLOCK = 1024  # rows of one block of distances: memory stays at block x cells


def _check_cells(values: Array, name: str) -> Array:
    """The cells as float64 (cells, features), finite, at least one."""
    cells = np.asarray(values, dtype=float)
    if cells.ndim != 2 or not cells.size:
        raise SchemaError(
            f"{name} has shape {cells.shape}", expected="cells x features, at least one of each"
        )
    wrong = ~np.isfinite(cells)
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), cells.shape[1])
        raise SchemaError(
            f"{name} has {int(wrong.sum())} values that are not finite, the first in cell {row}, feature {column}",
            expected="finite numbers",
        )
    return cells


def _squared_distances(x: Array, y: Array) -> Iterator[Array]:
    """Blocks (rows of x, cells of y) of ‖x − y‖²; exactly 0 for equal cells, where a product leaves dust."""
    centre = x.mean(axis=0)
    x, y = x - centre, y - centre
    size_x, size_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    dust = 64 * np.finfo(float).eps * (size_x.max() + size_y.max())
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = size_x[rows, None] + size_y[None] - 2 * (x[rows] @ y.T)
        block[block < dust] = 0
        yield block


def _mean_over_pairs(
    x: Array, y: Array, functions: Sequence[Callable[[Array], Array]]
) -> list[float]:
    """The means over all pairs of functions of the squared distance."""
    sums = np.zeros(len(functions))
    for block in _squared_distances(x, y):
        sums += [function(block).sum() for function in functions]
    return list(sums / (len(x) * len(y)))


@dataclass(frozen=True, eq=False)
class _CellPair:
    """True and predicted cells (cells, features) and the pair means that several metrics share."""

    truth: Array
    prediction: Array

    @cached_property
    def bandwidth(self) -> float:
        """The kernel's h."""
        return _kernel_bandwidth(self.truth)

    @cached_property
    def discrepancies(self) -> tuple[float, float]:
        """Squared energy distance and MMD² in one pass over the distances."""
        width = self.bandwidth
        functions = (np.sqrt, lambda d: np.exp(d / (-2 * width**2)))
        pairs = (
            (self.truth, self.prediction),
            (self.truth, self.truth),
            (self.prediction, self.prediction),
        )
        across, true, predicted = (_mean_over_pairs(x, y, functions) for x, y in pairs)
        energy = 2 * across[0] - true[0] - predicted[0]
        return max(energy, 0.0), max(true[1] + predicted[1] - 2 * across[1], 0.0)


def _energy_distance_squared(truth: Array, prediction: Array) -> float:
    """2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖ over all pairs, cells with themselves included (Székely and Rizzo; cell-eval)."""
    return _energy(_check_cells(truth, "the truth"), _check_cells(prediction, "the prediction"))


def _energy(x: Array, y: Array) -> float:
    """The squared energy distance of checked cells."""
    across, true, predicted = (
        _mean_over_pairs(a, b, [np.sqrt])[0] for a, b in ((x, y), (x, x), (y, y))
    )
    return max(2 * across - true - predicted, 0.0)


def _energy_distance(truth: Array, prediction: Array) -> float:
    """The root of :func:`energy_distance_squared`: a distance, and in one dimension scipy's ``energy_distance``."""
    return float(np.sqrt(_energy_distance_squared(truth, prediction)))


def _energy_distance_sqeuclidean(truth: Array, prediction: Array) -> float:
    """2 E‖X−Y‖² − E‖X−X'‖² − E‖Y−Y'‖², which is 2 ‖mean X − mean Y‖² (scPerturb, pertpy)."""
    difference = np.mean(truth, axis=0) - np.mean(prediction, axis=0)
    return float(2 * difference @ difference)


def _kernel_bandwidth(truth: Array) -> float:
    """h with 2h² the mean squared distance of two true cells; 1 where all true cells are the same."""
    spread = float(np.var(truth, axis=0).sum())
    return float(np.sqrt(spread)) if spread > 0 else 1.0


def _mmd_squared(truth: Array, prediction: Array, *, bandwidth: float | None = None) -> float:
    """E k(X,X') + E k(Y,Y') − 2 E k(X,Y), k = exp(−‖x−y‖² / 2h²), over all pairs (Gretton et al. 2012, biased).

    ``bandwidth`` h is by default :func:`kernel_bandwidth` of the truth, which a prediction cannot change.
    """
    x, y = _check_cells(truth, "the truth"), _check_cells(prediction, "the prediction")
    width = _kernel_bandwidth(x) if bandwidth is None else bandwidth
    kernel: list[Callable[[Array], Array]] = [lambda d: np.exp(d / (-2 * width**2))]
    across, true, predicted = (
        _mean_over_pairs(a, b, kernel)[0] for a, b in ((x, y), (x, x), (y, y))
    )
    return max(true + predicted - 2 * across, 0.0)


def _wasserstein_per_gene(truth: Array, prediction: Array) -> Array:
    """1-Wasserstein distance ∫|F⁻¹ − G⁻¹| of each feature (features,)."""
    x, y = np.sort(truth, axis=0), np.sort(prediction, axis=0)
    n, m = len(x), len(y)
    if n == m:
        return np.abs(x - y).mean(axis=0)
    steps = np.union1d(
        np.arange(1, n + 1) * m, np.arange(1, m + 1) * n
    )  # where either quantile function may jump
    before = np.concatenate([[0], steps[:-1]])
    return (steps - before) @ np.abs(x[before // m] - y[before // n]) / (n * m)


def _feature_mean_error(truth: Array, prediction: Array) -> float:
    """√ mean_g ((mean predicted − mean true) / SD true)²; an SD of 0 counts as the least other one, or 1."""
    spread = truth.std(axis=0)
    positive = spread[spread > 0]
    scale = np.where(spread > 0, spread, positive.min() if positive.size else 1.0)
    return float(
        np.sqrt(np.mean(np.square((prediction.mean(axis=0) - truth.mean(axis=0)) / scale)))
    )


def _feature_variance_error(truth: Array, prediction: Array) -> float:
    """mean_g |log2 (variance predicted / variance true)|, both with 10⁻⁶ of the mean true variance added."""
    true, predicted = truth.var(axis=0), prediction.var(axis=0)
    floor = 1e-6 * true.mean() or 1e-12
    return float(np.abs(np.log2((predicted + floor) / (true + floor))).mean())


def _correlation_error(truth: Array, prediction: Array) -> float:
    """Root mean square difference of the off-diagonal correlations; NaN with one feature."""
    features = truth.shape[1]
    if features < 2:
        return float("nan")
    difference = _correlations(truth) - _correlations(prediction)
    np.fill_diagonal(difference, 0)
    return float(np.sqrt(np.square(difference).sum() / (features * (features - 1))))


def _correlations(cells: Array) -> Array:
    """Correlations of features (features, features); 0 with a constant one."""
    centred = cells - cells.mean(axis=0)
    centred[:, cells.max(axis=0) == cells.min(axis=0)] = 0
    size = np.sqrt(np.einsum("ij,ij->j", centred, centred))
    return divide(centred.T @ centred, size[:, None] * size[None])


_CELL_COMPUTE: dict[str, Callable[[_CellPair], float]] = {
    "energy_distance_squared": lambda pair: pair.discrepancies[0],
    "energy_distance": lambda pair: float(np.sqrt(pair.discrepancies[0])),
    "energy_distance_sqeuclidean": lambda pair: _energy_distance_sqeuclidean(
        pair.truth, pair.prediction
    ),
    "mmd_squared": lambda pair: pair.discrepancies[1],
    "wasserstein_per_gene": lambda pair: float(
        _wasserstein_per_gene(pair.truth, pair.prediction).mean()
    ),
    "feature_mean_error": lambda pair: _feature_mean_error(pair.truth, pair.prediction),
    "feature_variance_error": lambda pair: _feature_variance_error(pair.truth, pair.prediction),
    "correlation_error": lambda pair: _correlation_error(pair.truth, pair.prediction),
}


def score_cells(
    truth: Mapping[Hashable, pd.DataFrame | Array],
    prediction: Mapping[Hashable, pd.DataFrame | Array],
    *,
    metrics: Sequence[str] | None = None,
    rows: Policy = "exact",
) -> pd.DataFrame:
    """Every metric of cells for every condition, metrics x conditions, from cells x features of each condition.

    Labelled frames are joined by feature; arrays must have the same features in the same order. ``rows`` says what
    happens to conditions that only one side has, as in :func:`perturbgen.evaluate.score`.
    """
    chosen = choose_metrics(metrics, cells=True)
    labels = shared(
        _condition_index(truth),
        _condition_index(prediction),
        rows,
        "conditions",
        "rows",
        "the prediction",
    )
    columns = {
        label: _score_pair(
            _make_pair(truth[label], prediction[label], label), _chosen_names(chosen)
        )
        for label in labels
    }
    names = pd.Index(_chosen_names(chosen), name="metric")
    table = pd.DataFrame(np.column_stack(list(columns.values())), index=names)
    table.columns = labels
    return table


def _chosen_names(metrics: Sequence[object]) -> list[str]:
    """The names of metrics."""
    return [str(getattr(metric, "name", metric)) for metric in metrics]


def _condition_index(cells_of: Mapping[Hashable, object]) -> pd.Index:
    """The conditions of a mapping, as an index."""
    if not len(cells_of):
        raise SchemaError("no cells were given", expected="{condition: cells x features}")
    return pd.Index(list(cells_of))


def _score_pair(pair: _CellPair, names: Sequence[str]) -> Array:
    """The metrics of one condition (metrics,)."""
    return np.array([_CELL_COMPUTE[name](pair) for name in names])


def _make_pair(
    truth: pd.DataFrame | Array, prediction: pd.DataFrame | Array, label: Hashable
) -> _CellPair:
    """Checked cells of one condition, features joined by label where both have labels."""
    if isinstance(truth, pd.DataFrame) and isinstance(prediction, pd.DataFrame):
        shared(
            truth.columns,
            prediction.columns,
            "exact",
            "features",
            "features",
            f"the prediction of {label!r}",
        )
        prediction = prediction[truth.columns]
    true = _check_cells(np.asarray(truth), f"the truth of {label!r}")
    predicted = _check_cells(np.asarray(prediction), f"the prediction of {label!r}")
    if true.shape[1] != predicted.shape[1]:
        raise SchemaError(
            f"{label!r} has {true.shape[1]} features in truth and {predicted.shape[1]} in prediction",
            expected="the same features in the same order",
            fix="give labelled DataFrames, which are joined by feature",
        )
    return _CellPair(true, predicted)


def held_out_nll(
    log_probs: pd.Series | pd.DataFrame | Array, conditions: Sequence[Hashable] | None = None
) -> pd.DataFrame:
    """Mean −log p of held-out cells, a table of one metric x conditions, in nats per cell.

    ``log_probs`` are log probabilities of cells (cells,), or of genes in cells (cells, genes), whose mean is taken:
    then nats are per gene and cell. Without ``conditions`` (one label a cell) all cells are one condition.
    """
    values = np.asarray(log_probs, dtype=float)
    per_cell = values.mean(axis=1) if values.ndim == 2 else values
    wrong = np.flatnonzero(~np.isfinite(per_cell))
    if len(wrong) or per_cell.ndim != 1 or not len(per_cell):
        raise SchemaError(
            f"{len(wrong)} of {len(per_cell)} cells have no finite log probability: {shorten(wrong)}",
            expected="(cells,) or (cells, genes) of finite log probabilities",
            cause="a likelihood that gives an observed count probability 0",
            fix="compute it in log space",
        )
    labels = list(conditions) if conditions is not None else ["all"] * len(per_cell)
    if len(labels) != len(per_cell):
        raise SchemaError(
            f"{len(labels)} conditions for {len(per_cell)} cells", expected="one label a cell"
        )
    means = (-pd.Series(per_cell)).groupby(pd.Index(labels), sort=False).mean()
    return means.to_frame("held_out_nll").T.rename_axis(index="metric")
