"""What counts and samples must be before any statistics are done on them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.errors import CountsError, SchemaError, shorten

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

Array = NDArray[np.float64]


def as_matrix(counts: AnnData | pd.DataFrame | Any, layer: str | None = None) -> tuple[Array, pd.Index, pd.Index]:
    """Counts as a dense float64 array (samples, genes) with the labels of both."""
    if isinstance(counts, pd.DataFrame):
        return dense(counts.to_numpy()), counts.index, counts.columns
    if hasattr(counts, "obs_names"):
        if layer is not None and layer not in counts.layers:
            raise SchemaError(f"no layer {layer!r}", expected=f"one of {shorten(counts.layers)}", fix="check --layer")
        return dense(counts.X if layer is None else counts.layers[layer]), counts.obs_names, counts.var_names
    values = dense(counts)
    return values, pd.RangeIndex(len(values)), pd.RangeIndex(values.shape[1])


def dense(values: Any) -> Array:
    """An array or sparse matrix as a dense, row-major float64 array."""
    array = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if array.ndim != 2:
        raise CountsError(f"counts have {array.ndim} dimensions", expected="samples x genes")
    try:
        return np.ascontiguousarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise CountsError("counts hold something that is not a number", expected="samples x genes of numbers") from None


def check_counts(values: Array, samples: pd.Index, genes: pd.Index, *, allow_fractional: bool = False) -> None:
    """Refuse what are not raw counts; name the first culprit."""
    if not values.size:
        raise CountsError(f"counts are empty: {values.shape[0]} samples x {values.shape[1]} genes")
    fail_where(~np.isfinite(values), values, samples, genes, "a missing or infinite value", "fill in or drop it")
    fail_where(values < 0, values, samples, genes, "a negative value", "pass the raw count matrix")
    fractional = values != np.rint(values)
    if allow_fractional and fractional.any():
        log.warning(
            "%.1f %% of the counts are not whole numbers; averages or noise-free means make p-values far too small",
            100 * fractional.mean(),
        )
    elif fractional.any():
        fail_where(
            fractional,
            values,
            samples,
            genes,
            "a fraction",
            "draw counts instead of averaging them, or override with allow_fractional (--allow-fractional)",
        )
    empty = values.sum(axis=1) == 0
    if empty.any():
        raise CountsError(
            f"{int(empty.sum())} samples have no counts at all: {shorten(samples[empty])}",
            cause="a well without cells",
            fix="drop them before the analysis",
        )


def fail_where(
    wrong: NDArray[np.bool_], values: Array, samples: pd.Index, genes: pd.Index, what: str, fix: str
) -> None:
    """An error that names the first place where ``wrong`` (samples, genes) holds."""
    if not wrong.any():
        return
    i, j = (int(k) for k in np.unravel_index(int(wrong.argmax()), wrong.shape))
    raise CountsError(
        f"counts hold {what}: sample {str(samples[i])!r} has {values[i, j]:g} in gene {str(genes[j])!r}",
        expected="raw counts (whole numbers, not negative)",
        cause="the matrix was normalised, averaged or log-transformed" if what == "a fraction" else None,
        fix=fix,
    )


def find_obs(counts: AnnData | pd.DataFrame, obs: pd.DataFrame | None) -> pd.DataFrame:
    """obs as given, or the AnnData's own."""
    if obs is not None:
        return obs
    if isinstance(counts, pd.DataFrame) or not hasattr(counts, "obs"):
        raise SchemaError("counts come without obs", expected="an AnnData, or obs= with a row for each sample")
    return counts.obs


def check_labels(samples: pd.Index, genes: pd.Index) -> None:
    """Labels must be unique, since everything is joined by them."""
    for labels, what in ((samples, "samples"), (genes, "genes")):
        if not labels.is_unique:
            repeated = labels[labels.duplicated()].unique()
            raise SchemaError(
                f"{len(repeated)} {what} occur more than once: {shorten(repeated)}",
                fix="obs_names_make_unique() or var_names_make_unique(), or drop the copies",
            )


def align_obs(obs: pd.DataFrame, samples: pd.Index) -> pd.DataFrame:
    """obs in the order of the counts, joined by label."""
    if not obs.index.is_unique:
        raise SchemaError(f"obs repeats samples: {shorten(obs.index[obs.index.duplicated()].unique())}")
    absent = samples.difference(obs.index, sort=False)
    if len(absent):
        raise SchemaError(
            f"obs lacks {len(absent)} of the samples in the counts: {shorten(absent)}",
            cause="counts are genes x samples, or the two come from different files",
        )
    return obs.loc[samples]


def warn_duplicates(values: Array, samples: pd.Index) -> None:
    """Say which samples hold the very same counts: copies are no replicates."""
    _, first, inverse = np.unique(
        np.column_stack([values.sum(axis=1), values @ np.arange(1, values.shape[1] + 1)]),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    original = first[inverse.ravel()]
    same = [i for i, j in enumerate(original) if i != j and np.array_equal(values[i], values[j])]
    if same:
        log.warning(
            "samples with the same counts as another one (copies are no replicates): %s", shorten(samples[same])
        )
