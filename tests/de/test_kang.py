"""Kang et al. 2018 pseudobulk: what R limma 3.54.1 and edgeR 3.40.2 stored of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.de import DETable, filter_by_expr, limma_table, tmm_factors, voom
from perturbgen.de.design import Design
from tests.de.compare import close, relative

pytestmark = pytest.mark.data
SIGNIFICANT = {
    "B cells": 183,
    "CD14+ Monocytes": 597,
    "CD4 T cells": 128,
    "CD8 T cells": 70,
    "FCGR3A+ Monocytes": 380,
}


class Kang:
    """The stored fixture, genes in rows as R wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.obs = pd.read_csv(folder / "kang_pseudobulk_obs.csv", index_col=0)
        self.all_counts = pd.read_csv(folder / "kang_pseudobulk_counts.csv", index_col=0).T
        self.e = self.read("voomE")
        self.counts = self.all_counts[self.e.index]

    def read(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"kang_{name}.csv", index_col=0)

    def top_table(self, cell_type: str, *, robust: bool) -> pd.DataFrame:
        name = cell_type.replace(" ", "_").replace("+", "_")
        return self.read(name + ("_robust" if robust else ""))


@pytest.fixture(scope="module")
def kang(real_data: Path) -> Kang:
    return Kang(real_data / "limma_kang")


def make_table(kang: Kang, **options: object) -> DETable:
    settings = {
        "design": "~0 + {group} + donor",
        "group": "group",
        "control": "ctrl",
        "by": "cluster",
        "joint": True,
    }
    return limma_table(kang.all_counts, kang.obs, gene_filter="filterByExpr", **settings, **options)


def test_filter_design_and_factors(kang: Kang) -> None:
    design = kang.read("design")
    built = Design.from_formula("~0 + {group} + donor", kang.obs, kang.obs["sm_cell_type"])
    np.testing.assert_array_equal(built.matrix, design)
    keep = filter_by_expr(kang.all_counts, design=design.to_numpy())
    pd.testing.assert_series_equal(keep, kang.read("filterByExpr")["keep"], check_names=False)
    close(
        tmm_factors(kang.counts).to_numpy(),
        kang.read("normfactors")["norm.factors"].to_numpy(),
        1e-10,
    )


def test_voom(kang: Kang) -> None:
    found = voom(kang.counts, kang.read("design"), norm_factors=tmm_factors(kang.counts))
    close(found.e.to_numpy().T, kang.e.to_numpy(), 1e-10)
    assert relative(found.weights.to_numpy().T, kang.read("voomW").to_numpy()) < 1e-8


@pytest.mark.parametrize(("robust", "tolerance"), [(False, 1e-7), (True, 1e-5)])
def test_five_contrasts(kang: Kang, robust: bool, tolerance: float) -> None:
    table = make_table(kang, contrasts="limma", robust=robust)
    for cell_type in SIGNIFICANT:
        top = kang.top_table(cell_type, robust=robust)
        row = {
            name: getattr(table, name).loc[(cell_type, "stim"), top.index].to_numpy()
            for name in ("logfc", "t", "df")
        }
        close(row["logfc"], top["logFC"].to_numpy(), 1e-9)
        close(
            table.ave_expr.loc[(cell_type, "stim"), top.index].to_numpy(),
            top["AveExpr"].to_numpy(),
            1e-9,
        )
        assert relative(row["t"], top["t"].to_numpy()) < tolerance
        assert relative(row["df"], top["df.total"].to_numpy()) < tolerance
        signed = table.signed_log10_p.loc[(cell_type, "stim"), top.index].to_numpy()
        assert relative(signed, top["sign_log10_p"].to_numpy()) < tolerance
        assert (
            relative(
                table.adj_p.loc[(cell_type, "stim"), top.index].to_numpy(),
                top["adj.P.Val"].to_numpy(),
            )
            < 1e-4
        )


def test_the_number_of_significant_genes(kang: Kang) -> None:
    hits = (make_table(kang, contrasts="limma").adj_p < 0.05).sum(axis=1)
    assert hits.droplevel("group").to_dict() == SIGNIFICANT
