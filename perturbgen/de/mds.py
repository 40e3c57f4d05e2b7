"""Samples as points whose distances are leading log fold changes: limma's ``plotMDS``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.system import spread

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Map:
    """``coordinates`` (samples, dimensions) and each dimension's ``share`` of the variance."""

    coordinates: pd.DataFrame
    share: pd.Series


def mds(
    y: pd.DataFrame | _Array, *, top: int = 500, dimensions: int = 2, common: bool = False
) -> _Map:
    """Multidimensional scaling of log expressions y (samples, genes), such as ``log_cpm(counts)``.

    The distance of two samples is the root mean square of their ``top`` largest log fold changes,
    of each pair's own genes, or of the genes that vary most in all samples if ``common``.
    """
    values = np.asarray(y, dtype=float)
    labels = y.index if isinstance(y, pd.DataFrame) else pd.RangeIndex(len(values))
    values = values[:, np.isfinite(values).all(axis=0)]
    samples, genes = values.shape
    if samples < 3 or genes < dimensions or not 1 <= dimensions < samples:
        raise SchemaError(
            f"no map of {dimensions} dimensions of {samples} samples x {genes} genes",
            expected="at least 3 samples, and more samples and genes than dimensions",
        )
    if top < 1:
        raise ConfigError(f"top={top} genes is not possible", expected="at least 1")
    top = min(top, genes)
    squares = (_common if common else _pairwise)(values, top)
    centred = squares - squares.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    variances, vectors = np.linalg.eigh(-(centred + centred.T) / 4)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    names = [f"dim{k + 1}" for k in range(dimensions)]
    points = vectors[:, :dimensions] * np.sqrt(variances[:dimensions])
    # either direction is as good: the sample that is farthest out is on the positive side
    points *= np.where(points[np.abs(points).argmax(axis=0), np.arange(dimensions)] < 0, -1, 1)
    share = variances / max(float(variances.sum()), np.finfo(float).tiny)
    return _Map(pd.DataFrame(points, labels, names), pd.Series(share[:dimensions], names))


def _pairwise(values: _Array, top: int) -> _Array:
    """Mean squares (samples, samples) of each pair's largest differences."""
    samples, genes = values.shape
    found = np.zeros((samples, samples))

    def fill(rows: range) -> None:
        for i in rows:
            differences = np.square(values[i] - values[:i])
            differences.partition(genes - top, axis=1)
            found[i, :i] = differences[:, genes - top :].mean(axis=1)

    spread(fill, samples, step=1, size=values.size * samples)
    return found + found.T


def _common(values: _Array, top: int) -> _Array:
    """Mean squares (samples, samples) over the genes of the largest variance."""
    variance = np.square(values - values.mean(axis=0)).mean(axis=0)
    used = values[:, np.argsort(-variance, kind="stable")[:top]]
    found = [np.square(used - one).mean(axis=1) for one in used]
    return np.array(found)
