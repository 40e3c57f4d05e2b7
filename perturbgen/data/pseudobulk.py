"""Pseudobulk: the summed counts of every group of cells, as one sparse product."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from perturbgen.data.counts import named_matrix, require_counts
from perturbgen.data.frames import factorize, require_columns, require_values
from perturbgen.errors import SchemaError, shorten

if TYPE_CHECKING:
    from anndata import AnnData

SEPARATOR = " | "
logger = logging.getLogger(__name__)


def pseudobulk(
    adata: AnnData, by: Sequence[str], *, layer: str | None = None, allow_fractional: bool = False
) -> AnnData:
    """Sum the counts of the cells that agree in the columns ``by``.

    X of the result is CSR int64 (groups, genes), float64 with ``allow_fractional``. Groups are those that occur, sorted
    by their values in the order of ``by`` and named by them (``plate_0 | A1 | NK cells``). obs keeps the columns that
    are constant within every group and gains ``n_cells``. Groups without a single count are dropped, and the log names
    them, since no normalisation can place them. Categorical columns sort by value, not by their category order.
    """
    from anndata import AnnData

    columns = [by] if isinstance(by, str) else list(by)
    require_columns(adata.obs, columns)
    require_values(adata.obs, columns)
    group, first, obs = group_cells(adata.obs, columns)
    counts = raw_counts(adata, layer, allow_fractional)
    sums = sum_groups(counts, group, len(first), exact=not allow_fractional)
    vehicle = {"vehicle": adata.uns["vehicle"]} if "vehicle" in adata.uns else {}
    bulk = AnnData(sums, obs=obs, var=adata.var.copy(), uns=vehicle)
    return drop_empty(bulk)


def group_cells(obs: pd.DataFrame, by: Sequence[str]) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """The group of every cell (cells,), the first cell of every group (groups,), and the table of groups."""
    plain = pd.DataFrame({name: np.asarray(obs[name]) for name in by})
    group = plain.groupby(list(by), sort=True, observed=True).ngroup().to_numpy()
    _, first = np.unique(group, return_index=True)
    kept = [name for name in obs.columns if name in by or is_constant(obs[name], group, first)]
    table = obs.iloc[first][kept].copy()
    table.index = pd.Index(group_names(obs.iloc[first], by), name="group")
    table["n_cells"] = np.bincount(group, minlength=len(first))
    return group, first, table


def group_names(groups: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """One readable, unique name a group."""
    names = pd.Series([SEPARATOR.join(map(str, values)) for values in zip(*(groups[name] for name in by), strict=True)])
    if names.duplicated().any():
        raise SchemaError(
            f"two groups would share the name {names[names.duplicated()].iloc[0]!r}",
            cause=f"values that contain {SEPARATOR!r}, or the number 1 beside the text '1'",
            fix=f"rename these values in {shorten(by)}",
        )
    return names.to_list()


def is_constant(column: pd.Series, group: np.ndarray, first: np.ndarray) -> bool:
    """True if no group holds two values of the column (a missing value is a value of its own)."""
    codes = factorize(column)
    return bool(np.array_equal(codes, codes[first][group]))


def sum_groups(counts: sparse.csr_matrix, group: np.ndarray, n_groups: int, *, exact: bool) -> sparse.csr_matrix:
    """The sums per group (groups, genes): the indicator matrix of the groups (groups, cells) times the counts.

    This is scipy's sparse product, but it accumulates in 64 bits without casting the counts first and leaves its
    columns sorted, which makes it five times as fast.
    """
    from perturbgen.data.kernels import group_sums

    kind = np.int64 if exact else np.float64
    cells = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=n_groups))])
    stored = np.concatenate([[0], np.cumsum(np.diff(counts.indptr)[cells])])
    room = int(np.minimum(np.diff(stored[starts]), counts.shape[1]).sum())
    values, columns, offsets = np.empty(room + 1, kind), np.empty(room + 1, np.int32), np.zeros(n_groups + 1, np.int64)
    total = np.zeros(counts.shape[1], kind)
    group_sums(counts.data, counts.indices, counts.indptr, cells, starts, total, values, columns, offsets)
    used = offsets[-1]
    return sparse.csr_matrix((values[:used], columns[:used], offsets), shape=(n_groups, counts.shape[1]))


def raw_counts(adata: AnnData, layer: str | None, allow_fractional: bool) -> sparse.csr_matrix:
    """X or the layer as CSR (cells, genes), checked to hold whole numbers unless fractions are allowed."""
    where, matrix = named_matrix(adata, layer)
    counts = sparse.csr_matrix(matrix)
    require_counts(counts, where=where, cells=adata.obs_names, genes=adata.var_names, fractional=allow_fractional)
    return counts


def drop_empty(bulk: AnnData) -> AnnData:
    """Without the groups whose counts are all zero; the log names them."""
    empty = np.asarray(bulk.X.sum(axis=1)).ravel() == 0
    if not empty.any():
        return bulk
    logger.warning("dropped %d groups without counts: %s", empty.sum(), shorten(bulk.obs_names[empty]))
    return bulk[~empty].copy()
