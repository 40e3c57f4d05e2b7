"""TMM normalisation factors and the expression filter, as edgeR computes them.

Which genes an analysis is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, CountsError, SchemaError, shorten
from perturbgen.core.system import spread
from perturbgen.de.design import Design, build_design
from perturbgen.de.plan import Fit, as_matrix, level_order, text_column

_Array = NDArray[np.float64]
_TOLERANCE = 1e-14  # edgeR's allowance for rounding in comparisons of totals and sample numbers


def tmm_factors(
    counts: pd.DataFrame | _Array,
    *,
    reference: int | None = None,
    ratio_trim: float = 0.3,
    sum_trim: float = 0.05,
    weighted: bool = True,
) -> pd.Series:
    """Trimmed-mean-of-M-values factors (samples,) of counts (samples, genes); their product is 1.

    Robinson & Oshlack 2010. Each sample is compared with the one whose upper quartile is nearest the mean, or with
    ``reference`` (a position). ``ratio_trim`` and ``sum_trim`` are cut off either end of the log ratios and of the
    mean log expressions.
    """
    values, samples, _ = as_matrix(counts)
    return pd.Series(
        tmm(
            values, reference=reference, ratio_trim=ratio_trim, sum_trim=sum_trim, weighted=weighted
        ),
        index=samples,
        name="norm_factor",
    )


def tmm(
    counts: _Array,
    *,
    reference: int | None = None,
    ratio_trim: float = 0.3,
    sum_trim: float = 0.05,
    weighted: bool = True,
) -> _Array:
    """:func:`tmm_factors` of an array (samples, genes), without labels."""
    sizes = counts.sum(axis=1)
    seen = counts.any(axis=0)
    if len(counts) < 2 or not seen.any():
        return np.ones(len(counts))
    if not seen.all():
        counts = counts[:, seen]
    chosen = _pick_reference(counts, sizes) if reference is None else reference
    against = _Reference(counts[chosen], sizes[chosen])
    factors = np.ones(len(counts))

    def fill(rows: range) -> None:
        for i in rows:
            factors[i] = against.factor(counts[i], sizes[i], ratio_trim, sum_trim, weighted)

    spread(fill, len(counts), step=16)
    return factors / np.exp(np.log(factors).mean())


def _pick_reference(counts: _Array, sizes: _Array) -> int:
    """The sample whose upper quartile of count/size is nearest the mean of all; the richest where most are zero."""
    middle = 0.75 * (counts.shape[1] - 1)
    low, high = int(np.floor(middle)), int(np.ceil(middle))
    quartiles = np.empty(len(counts))

    def fill(rows: range) -> None:
        for i in rows:
            ordered = np.sort(counts[i])
            lower, upper = ordered[low] / sizes[i], ordered[high] / sizes[i]
            quartiles[i] = lower + (middle - low) * (upper - lower)

    spread(fill, len(counts), step=16)
    if np.median(quartiles) < 1e-20:
        return int(np.sqrt(counts).sum(axis=1).argmax())
    return int(np.abs(quartiles - quartiles.mean()).argmin())


class _Reference:
    """The sample that others are compared with: its expressed genes' shares, their logarithms and variances."""

    def __init__(self, counts: _Array, size: float) -> None:
        self.expressed = counts > 0
        with np.errstate(divide="ignore"):
            self.share = counts / size
            self.log_share = np.log2(self.share)
            self.variance = (size - counts) / size / counts

    def factor(
        self, counts: _Array, size: float, ratio_trim: float, sum_trim: float, weighted: bool
    ) -> float:
        """2 to the power of the trimmed, precision-weighted mean log ratio of a sample, counts (genes,)."""
        both = np.flatnonzero(np.logical_and(counts, self.expressed))
        counts = counts[both]
        share = counts / size
        ratio = np.log2(share / self.share[both])
        if not len(ratio) or np.abs(ratio).max() < 1e-6:
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
    """Which values have a rank (ties share the average) between floor(n trim) + 1 and n - floor(n trim)."""
    n = len(values)
    cut = int(np.floor(n * trim))
    ordered = np.sort(values)  # vectorised in numpy, and faster than its partition
    low, high = ordered[cut], ordered[n - 1 - cut]
    keep = (values > low) & (values < high)
    for edge in {low, high}:
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
    """Genes with enough counts in enough samples for a statistical analysis, (genes,), as edgeR's ``filterByExpr``.

    Enough samples is the size of the smallest group, or for a ``design`` matrix (samples, columns) the inverse of the
    largest leverage; above ``large_n`` samples only ``min_prop`` of the excess counts.
    """
    values, _, genes = as_matrix(counts)
    sizes = values.sum(axis=1)
    if group is not None:
        smallest = float(np.unique(np.asarray(group, dtype=str), return_counts=True)[1].min())
    elif design is not None:
        smallest = 1 / _leverages(design).max()
    else:
        smallest = float(len(values))
    if smallest > large_n:
        smallest = large_n + (smallest - large_n) * min_prop
    threshold = min_count / np.median(sizes) * 1e6
    enough = (values / sizes[:, None] * 1e6 >= threshold).sum(axis=0) >= smallest - _TOLERANCE
    return pd.Series(
        enough & (values.sum(axis=0) >= min_total_count - _TOLERANCE), index=genes, name="keep"
    )


