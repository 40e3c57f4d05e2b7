"""Which genes an analysis is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.de.design import Design, build_design
from perturbgen.de.normalise import filter_by_expr
from perturbgen.de.plan import Fit, level_order, text_column
from perturbgen.errors import ConfigError, CountsError, SchemaError, shorten

Array = NDArray[np.float64]
GeneFilter = Literal["filterByExpr", "intersection"] | Sequence[str] | None


@dataclass(frozen=True)
class Inputs:
    """Checked counts (samples, genes) with the labels of both and obs in the same order."""

    values: Array
    genes: pd.Index
    obs: pd.DataFrame


def gene_masks(
    data: Inputs, fits: Sequence[Fit], gene_filter: GeneFilter, *, design: str, group: str, by: str | None
) -> list[NDArray[np.bool_]]:
    """Which genes each fit uses."""
    if gene_filter is None:
        return [np.ones(len(data.genes), dtype=bool)] * len(fits)
    if gene_filter == "filterByExpr":
        masks = [expressed(data.values[fit.rows], fit.design) for fit in fits]
    elif gene_filter == "intersection":
        masks = [common_genes(data, design=design, group=group, by=by)] * len(fits)
    elif isinstance(gene_filter, str):
        raise ConfigError(f"gene_filter={gene_filter!r} is unknown", expected='"filterByExpr", "intersection" or genes')
    else:
        masks = [named_genes(data.genes, gene_filter)] * len(fits)
    for fit, mask in zip(fits, masks, strict=True):
        check_mask(data.values[fit.rows], mask, data.obs.index[fit.rows])
    return masks


def expressed(values: Array, design: Design) -> NDArray[np.bool_]:
    """edgeR's filter of (samples, genes) under a design."""
    return filter_by_expr(values, design=design.matrix[:, design.kept]).to_numpy()


def common_genes(data: Inputs, *, design: str, group: str, by: str | None) -> NDArray[np.bool_]:
    """The genes that the filter keeps in every level of ``by``, each with the design of its own samples."""
    groups = text_column(data.obs, group, "group")
    strata = text_column(data.obs, by, "by") if by else pd.Series("", index=data.obs.index)
    keep = np.ones(len(data.genes), dtype=bool)
    for level in level_order(strata):
        rows = np.flatnonzero((strata == level).to_numpy())
        keep &= expressed(data.values[rows], build_design(design, data.obs.iloc[rows], groups.iloc[rows]))
    return keep


def named_genes(genes: pd.Index, wanted: Sequence[str]) -> NDArray[np.bool_]:
    """A mask of genes given by name."""
    absent = [name for name in wanted if name not in genes]
    if absent:
        raise SchemaError(f"{len(absent)} genes of gene_filter are not in the counts: {shorten(absent)}")
    return np.asarray(genes.isin(list(wanted)))


def check_mask(values: Array, mask: NDArray[np.bool_], samples: pd.Index) -> None:
    """A filter must leave genes, and counts in every sample."""
    if not mask.any():
        raise SchemaError("the gene filter leaves no gene", fix="gene_filter=None, or check the sequencing depth")
    empty = np.logical_not(values[:, mask].any(axis=1))
    if empty.any():
        raise CountsError(
            f"no counts are left after the gene filter in {shorten(samples[empty])}", fix="drop those samples"
        )
