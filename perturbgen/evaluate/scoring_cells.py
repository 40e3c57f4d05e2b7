"""``score_cells``: true and predicted cells of each condition, to a table of metrics x conditions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten
from perturbgen.evaluate import cells
from perturbgen.evaluate.align import Policy, shared
from perturbgen.evaluate.cells import CellPair, check_cells
from perturbgen.evaluate.records import choose_metrics
from perturbgen.evaluate.rowwise import Array

CELL_COMPUTE: dict[str, Callable[[CellPair], float]] = {
    "energy_distance_squared": lambda pair: pair.discrepancies[0],
    "energy_distance": lambda pair: float(np.sqrt(pair.discrepancies[0])),
    "energy_distance_sqeuclidean": lambda pair: cells.energy_distance_sqeuclidean(pair.truth, pair.prediction),
    "mmd_squared": lambda pair: pair.discrepancies[1],
    "wasserstein_per_gene": lambda pair: float(cells.wasserstein_per_gene(pair.truth, pair.prediction).mean()),
    "feature_mean_error": lambda pair: cells.feature_mean_error(pair.truth, pair.prediction),
    "feature_variance_error": lambda pair: cells.feature_variance_error(pair.truth, pair.prediction),
    "correlation_error": lambda pair: cells.correlation_error(pair.truth, pair.prediction),
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
    labels = shared(condition_index(truth), condition_index(prediction), rows, "conditions", "rows", "the prediction")
    columns = {label: score_pair(make_pair(truth[label], prediction[label], label), chosen_names(chosen))
               for label in labels}  # fmt: skip
    names = pd.Index(chosen_names(chosen), name="metric")
    table = pd.DataFrame(np.column_stack(list(columns.values())), index=names)
    table.columns = labels
    return table


def chosen_names(metrics: Sequence[object]) -> list[str]:
    """The names of metrics."""
    return [str(getattr(metric, "name", metric)) for metric in metrics]


def condition_index(cells_of: Mapping[Hashable, object]) -> pd.Index:
    """The conditions of a mapping, as an index."""
    if not len(cells_of):
        raise SchemaError("no cells were given", expected="{condition: cells x features}")
    return pd.Index(list(cells_of))


def score_pair(pair: CellPair, names: Sequence[str]) -> Array:
    """The metrics of one condition (metrics,)."""
    return np.array([CELL_COMPUTE[name](pair) for name in names])


def make_pair(truth: pd.DataFrame | Array, prediction: pd.DataFrame | Array, label: Hashable) -> CellPair:
    """Checked cells of one condition, features joined by label where both have labels."""
    if isinstance(truth, pd.DataFrame) and isinstance(prediction, pd.DataFrame):
        shared(truth.columns, prediction.columns, "exact", "features", "features", f"the prediction of {label!r}")
        prediction = prediction[truth.columns]
    true = check_cells(np.asarray(truth), f"the truth of {label!r}")
    predicted = check_cells(np.asarray(prediction), f"the prediction of {label!r}")
    if true.shape[1] != predicted.shape[1]:
        raise SchemaError(
            f"{label!r} has {true.shape[1]} features in truth and {predicted.shape[1]} in prediction",
            expected="the same features in the same order",
            fix="give labelled DataFrames, which are joined by feature",
        )
    return CellPair(true, predicted)


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
        raise SchemaError(f"{len(labels)} conditions for {len(per_cell)} cells", expected="one label a cell")
    means = (-pd.Series(per_cell)).groupby(pd.Index(labels), sort=False).mean()
    return means.to_frame("held_out_nll").T.rename_axis(index="metric")
