"""Counts before any statistics: what they and obs must be, TMM factors and the expression filter.

The factors and the filter are edgeR's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import CountsError, SchemaError, shorten
from perturbgen.core.system import spread
from perturbgen.de.design import Design

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_TOLERANCE = 1e-14  # edgeR's allowance for rounding in comparisons of totals and sample numbers
_ROWS = 16  # samples at a time


def as_matrix(
    counts: AnnData | pd.DataFrame | Any, layer: str | None = None
) -> tuple[_Array, pd.Index, pd.Index]:
    """Counts as a dense, row-major float64 array (samples, genes) with the labels of both."""
    if isinstance(counts, pd.DataFrame):
        return _dense(counts.to_numpy()), counts.index, counts.columns
    if not hasattr(counts, "obs_names"):
        values = _dense(counts)
        return values, pd.RangeIndex(len(values)), pd.RangeIndex(values.shape[1])
    if layer is not None and layer not in counts.layers:
        known = f"one of {shorten(counts.layers)}"
        raise SchemaError(f"no layer {layer!r}", expected=known, fix="check --layer")
    matrix = counts.X if layer is None else counts.layers[layer]
    return _dense(matrix), counts.obs_names, counts.var_names


def _dense(values: Any) -> _Array:
    array = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if array.ndim != 2:
        raise CountsError(f"counts have {array.ndim} dimensions", expected="samples x genes")
    try:
        return np.ascontiguousarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        what = "counts hold something that is not a number"
        raise CountsError(what, expected="samples x genes of numbers") from None


@dataclass(frozen=True)
class Inputs:
    """Checked counts (samples, genes), the genes' names, and obs in the order of the samples."""

    values: _Array
    genes: pd.Index
    obs: pd.DataFrame

    @classmethod
    def of(
        cls,
        counts: AnnData | pd.DataFrame,
        obs: pd.DataFrame | None,
        *,
        layer: str | None = None,
        allow_fractional: bool = False,
    ) -> Inputs:
        """Of an AnnData, which brings its own obs, or a frame beside one; joined by label."""
        values, samples, genes = as_matrix(counts, layer)
        for labels, what in ((samples, "samples"), (genes, "genes")):
            if not labels.is_unique:  # everything is joined by them
                repeated = labels[labels.duplicated()].unique()
                raise SchemaError(
                    f"{len(repeated)} {what} occur more than once: {shorten(repeated)}",
                    fix="obs_names_make_unique() or var_names_make_unique(), or drop the copies",
                )
        if obs is None:  # a column that is named obs is no table of samples
            obs = None if isinstance(counts, pd.DataFrame) else getattr(counts, "obs", None)
        if obs is None:
            wanted = "an AnnData, or obs= with a row for each sample"
            raise SchemaError("counts come without obs", expected=wanted)
        # obs is checked first: transposed counts are told as such, not as counts that are no counts
        aligned = _align_obs(obs, samples)
        _check_counts(values, samples, genes, allow_fractional=allow_fractional)
        _warn_duplicates(values, samples)
        return cls(values, genes, aligned)


def _align_obs(obs: pd.DataFrame, samples: pd.Index) -> pd.DataFrame:
    if not obs.index.is_unique:
        twice = shorten(obs.index[obs.index.duplicated()].unique())
        raise SchemaError(f"obs repeats samples: {twice}")
    absent = samples.difference(obs.index, sort=False)
    if len(absent):
        raise SchemaError(
            f"obs lacks {len(absent)} of the samples in the counts: {shorten(absent)}",
            cause="counts are genes x samples, or the two come from different files",
        )
    return obs.loc[samples]


def _check_counts(
    values: _Array, samples: pd.Index, genes: pd.Index, *, allow_fractional: bool
) -> None:
    """Refuse what are not raw counts; name the first culprit."""

    def refuse_where(wrong: NDArray[np.bool_], what: str, **advice: str) -> None:
        if wrong.any():
            i, j = (int(k) for k in np.unravel_index(int(wrong.argmax()), wrong.shape))
            raise CountsError(
                f"counts hold {what}: sample {str(samples[i])!r} has {values[i, j]:g} "
                f"in gene {str(genes[j])!r}",
                expected="raw counts (whole numbers, not negative)",
                **advice,
            )

    if not values.size:
        raise CountsError(f"counts are empty: {values.shape[0]} samples x {values.shape[1]} genes")
    refuse_where(~np.isfinite(values), "a missing or infinite value", fix="fill in or drop it")
    refuse_where(values < 0, "a negative value", fix="pass the raw count matrix")
    fractional = values != np.rint(values)
    if not allow_fractional:
        cause = "the matrix was normalised, averaged or log-transformed"
        fix = "draw counts instead of averaging them, or override with allow_fractional"
        refuse_where(fractional, "a fraction", cause=cause, fix=f"{fix} (--allow-fractional)")
    elif fractional.any():
        log.warning(
            "%.1f %% of the counts are not whole numbers; "
            "averages or noise-free means make p-values far too small",
            100 * fractional.mean(),
        )
    empty = values.sum(axis=1) == 0
    if empty.any():
        raise CountsError(
            f"{int(empty.sum())} samples have no counts at all: {shorten(samples[empty])}",
            cause="a well without cells",
            fix="drop them before the analysis",
        )


def _warn_duplicates(values: _Array, samples: pd.Index) -> None:
    """Say which samples hold the very same counts: copies are no replicates."""
    # two sums that copies share find the candidates, so that few samples are compared as a whole
    sums = np.column_stack([values.sum(axis=1), values @ np.arange(1, values.shape[1] + 1)])
    _, first, inverse = np.unique(sums, axis=0, return_index=True, return_inverse=True)
    original = first[inverse.ravel()]
    same = [i for i, j in enumerate(original) if i != j and np.array_equal(values[i], values[j])]
    if same:
        log.warning(
            "samples with the same counts as another one (copies are no replicates): %s",
            shorten(samples[same]),
        )


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
