"""edgeR's factors of library sizes, by four methods, and its filter of genes by expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, CountsError, suggest
from perturbgen.core.system import spread
from perturbgen.de.counts import as_matrix
from perturbgen.de.design import Design

_Array = NDArray[np.float64]
# of ``norm_factors``, and what edgeR calls them
METHODS: Final = {
    "tmm": "TMM",
    "tmmwsp": "TMMwsp",
    "rle": "RLE",
    "upperquartile": "upperquartile",
    "none": "none",
}
_TOLERANCE = 1e-14  # edgeR's allowance for rounding in comparisons of totals and sample numbers
_ROWS = 16  # samples at a time


def norm_factors(
    counts: pd.DataFrame | _Array, method: str = "tmm", *, sizes: pd.Series | _Array | None = None
) -> pd.Series:
    """Factors (samples,) of the library sizes of counts (samples, genes); their product is 1.

    ``"tmm"`` is ``tmm_factors``; ``"tmmwsp"`` (with singleton pairing) keeps genes that one of two
    samples lacks, for data of many zeros, and depends on the order of the genes, as edgeR's does;
    ``"rle"`` is the median ratio to the geometric mean (Anders & Huber 2010), ``"upperquartile"``
    that of Bullard et al. 2010. ``sizes`` (samples,) are other library sizes than the sums of the
    counts.
    """
    if method not in METHODS:
        raise ConfigError(f"normalise={method!r} is unknown", fix=suggest(method, METHODS))
    values, samples, _ = as_matrix(counts)
    library = values.sum(axis=1) if sizes is None else as_sizes(sizes, samples)
    if method == "tmm":
        return tmm_factors(counts, sizes=library)
    factors = pd.Series(np.ones(len(values)), index=samples, name="norm_factor")
    seen = values[:, values.any(axis=0)]
    if method == "none" or len(values) < 2 or not seen.size:
        return factors
    if method == "tmmwsp":
        found = _tmm_with_singletons(seen, library)
    elif method == "rle":
        found = _median_ratios(seen) / library
    else:
        found = np.quantile(seen, 0.75, axis=1) / library
    if not (found > 0).all():
        raise CountsError(
            f"{method} factors are not positive: too many counts are zero",
            fix='normalise="tmmwsp", or fewer genes (gene_filter)',
        )
    factors[:] = found / np.exp(np.log(found).mean())
    return factors


def log_cpm(
    counts: pd.DataFrame | _Array,
    *,
    sizes: pd.Series | _Array | None = None,
    norm_factors: pd.Series | _Array | None = None,
    prior_count: float = 2,
) -> pd.DataFrame:
    """log2 counts per million (samples, genes), as edgeR's ``cpm(log = TRUE)``.

    ``prior_count``, in proportion to the library sizes, keeps low counts from varying most.
    """
    values, samples, genes = as_matrix(counts)
    library = values.sum(axis=1) if sizes is None else as_sizes(sizes, samples)
    if norm_factors is not None:
        library = library * as_sizes(norm_factors, samples, "norm_factors")
    prior = prior_count * library / library.mean()
    found = np.log2((values + prior[:, None]) / (library + 2 * prior)[:, None] * 1e6)
    return pd.DataFrame(found, samples, genes)


def as_sizes(values: pd.Series | _Array, samples: pd.Index, name: str = "sizes") -> _Array:
    """One positive number a sample, (samples,); a series is joined by its labels."""
    given = values.reindex(samples) if isinstance(values, pd.Series) else values
    array = np.asarray(given, dtype=float)
    if array.shape != (len(samples),) or not (np.isfinite(array) & (array > 0)).all():
        raise ConfigError(
            f"{name} are not one positive number a sample",
            expected=f"{len(samples)} numbers, or a series with the samples' names",
        )
    return array


def _median_ratios(counts: _Array) -> _Array:
    """Medians (samples,) of count over geometric mean, among genes that every sample has."""
    everywhere = counts[:, (counts > 0).all(axis=0)]
    if not everywhere.size:
        raise CountsError(
            "no gene has counts in every sample, so there are no ratios to take",
            fix='normalise="tmmwsp", or drop the samples of few counts',
        )
    means = np.exp(np.log(everywhere).mean(axis=0))
    return np.asarray(np.median(everywhere / means, axis=1))


def _tmm_with_singletons(counts: _Array, sizes: _Array) -> _Array:
    """TMM in which genes that only one of two samples has are paired by size."""
    chosen = int(np.sqrt(counts).sum(axis=1).argmax())
    pairs = zip(counts, sizes, strict=True)
    return np.array(
        [_paired_factor(one, size, counts[chosen], sizes[chosen]) for one, size in pairs]
    )


def _paired_factor(
    observed: _Array,
    size: float,
    reference: _Array,
    reference_size: float,
    ratio_trim: float = 0.3,
    sum_trim: float = 0.05,
) -> float:
    either = (observed > _TOLERANCE) | (reference > _TOLERANCE)
    observed, reference = observed[either], reference[either]
    zero, reference_zero = observed <= _TOLERANCE, reference <= _TOLERANCE
    single = zero | reference_zero
    # as many of either side as both have; the largest of one meets the largest of the other
    paired = int(min(zero.sum(), reference_zero.sum()))
    observed, reference = (
        np.concatenate([one[~single], -np.sort(-one[single])[:paired]])
        for one in (observed, reference)
    )
    n = len(observed)
    if not n:
        return 1.0
    share, other = observed / size, reference / reference_size
    ratio, mean = np.log2(share / other), np.log2(share * other) / 2
    if np.abs(ratio).max() < 1e-6:
        return 1.0
    shrunk = (observed + 0.5) / (size + 0.5), (reference + 0.5) / (reference_size + 0.5)
    orders = np.lexsort((np.log2(shrunk[0] / shrunk[1]), ratio)), np.argsort(mean, kind="stable")
    keep = np.ones(n, dtype=bool)
    for order, trim in zip(orders, (ratio_trim, sum_trim), strict=True):
        cut = int(n * trim)
        keep[order[:cut]] = keep[order[n - cut :]] = False
    share, other = share[keep], other[keep]
    variance = (1 - share) / share / size + (1 - other) / other / reference_size
    precision = (1 + 1e-6) / (variance + 1e-6)
    return float(2.0 ** ((ratio[keep] @ precision) / precision.sum()))


def tmm_factors(
    counts: pd.DataFrame | _Array,
    *,
    sizes: pd.Series | _Array | None = None,
    reference: int | None = None,
    ratio_trim: float = 0.3,
    sum_trim: float = 0.05,
    weighted: bool = True,
) -> pd.Series:
    """Trimmed-mean-of-M-values factors (samples,) of counts (samples, genes); their product is 1.

    Robinson & Oshlack 2010. Each sample is compared with the one whose upper quartile is nearest
    the mean, or with ``reference`` (a position). ``ratio_trim`` and ``sum_trim`` are cut off either
    end of the log ratios and of the mean log expressions. ``sizes`` (samples,) are other library
    sizes than the sums of the counts.
    """
    values, samples, _ = as_matrix(counts)
    sizes = values.sum(axis=1) if sizes is None else as_sizes(sizes, samples)
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

    spread(fill, len(values), step=_ROWS, size=values.size)
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

    spread(fill, len(counts), step=_ROWS, size=counts.size)
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
    sizes: pd.Series | _Array | None = None,
    min_count: float = 10,
    min_total_count: float = 15,
    large_n: float = 10,
    min_prop: float = 0.7,
) -> pd.Series:
    """Genes with enough counts in enough samples, (genes,), as edgeR's ``filterByExpr``.

    Enough samples is the size of the smallest group, or for a ``design`` matrix (samples, columns)
    the inverse of the largest leverage; above ``large_n`` samples only ``min_prop`` of the excess
    counts. ``sizes`` (samples,) are other library sizes than the sums of the counts.
    """
    values, samples, genes = as_matrix(counts)
    sizes = values.sum(axis=1) if sizes is None else as_sizes(sizes, samples)
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
