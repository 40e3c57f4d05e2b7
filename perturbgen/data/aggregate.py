"""``pseudobulk``, and the sums of counts over groups of cells that it is made of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numba import njit
from scipy.sparse.csgraph import connected_components

from perturbgen.core.errors import CountsError, shorten
from perturbgen.data.covariates import complete

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)
_Array = np.ndarray[Any, Any]


def pseudobulk(
    adata: AnnData, by: Sequence[str], *, layer: str | None = None, allow_fractional: bool = False
) -> AnnData:
    """Sum the counts of the cells that share their values in the columns ``by``.

    Returns a sample for each combination that occurs, in sorted order, named by its values joined
    with ``|``: X is CSR (samples, genes), int64 (float64 with ``allow_fractional``); obs has the
    columns that are constant within every sample, and ``n_cells``. Samples without a single count
    are dropped, and named in the log.
    """
    from anndata import AnnData

    by = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    codes, obs = groups_of(adata.obs, by)
    counts = sp.csr_array(adata.X if layer is None else adata.layers[layer])
    may_be_fractional = counts.dtype.kind == "f" and not allow_fractional
    # Means of a decoder would pass for counts here, and give absurdly small p-values after limma.
    if may_be_fractional and (counts.data != np.rint(counts.data)).any():
        raise CountsError(
            "pseudobulk of values that are not whole numbers",
            expected="raw counts",
            cause="the matrix was normalised, or holds means instead of drawn counts",
            fix="name the raw layer, or allow fractional values knowingly: allow_fractional=True",
        )
    sums = _sum_rows(counts, codes, len(obs), np.dtype(float if allow_fractional else np.int64))
    obs["n_cells"] = np.bincount(codes, minlength=len(obs))
    names = ["|".join(map(str, key)) for key in obs[by].itertuples(index=False)]
    # a file may have a column of that name, and two of one name cannot be written
    obs.index = pd.Index(names, name=None if "sample" in obs else "sample")
    bulk = AnnData(sums, obs=obs, var=adata.var.copy())
    bulk.uns.update({key: adata.uns[key] for key in ("vehicle",) if key in adata.uns})
    # No normalisation can use a sample without counts.
    empty = np.asarray(bulk.X.sum(axis=1)).ravel() == 0
    if empty.all():
        what = f"none of the {len(empty)} pseudobulk samples has a count"
        raise CountsError(what, expected="raw counts")
    if empty.any():
        lost = shorten(bulk.obs_names[empty])
        log.warning("dropped %d pseudobulk samples without counts: %s", empty.sum(), lost)
        bulk = bulk[~empty].copy()
    return bulk


def groups_of(obs: pd.DataFrame, by: Sequence[str]) -> tuple[_Array, pd.DataFrame]:
    """A number for each cell's group (cells,), and a row for each group in sorted order.

    The rows have the columns ``by`` and then all others that have one value in every group.
    """
    for name in by:
        complete(obs, name, "pseudobulk by")
    codes = obs.groupby(list(by), observed=True, sort=True).ngroup().to_numpy()
    _, first = np.unique(codes, return_index=True)

    def constant(name: Any) -> bool:
        # As codes, in which a missing value equals a missing one.
        values, _ = pd.factorize(obs[name], use_na_sentinel=False)
        return bool((values == values[first][codes]).all())

    rest = [name for name in obs if name not in by and constant(name)]
    groups = obs[[*by, *rest]].iloc[first].reset_index(drop=True)
    for category in groups.select_dtypes("category"):
        groups[category] = groups[category].cat.remove_unused_categories()
    return codes, groups


def _sum_rows(counts: sp.csr_array, codes: _Array, groups: int, dtype: np.dtype) -> sp.csr_array:
    """Sums (groups, genes) of the rows of ``counts`` (cells, genes) of one code, in 64 bits."""
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=groups))])
    lengths = np.diff(counts.indptr)
    # A group has at most as many non-zero genes as its cells have non-zeros, and as there are
    # genes.
    most = np.add.reduceat(lengths[order], starts[:-1]) if len(codes) else lengths
    size = int(np.minimum(most, counts.shape[1]).sum()) + 1
    values, columns = np.empty(size, dtype), np.empty(size, np.int32)
    offsets, total = np.zeros(groups + 1, np.int64), np.zeros(counts.shape[1], dtype)
    indices = counts.indices.astype(np.int32, copy=False)
    indptr = counts.indptr.astype(np.int64, copy=False)
    _add_up(counts.data, indices, indptr, order, starts, total, values, columns, offsets)
    used = offsets[-1]
    return sp.csr_array((values[:used], columns[:used], offsets), shape=(groups, counts.shape[1]))


@njit(nogil=True, cache=True)
def _add_up(
    values: _Array,
    columns: _Array,
    offsets: _Array,
    cells: _Array,
    starts: _Array,
    total: _Array,
    out_values: _Array,
    out_columns: _Array,
    out_offsets: _Array,
) -> None:
    """Group indicator times counts: group ``k`` is ``cells[starts[k]:starts[k + 1]]``.

    ``values``, ``columns`` and ``offsets`` are a CSR matrix. ``total`` (genes,) is a zeroed
    accumulator, zero again at the end; the sums come out as CSR with sorted columns.
    """
    at = 0
    for k in range(len(starts) - 1):
        for i in range(starts[k], starts[k + 1]):
            for j in range(offsets[cells[i]], offsets[cells[i] + 1]):
                total[columns[j]] += values[j]
        for gene in range(len(total)):
            # A zero is written too and then overwritten, hence one place more than there are sums:
            # a branch here would be mispredicted for a third of the genes and cost as much as the
            # additions.
            out_values[at] = total[gene]
            out_columns[at] = gene
            at += total[gene] != 0
            total[gene] = 0
        out_offsets[k + 1] = at


def layout_of(obs: pd.DataFrame) -> pd.Series:
    """Where each compound was measured: its rows, and the group of plates that share compounds.

    Compounds of equal labels shared plates and rows, and with them whatever these do to counts.
    """
    table = pd.crosstab(obs["compound"].astype(str), obs["plate"].astype(str)) > 0
    # what is on every plate (controls) would join plates of different compounds
    own = table[~table.all(axis=1)].astype(int)
    linked: Any = connected_components((own @ own.T).to_numpy())[1] if len(own) else []
    library = pd.Series(linked, own.index).astype(str).reindex(table.index, fill_value="")
    rows = obs["row"].astype(str).groupby(obs["compound"].astype(str)).unique()
    return library + rows.map(sorted).map("".join)
