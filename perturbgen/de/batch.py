"""Log expressions without the differences between batches: for pictures, not for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.de.blocks import Block
from perturbgen.de.design import Design
from perturbgen.de.weighting import Weighting, value_logs

_Array = NDArray[np.float64]


def remove_batch_effect(
    y: pd.DataFrame,
    batch: pd.Series | Sequence[object] | None = None,
    *,
    batch2: pd.Series | Sequence[object] | None = None,
    covariates: pd.DataFrame | _Array | None = None,
    design: Design | pd.DataFrame | _Array | None = None,
    weights: pd.DataFrame | pd.Series | _Array | None = None,
    block: Block | None = None,
    correlation: float | None = None,
) -> pd.DataFrame:
    """y (samples, genes, logs) less what ``batch``, ``batch2`` and ``covariates`` explain.

    As limma's ``removeBatchEffect``: effects of batches sum to zero, and what ``design`` explains
    (the treatments) is kept. For maps and clusterings; tests have batches in their design instead.
    """
    if batch is None and batch2 is None and covariates is None:
        raise ConfigError("neither batches nor covariates are given", fix="batch=obs['plate']")
    parts = [_sum_coded(one, y.index) for one in (batch, batch2) if one is not None]
    if covariates is not None:
        parts.append(_numbers(covariates, y.index))
    removed = np.hstack(parts)
    matrix = design.matrix if isinstance(design, Design) else design
    kept = np.ones((len(y), 1)) if matrix is None else np.asarray(matrix, dtype=float)
    whole = Design.from_matrix(np.hstack([kept, removed]))
    weighting = Weighting.of(
        y.index, y.columns, weights=weights, block=block, correlation=correlation
    )
    values = np.array(y, dtype=float)
    columns = np.intersect1d(whole.kept, np.arange(kept.shape[1], len(whole.columns)))
    asked = np.zeros((len(columns), len(whole.columns)))
    asked[np.arange(len(columns)), columns] = 1
    on_groups, on_q = whole.basis.functionals(asked)
    logs = value_logs(values, whole, weighting)
    cleaned = np.empty_like(values)
    effect = whole.matrix[:, columns]

    def take(genes: slice, part: _Array, own: _Array) -> None:
        fitted = logs.solver.weighted(part, own, (csr_matrix(on_groups), on_q))
        cleaned[:, genes] = part - effect @ fitted.effects

    logs.each_block(take)
    return pd.DataFrame(cleaned, y.index, y.columns)


def _sum_coded(batch: pd.Series | Sequence[object], samples: pd.Index) -> _Array:
    """Columns (samples, batches - 1) whose effects sum to zero over the batches."""
    given = batch.reindex(samples) if isinstance(batch, pd.Series) else pd.Series(list(batch))
    if len(given) != len(samples) or given.isna().any():
        raise SchemaError("batches are not one a sample", expected="a label for each sample")
    levels, codes = np.unique(given.astype(str).to_numpy(dtype=object), return_inverse=True)
    indicators = np.eye(len(levels))[codes]
    return np.asarray(indicators[:, :-1] - indicators[:, -1:])


def _numbers(covariates: pd.DataFrame | _Array, samples: pd.Index) -> _Array:
    if isinstance(covariates, pd.DataFrame | pd.Series):
        covariates = covariates.reindex(samples).to_numpy(dtype=float)
    values = np.asarray(covariates, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    if len(values) != len(samples) or not np.isfinite(values).all():
        raise SchemaError("covariates are not one finite number a sample")
    return values
