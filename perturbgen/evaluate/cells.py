"""Metrics that compare two samples of cells, (cells, features), of any sizes.

Distances in thousands of genes say little; give components of a PCA that was fitted on the training
cells, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import Array, divide
from perturbgen.evaluate.labels import shared
from perturbgen.evaluate.values import Metric

_BLOCK = 1024  # rows of one block of distances: memory stays at block x cells


@dataclass(frozen=True, eq=False)
class _CellPair:
    """True and predicted cells (cells, features) of a condition, and what metrics share of them."""

    truth: Array
    prediction: Array

    @cached_property
    def discrepancies(self) -> tuple[float, float]:
        """Squared energy distance and MMD² in one pass over the distances of all pairs.

            energy   2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖             (Székely and Rizzo)
            MMD²     E k(X,X') + E k(Y,Y') − 2 E k(X,Y)       (Gretton et al. 2012, biased)

        with k(x,y) = exp(−‖x−y‖² / 2h²).
        """
        width = _kernel_bandwidth(self.truth)

        def means(x: Array, y: Array) -> list[float]:
            sums = np.zeros(2)
            for block in _squared_distances(x, y):
                sums += np.sqrt(block).sum(), np.exp(block / (-2 * width**2)).sum()
            return list(sums / (len(x) * len(y)))

        across, true = means(self.truth, self.prediction), means(self.truth, self.truth)
        predicted = means(self.prediction, self.prediction)
        energy = 2 * across[0] - true[0] - predicted[0]
        return max(energy, 0.0), max(true[1] + predicted[1] - 2 * across[1], 0.0)


def cell_pair(
    truth: pd.DataFrame | Array, prediction: pd.DataFrame | Array, label: Hashable
) -> _CellPair:
    """Checked cells of one condition, features joined by label where both have labels."""
    # Arrays have no names to join by; two frames have.
    if isinstance(truth, pd.DataFrame) and isinstance(prediction, pd.DataFrame):
        name = f"the prediction of {label!r}"
        shared(truth.columns, prediction.columns, "exact", "features", "features", name)
        prediction = prediction[truth.columns]
    true = _check_cells(truth, f"the truth of {label!r}")
    predicted = _check_cells(prediction, f"the prediction of {label!r}")
    if true.shape[1] != predicted.shape[1]:
        raise SchemaError(
            f"{label!r} has {true.shape[1]} features in truth and {predicted.shape[1]} in "
            "prediction",
            expected="the same features in the same order",
            fix="give labelled DataFrames, which are joined by feature",
        )
    return _CellPair(true, predicted)


def _check_cells(values: pd.DataFrame | Array, name: str) -> Array:
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
            f"{name} has {int(wrong.sum())} values that are not finite, the first in cell {row}, "
            f"feature {column}",
            expected="finite numbers",
        )
    return cells


def _squared_distances(x: Array, y: Array) -> Iterator[Array]:
    """Blocks (rows of x, cells of y) of ‖x − y‖²."""
    # Far from the origin |x|² − 2xy + |y|² would lose the digits in which cells differ.
    centre = x.mean(axis=0)
    x, y = x - centre, y - centre
    size_x, size_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    # Equal cells are exactly 0 apart; the product leaves dust, of which the root is not small.
    dust = 64 * np.finfo(float).eps * (size_x.max() + size_y.max())
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = size_x[rows, None] + size_y[None] - 2 * (x[rows] @ y.T)
        block[block < dust] = 0
        yield block


def _kernel_bandwidth(truth: Array) -> float:
    """h with 2h² the mean squared distance of two true cells; 1 where all of them are the same."""
    # Of the truth alone: a bandwidth of both samples would let a prediction widen the kernel that
    # judges it.
    spread = float(np.var(truth, axis=0).sum())
    return float(np.sqrt(spread)) if spread > 0 else 1.0


def _energy_distance_sqeuclidean(pair: _CellPair) -> float:
    """2 E‖X−Y‖² − E‖X−X'‖² − E‖Y−Y'‖², which is 2 ‖mean X − mean Y‖² (scPerturb, pertpy)."""
    difference = np.mean(pair.truth, axis=0) - np.mean(pair.prediction, axis=0)
    return float(2 * difference @ difference)


def _wasserstein_per_gene(pair: _CellPair) -> float:
    """The mean over features of the 1-Wasserstein distance ∫|F⁻¹ − G⁻¹|."""
    x, y = np.sort(pair.truth, axis=0), np.sort(pair.prediction, axis=0)
    n, m = len(x), len(y)
    if n == m:
        return float(np.abs(x - y).mean(axis=0).mean())
    # Where either quantile function may jump, in units of 1 / nm.
    # Integers, since i / n and j / m that are equal differ as floats.
    steps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    before = np.concatenate([[0], steps[:-1]])
    distances = (steps - before) @ np.abs(x[before // m] - y[before // n]) / (n * m)
    return float(distances.mean())


def _feature_mean_error(pair: _CellPair) -> float:
    """√ mean_g ((mean predicted − mean true) / SD true)²."""
    spread = pair.truth.std(axis=0)
    positive = spread[spread > 0]
    # A constant true feature is held to the least variable other one, else any error were infinite.
    scale = np.where(spread > 0, spread, positive.min() if positive.size else 1.0)
    difference = pair.prediction.mean(axis=0) - pair.truth.mean(axis=0)
    return float(np.sqrt(np.mean(np.square(difference / scale))))


def _feature_variance_error(pair: _CellPair) -> float:
    """mean_g |log2 (variance predicted / variance true)|."""
    true, predicted = pair.truth.var(axis=0), pair.prediction.var(axis=0)
    # A constant feature has no logarithm of its variance.
    floor = 1e-6 * true.mean() or 1e-12
    return float(np.abs(np.log2((predicted + floor) / (true + floor))).mean())


def _correlation_error(pair: _CellPair) -> float:
    """Root mean square difference of the off-diagonal correlations; NaN with one feature."""
    features = pair.truth.shape[1]
    if features < 2:
        return float("nan")
    difference = _correlations(pair.truth) - _correlations(pair.prediction)
    np.fill_diagonal(difference, 0)
    return float(np.sqrt(np.square(difference).sum() / (features * (features - 1))))


def _correlations(cells: Array) -> Array:
    """Correlations of features (features, features); 0, not NaN, with a constant one."""
    centred = cells - cells.mean(axis=0)
    centred[:, cells.max(axis=0) == cells.min(axis=0)] = 0
    size = np.sqrt(np.einsum("ij,ij->j", centred, centred))
    return divide(centred.T @ centred, size[:, None] * size[None])


def held_out_nll(
    log_probs: pd.Series | pd.DataFrame | Array, conditions: Sequence[Hashable] | None = None
) -> pd.DataFrame:
    """Mean −log p of withheld cells, a table of one metric x conditions, in nats per cell.

    ``log_probs`` are log probabilities of cells (cells,), or of genes in cells (cells, genes), of
    which the mean is taken: then nats are per gene and cell. Without ``conditions`` (one label a
    cell) all cells are one condition.
    """
    values = np.asarray(log_probs, dtype=float)
    per_cell = values.mean(axis=1) if values.ndim == 2 else values
    wrong = np.flatnonzero(~np.isfinite(per_cell))
    if len(wrong) or per_cell.ndim != 1 or not len(per_cell):
        raise SchemaError(
            f"{len(wrong)} of {len(per_cell)} cells have no finite log probability: "
            f"{shorten(wrong)}",
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


_of_cells = partial(
    Metric, negative_control="control cells in place of the prediction", needs="cells"
)

CELL_METRICS: Final = (
    _of_cells(
        "energy_distance_squared",
        "Energy distance, squared",
        "2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, Euclidean norms, all pairs with themselves (V-statistic); "
        "cell-eval's form.",
        lambda pair: pair.discrepancies[0],
        meaning="How far apart two clouds of cells are, everything considered.",
    ),
    _of_cells(
        "energy_distance",
        "Energy distance",
        "The root of energy_distance_squared; scipy's form in one dimension.",
        lambda pair: float(np.sqrt(pair.discrepancies[0])),
        meaning="How far apart two clouds of cells are, in the units of expression.",
    ),
    _of_cells(
        "energy_distance_sqeuclidean",
        "Distance of means (squared)",
        "2 E‖X−Y‖² − E‖X−X'‖² − E‖Y−Y'‖² = 2 ‖mean X − mean Y‖²: scPerturb's and pertpy's form. "
        "It sees means only.",
        _energy_distance_sqeuclidean,
        meaning="How far apart the means of two clouds of cells are.",
    ),
    _of_cells(
        "mmd_squared",
        "MMD²",
        "Squared maximum mean discrepancy with kernel exp(−‖x−y‖² / 2h²), V-statistic; h² is the "
        "sum of the truth's feature variances, so that 2h² is the mean squared distance of two "
        "true cells and no prediction can move it.",
        lambda pair: pair.discrepancies[1],
        high=2,
        meaning="How far apart two clouds of cells are to a smooth eye.",
    ),
    _of_cells(
        "wasserstein_per_gene",
        "Distance of distributions (Wasserstein)",
        "Mean over genes of the 1-Wasserstein distance of their distributions.",
        _wasserstein_per_gene,
        meaning="How far each gene's distribution would have to be moved.",
    ),
    _of_cells(
        "feature_mean_error",
        "Error of means",
        "√ of the mean over genes of ((mean predicted − mean true) / SD true)²; a true SD of 0 "
        "counts as that of the least variable other gene.",
        _feature_mean_error,
        meaning="How wrong the mean of a gene is, in its standard deviations.",
    ),
    Metric(
        "feature_variance_error",
        "Error of variances",
        "Mean over genes of |log2(variance predicted / variance true)|, with a millionth of the "
        "mean true variance added to both. With feature_mean_error, the mean-variance structure.",
        _feature_variance_error,
        "means in place of drawn cells: very large",
        needs="cells",
        meaning="How wrong the variance of a gene is, in doublings.",
    ),
    Metric(
        "correlation_error",
        "Error of correlations",
        "Root mean square difference of the off-diagonal correlations of genes; a constant gene "
        "correlates 0.",
        _correlation_error,
        "each gene shuffled over the cells: the root mean square true correlation",
        high=2,
        needs="cells",
        meaning="How wrong the correlation of two genes is.",
    ),
    Metric(
        "held_out_nll",
        "Surprise by withheld cells (NLL)",
        "Mean of −log p over the held-out cells, in nats per cell, or per gene and cell where "
        "given so.",
        held_out_nll,
        "a baseline likelihood, for instance one mean per gene",
        low=-math.inf,
        needs="log_probs",
        meaning="How improbable a model finds real cells that it never saw.",
    ),
)
