"""Counts before any statistics: what they and obs must be."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import CountsError, SchemaError, shorten

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]


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
        logs: bool = False,
    ) -> Inputs:
        """Of an AnnData, which brings its own obs, or a frame beside one; joined by label.

        ``logs`` are log expressions, of which any finite number is one.
        """
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
        if logs:
            _check_logs(values)
            return cls(values, genes, aligned)
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


def _check_logs(values: _Array) -> None:
    """Refuse what are not log expressions."""
    if not values.size or not np.isfinite(values).all():
        what = "log expressions are empty, or hold a missing or infinite value"
        raise CountsError(what, fix="fill in or drop those genes; log(x + 1) of zeros")
    if values.min() >= 0 and values.max() > 100 and (values == np.rint(values)).all():
        log.warning("the log expressions are whole numbers up to %.0f: counts?", values.max())


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
