"""Sums of counts over groups of cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.errors import CountsError, SchemaError, shorten, suggest

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)


def pseudobulk(
    adata: AnnData, by: Sequence[str], *, layer: str | None = None, allow_fractional: bool = False
) -> AnnData:
    """Sum the counts of the cells that share their values in the columns ``by``.

    Returns a sample for each combination that occurs, in sorted order, named by its values joined with ``|``: X is CSR
    (samples, genes), int64 (float64 with ``allow_fractional``); obs has the columns that are constant within every
    sample, and ``n_cells``. Samples without a single count are dropped, and named in the log.
    """
    from anndata import AnnData

    by = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    codes, keys = group_codes(adata.obs, by)
    counts = sp.csr_array(adata.X if layer is None else adata.layers[layer])
    sums = sum_rows(counts, codes, len(keys), allow_fractional=allow_fractional)
    obs = constant_columns(adata.obs, codes, by)
    obs["n_cells"] = np.bincount(codes, minlength=len(keys))
    obs.index = pd.Index(["|".join(map(str, key)) for key in keys.itertuples(index=False)], name="sample")
    bulk = AnnData(sums, obs=obs, var=adata.var.copy())
    bulk.uns.update({key: adata.uns[key] for key in ("vehicle",) if key in adata.uns})
    return drop_empty(bulk)


def group_codes(obs: pd.DataFrame, by: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """A number for each cell's group, and the groups' values (groups, columns of ``by``) in sorted order."""
    for name in by:
        if name not in obs:
            raise SchemaError(f"pseudobulk by {name!r}: obs has no such column", fix=suggest(name, obs.columns))
        if obs[name].isna().any():
            missing = obs.index[obs[name].isna()]
            raise SchemaError(
                f"pseudobulk by {name!r}: {len(missing)} cells have no value: {shorten(missing)}",
                fix="drop those cells, or give them a value",
            )
    groups = obs.groupby(list(by), observed=True, sort=True)
    keys = groups.size().index.to_frame(index=False)
    return groups.ngroup().to_numpy(), keys


def sum_rows(counts: sp.csr_array, codes: np.ndarray, groups: int, *, allow_fractional: bool = False) -> sp.csr_array:
    """Sums (groups, genes) of the rows of ``counts`` (cells, genes) that share a code, added in 64 bits."""
    if not allow_fractional and counts.dtype.kind == "f" and (counts.data != np.rint(counts.data)).any():
        raise CountsError(
            "pseudobulk of values that are not whole numbers",
            expected="raw counts",
            cause="the matrix was normalised, or holds means instead of drawn counts",
            fix="name the raw layer, or allow fractional values knowingly: allow_fractional=True",
        )
    from perturbgen.data.kernels import group_sums

    dtype = np.float64 if allow_fractional else np.int64
    order, starts = (
        np.argsort(codes, kind="stable"),
        np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=groups))]),
    )
    lengths = np.diff(counts.indptr)
    most = np.minimum(np.add.reduceat(lengths[order], starts[:-1]), counts.shape[1]) if len(codes) else lengths
    values, columns = np.empty(int(most.sum()) + 1, dtype), np.empty(int(most.sum()) + 1, np.int32)
    offsets, total = np.zeros(groups + 1, np.int64), np.zeros(counts.shape[1], dtype)
    indices, indptr = counts.indices.astype(np.int32, copy=False), counts.indptr.astype(np.int64, copy=False)
    group_sums(counts.data, indices, indptr, order, starts, total, values, columns, offsets)
    used = offsets[-1]
    return sp.csr_array((values[:used], columns[:used], offsets), shape=(groups, counts.shape[1]))


def constant_columns(obs: pd.DataFrame, codes: np.ndarray, by: Sequence[str]) -> pd.DataFrame:
    """The columns of obs that have one value in every group, ``by`` first; a row for each group."""
    first = pd.Series(np.arange(len(codes))).groupby(codes).first().to_numpy()
    rest = [name for name in obs if name not in by and is_constant(obs[name], codes, first)]
    kept = obs[[*by, *rest]].iloc[first].reset_index(drop=True)
    for name in kept.select_dtypes("category"):
        kept[name] = kept[name].cat.remove_unused_categories()
    return kept


def is_constant(values: pd.Series, codes: np.ndarray, first: np.ndarray) -> bool:
    """Whether every cell has the value of its group's first cell; missing equals missing."""
    numbers, _ = pd.factorize(values, use_na_sentinel=False)
    return bool((numbers == numbers[first][codes]).all())


def drop_empty(bulk: AnnData) -> AnnData:
    """Without the samples that have no counts: no normalisation can use them."""
    empty = np.asarray(bulk.X.sum(axis=1)).ravel() == 0
    if empty.all():
        raise CountsError(f"none of the {len(empty)} pseudobulk samples has a count", expected="raw counts")
    if empty.any():
        log.warning("dropped %d pseudobulk samples without counts: %s", empty.sum(), shorten(bulk.obs_names[empty]))
        bulk = bulk[~empty].copy()
    return bulk
