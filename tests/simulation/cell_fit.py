"""The simulator's parameters estimated from real cells of one kind, to check its assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import sparse
from scipy.optimize import nnls

from perturbgen.simulation import sample_nb_sparse

_SMALLEST_DISPERSION: Final = 1e-3
# Genes scatter around the trend by this share of it; beyond this multiple they do not move it.
_SCATTER: Final = 0.5
_OUTLIER: Final = 4.0


@dataclass(frozen=True)
class CellFit:
    """Cells of one kind: ``share`` and ``dispersion`` (genes,), log-normal library sizes, a trend.

    The trend is dispersion = ``floor`` + ``slope`` / mean count.
    """

    share: np.ndarray
    dispersion: np.ndarray
    log_depth: float
    log_depth_sd: float
    floor: float
    slope: float

    def draw(self, cells: int, *, rng: np.random.Generator) -> sparse.csr_array:
        """New cells (cells, genes) with these parameters."""
        size = np.exp(rng.normal(self.log_depth, self.log_depth_sd, cells))
        return sample_nb_sparse(rng, size=size, share=self.share, r=1 / self.dispersion)


def fit_baseline(counts: sparse.csr_array | sparse.csr_matrix) -> CellFit:
    """Estimate by moments from raw counts (cells, genes) of one cell type, donor and condition.

    With library sizes s (relative, mean one), Var(k/s) = m E(1/s) + dispersion m^2.
    """
    matrix = sparse.csr_array(counts).astype(float)
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    s = totals / totals.mean()
    scaled = sparse.csr_array(matrix.multiply(1 / s[:, None]))
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    square = np.asarray(scaled.power(2).mean(axis=0)).ravel()
    seen = mean > 0
    dispersion = np.zeros(len(mean))
    excess = square - mean**2 - mean * np.mean(1 / s)
    dispersion[seen] = excess[seen] / mean[seen] ** 2
    floor, slope = _dispersion_trend(mean[seen], dispersion[seen])
    # a gene never seen gets the trend of the rarest one: at a mean of 0 it has no end
    mean_seen = np.maximum(mean, mean[seen].min())
    trend = floor + slope / mean_seen
    # A moment estimate from n cells has a variance of about 2 (dispersion + 1/m)^2 / n, and counts
    # accordingly.
    noise, scatter = 2 * (trend + 1 / mean_seen) ** 2 / len(s), (_SCATTER * trend) ** 2
    shrunk = trend + np.where(seen, scatter / (scatter + noise), 0) * (dispersion - trend)
    log_totals = np.log(totals)
    return CellFit(
        share=mean / mean.sum(),
        dispersion=np.maximum(shrunk, _SMALLEST_DISPERSION),
        log_depth=float(log_totals.mean()),
        log_depth_sd=float(log_totals.std(ddof=1)),
        floor=floor,
        slope=slope,
    )


def _dispersion_trend(mean: np.ndarray, dispersion: np.ndarray) -> tuple[float, float]:
    """``floor`` and ``slope`` (not negative) of floor + slope / mean, genes weighted by mean^2."""
    # up to a mean of 10: a few highly expressed genes must not decide the trend of all
    weight = np.minimum(mean, 10.0)
    terms = np.column_stack([np.ones_like(mean), 1 / mean])
    kept = dispersion
    # limiting outliers moves the trend, and the trend says what an outlier is
    for _ in range(3):
        (floor, slope), _ = nnls(terms * weight[:, None], kept * weight)
        kept = np.minimum(dispersion, _OUTLIER * (floor + slope / mean) + 1 / mean)
    return max(float(floor), _SMALLEST_DISPERSION), float(slope)
