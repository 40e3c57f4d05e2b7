"""TMM normalisation factors and the expression filter, as edgeR computes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.system import spread
from perturbgen.de.design import Design
from perturbgen.de.inputs import as_matrix

_Array = NDArray[np.float64]
_TOLERANCE = 1e-14  # edgeR's allowance for rounding in comparisons of totals and sample numbers
_ROWS = 16  # samples at a time


def tmm_factors(
    counts: pd.DataFrame | _Array,
    *,
    reference: int | None = None,
    ratio_trim: float = 0.3,
    sum_trim: float = 0.05,
    weighted: bool = True,
) -> pd.Series:
    """Trimmed-mean-of-M-values factors (samples,) of counts (samples, genes); their product is 1.

    Robinson & Oshlack 2010. Each sample is compared with the one whose upper quartile is nearest
    the mean, or with ``reference`` (a position). ``ratio_trim`` and ``sum_trim`` are cut off either
    end of the log ratios and of the mean log expressions.
    """
    values, samples, _ = as_matrix(counts)
    sizes = values.sum(axis=1)
    factors = pd.Series(np.ones(len(values)), index=samples, name="norm_factor")
    seen = values.any(axis=0)
    if len(values) < 2 or not seen.any():
        return factors
    if not seen.all():
        values = values[:, seen]
    chosen = _pick_reference(values, sizes) if reference is None else reference
    against = _Reference(values[chosen], sizes[chosen])
    found = np.ones(len(values))

    def fill(rows: range) -> None:
        for i in rows:
            found[i] = against.factor(values[i], sizes[i], ratio_trim, sum_trim, weighted)

    spread(fill, len(values), step=_ROWS)
    factors[:] = found / np.exp(np.log(found).mean())
    return factors


def _pick_reference(counts: _Array, sizes: _Array) -> int:
    """The sample whose upper quartile of count/size is nearest the mean of all."""
    middle = 0.75 * (counts.shape[1] - 1)
    low, high = int(np.floor(middle)), int(np.ceil(middle))
    quartiles = np.empty(len(counts))

    def fill(rows: range) -> None:
        for i in rows:
            ordered = np.sort(counts[i])
            lower, upper = ordered[low] / sizes[i], ordered[high] / sizes[i]
            quartiles[i] = lower + (middle - low) * (upper - lower)

    spread(fill, len(counts), step=_ROWS)
    if np.median(quartiles) < 1e-20:  # edgeR's rule where most counts are zero
        return int(np.sqrt(counts).sum(axis=1).argmax())
    return int(np.abs(quartiles - quartiles.mean()).argmin())


class _Reference:
    """The sample that others are compared with: its genes' shares, their logs and variances."""

    def __init__(self, counts: _Array, size: float) -> None:
        self.expressed = counts > 0
        with np.errstate(divide="ignore"):
            self.share = counts / size
            self.log_share = np.log2(self.share)
            self.variance = (size - counts) / size / counts

    def factor(
        self, counts: _Array, size: float, ratio_trim: float, sum_trim: float, weighted: bool
    ) -> float:
        """2 to the trimmed, precision-weighted mean log ratio of a sample's counts (genes,)."""
        # a ratio needs both counts; a gene that one sample lacks says nothing of its size
        both = np.flatnonzero(np.logical_and(counts, self.expressed))
        counts = counts[both]
        share = counts / size
        ratio = np.log2(share / self.share[both])
        if not len(ratio) or np.abs(ratio).max() < 1e-6:  # the reference itself, or a copy of it
            return 1.0
        mean = (np.log2(share) + self.log_share[both]) / 2
        keep = _within_trim(ratio, ratio_trim) & _within_trim(mean, sum_trim)
        if not keep.any():
            return 1.0
        if not weighted:
            return float(2.0 ** ratio[keep].mean())
        variance = (size - counts) / size / counts + self.variance[both]
        precision = keep / variance
        return float(2.0 ** ((ratio @ precision) / precision.sum()))


def _within_trim(values: _Array, trim: float) -> NDArray[np.bool_]:
    """Which ranks (ties share the average) are from floor(n trim) + 1 to n - floor(n trim)."""
    n = len(values)
    cut = int(np.floor(n * trim))
    ordered = np.sort(values)  # vectorised in numpy, and three times as fast as its partition
    low, high = ordered[cut], ordered[n - 1 - cut]
    keep = (values > low) & (values < high)
    for edge in {low, high}:  # only values tied with an edge need their rank worked out
        tied = values == edge
        rank = np.count_nonzero(values < edge) + (np.count_nonzero(tied) + 1) / 2
        if cut + 1 <= rank <= n - cut:
            keep |= tied
    return keep


def filter_by_expr(
    counts: pd.DataFrame | _Array,
    *,
    design: _Array | None = None,
    group: Sequence[object] | None = None,
    min_count: float = 10,
    min_total_count: float = 15,
    large_n: float = 10,
    min_prop: float = 0.7,
) -> pd.Series:
    """Genes with enough counts in enough samples, (genes,), as edgeR's ``filterByExpr``.

    Enough samples is the size of the smallest group, or for a ``design`` matrix (samples, columns)
    the inverse of the largest leverage; above ``large_n`` samples only ``min_prop`` of the excess
    counts.
    """
    values, _, genes = as_matrix(counts)
    sizes = values.sum(axis=1)
    if group is not None:
        smallest = float(np.unique(np.asarray(group, dtype=str), return_counts=True)[1].min())
    elif design is not None:
        # leverages are the diagonal of the hat matrix; R's ``hat`` adds an intercept to the design
        full = np.column_stack([np.ones(len(design)), design])
        q = np.linalg.qr(full[:, Design.from_matrix(full).kept])[0]
        smallest = 1 / (q**2).sum(axis=1).max()
    else:
        smallest = float(len(values))
    if smallest > large_n:
        smallest = large_n + (smallest - large_n) * min_prop
    threshold = min_count / np.median(sizes) * 1e6
    enough = (values / sizes[:, None] * 1e6 >= threshold).sum(axis=0) >= smallest - _TOLERANCE
    keep = enough & (values.sum(axis=0) >= min_total_count - _TOLERANCE)
    return pd.Series(keep, index=genes, name="keep")
