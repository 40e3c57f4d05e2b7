"""A one-screen summary of counts: size, sparsity, depth, cells by cell type and compound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.data.counts import is_sparse
from perturbgen.data.schema import depth

if TYPE_CHECKING:
    from anndata import AnnData

QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}


def overview(adata: AnnData) -> dict[str, Any]:
    """Cells, genes, share of zeros, vehicle and how many values each of our columns holds."""
    stored = adata.X.count_nonzero() if is_sparse(adata.X) else np.count_nonzero(adata.X)
    levels = {c: adata.obs[c].nunique() for c in ("cell_type", "compound", "donor", "plate") if c in adata.obs}
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "zeros": 1 - float(stored) / max(adata.n_obs * adata.n_vars, 1),
        "vehicle": adata.uns.get("vehicle"),
        **{f"{name}s": int(count) for name, count in levels.items()},
    }


def depth_quantiles(adata: AnnData) -> list[dict[str, Any]]:
    """Quantiles of counts and of genes detected per cell."""
    genes = (adata.X != 0).sum(axis=1)
    measures = {"counts per cell": depth(adata), "genes per cell": np.asarray(genes).ravel()}
    return [
        {"per cell": name} | {label: quantile(values, q) for label, q in QUANTILES.items()}
        for name, values in measures.items()
    ]


def quantile(values: np.ndarray, q: float) -> int | None:
    """A quantile as a whole number; None where there are no values, or one of them is no number."""
    usable = values.size > 0 and bool(np.isfinite(values).all())
    return round(float(np.quantile(values, q))) if usable else None


def cells_by_condition(adata: AnnData, *, top: int = 12) -> list[dict[str, Any]]:
    """Cells of each cell type (columns) for the compounds with most cells (rows); the rest is summed in a last row."""
    obs = adata.obs[["compound", "cell_type"]].astype(str)
    table = pd.crosstab(obs["compound"], obs["cell_type"])
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    rows = [{"compound": str(name)} | row for name, row in zip(table.index[:top], records(table[:top]), strict=True)]
    rest = table[top:]
    if len(rest):
        rows.append({"compound": f"({len(rest)} more)"} | records(rest.sum().to_frame().T)[0])
    return rows


def records(table: pd.DataFrame) -> list[dict[str, int]]:
    """Rows of a table of counts as dictionaries of plain integers."""
    return [{str(k): int(v) for k, v in row.items()} for row in table.to_dict("records")]