def _leverages(design: _Array) -> _Array:
    """The diagonal of the hat matrix of a design (samples, columns) with an intercept added, as R's ``hat``."""
    from perturbgen.de.design import independent_columns

    full = np.column_stack([np.ones(len(design)), design])
    q = np.linalg.qr(full[:, independent_columns(full)])[0]
    return (q**2).sum(axis=1)


GeneFilter = Literal["filterByExpr", "intersection"] | Sequence[str] | None


@dataclass(frozen=True)
class Inputs:
    """Checked counts (samples, genes) with the labels of both and obs in the same order."""

    values: _Array
    genes: pd.Index
    obs: pd.DataFrame


def gene_masks(
    data: Inputs,
    fits: Sequence[Fit],
    gene_filter: GeneFilter,
    *,
    design: str,
    group: str,
    by: str | None,
) -> list[NDArray[np.bool_]]:
    """Which genes each fit uses."""
    if gene_filter is None:
        return [np.ones(len(data.genes), dtype=bool)] * len(fits)
    if gene_filter == "filterByExpr":
        masks = [_expressed(data.values[fit.rows], fit.design) for fit in fits]
    elif gene_filter == "intersection":
        masks = [_common_genes(data, design=design, group=group, by=by)] * len(fits)
    elif isinstance(gene_filter, str):
        raise ConfigError(
            f"gene_filter={gene_filter!r} is unknown",
            expected='"filterByExpr", "intersection" or genes',
        )
    else:
        masks = [_named_genes(data.genes, gene_filter)] * len(fits)
    for fit, mask in zip(fits, masks, strict=True):
        _check_mask(data.values[fit.rows], mask, data.obs.index[fit.rows])
    return masks


def _expressed(values: _Array, design: Design) -> NDArray[np.bool_]:
    """edgeR's filter of (samples, genes) under a design."""
    return filter_by_expr(values, design=design.matrix[:, design.kept]).to_numpy()


def _common_genes(data: Inputs, *, design: str, group: str, by: str | None) -> NDArray[np.bool_]:
    """The genes that the filter keeps in every level of ``by``, each with the design of its own samples."""
    groups = text_column(data.obs, group, "group")
    strata = text_column(data.obs, by, "by") if by else pd.Series("", index=data.obs.index)
    keep = np.ones(len(data.genes), dtype=bool)
    for level in level_order(strata):
        rows = np.flatnonzero((strata == level).to_numpy())
        keep &= _expressed(
            data.values[rows], build_design(design, data.obs.iloc[rows], groups.iloc[rows])
        )
    return keep


def _named_genes(genes: pd.Index, wanted: Sequence[str]) -> NDArray[np.bool_]:
    """A mask of genes given by name."""
    absent = [name for name in wanted if name not in genes]
    if absent:
        raise SchemaError(
            f"{len(absent)} genes of gene_filter are not in the counts: {shorten(absent)}"
        )
    return np.asarray(genes.isin(list(wanted)))


def _check_mask(values: _Array, mask: NDArray[np.bool_], samples: pd.Index) -> None:
    """A filter must leave genes, and counts in every sample."""
    if not mask.any():
        raise SchemaError(
            "the gene filter leaves no gene", fix="gene_filter=None, or check the sequencing depth"
        )
    empty = np.logical_not(values[:, mask].any(axis=1))
    if empty.any():
        raise CountsError(
            f"no counts are left after the gene filter in {shorten(samples[empty])}",
            fix="drop those samples",
        )
