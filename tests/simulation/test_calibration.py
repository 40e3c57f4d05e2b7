"""What is known of real data, beside what the simulator makes; -s shows the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from perturbgen.core.console import show_table
from perturbgen.core.tables import VEHICLE
from perturbgen.simulation import CELL_TYPES, World, build_world, preset_settings
from tests.simulation.cell_fit import CellFit, fit_baseline


def released(world: World) -> pd.DataFrame:
    return world.groups[~world.groups["withheld"]]


def compare(title: str, rows: Mapping[str, tuple[float, float, float]]) -> None:
    """Print real against simulated, and fail where they differ by more than the tolerance."""
    show_table(
        [{"what": k, "real": r, "simulated": s, "tolerance": t} for k, (r, s, t) in rows.items()],
        title=f"\n{title}",
    )
    wrong = {k: (r, s) for k, (r, s, t) in rows.items() if not abs(r - s) <= t}
    assert not wrong


@pytest.mark.data
def test_the_design_has_the_real_numbers_of_cells(op3_world: World) -> None:
    cells = released(op3_world)
    share = cells.groupby("cell_type")["n_cells"].sum() / cells["n_cells"].sum()
    listed = op3_world.layout.compounds
    library = op3_world.groups[~op3_world.groups["sm_name"].isin(listed.index[listed["control"]])]
    per_compound = library.groupby("sm_name")["n_cells"].sum()
    compare(
        "cells of the op3 preset",
        {
            "released cells": (240_090, float(cells["n_cells"].sum()), 12_000),
            "released cells a well": (417, cells["n_cells"].sum() / 576, 20),
            "share of CD4+": (0.42, share["T cells CD4+"], 0.02),
            "share of Treg": (0.02, share["T regulatory cells"], 0.005),
            "cells of a compound": (1551, per_compound.mean(), 100),
            "between compounds, sd": (244, per_compound.std(), 100),
        },
    )


@pytest.mark.data
def test_b_and_myeloid_cells_differ_between_plates_as_the_real_ones(
    op3_world: World, real_data: Path
) -> None:
    table = pd.read_csv(real_data / "op3" / "plate_layout_and_predicted_counts.csv")
    real = table.groupby(["cell_type", "plate_name"])["count"].median()
    ours = (
        op3_world.groups[op3_world.groups["n_cells"] > 0]
        .groupby(["cell_type", "plate_name"])["n_cells"]
        .median()
    )
    compare(
        "median cells a well",
        {
            f"{cell} {plate}": (value, float(ours[cell, plate]), 0.25 * value)
            for (cell, plate), value in real.items()
        },
    )


@pytest.mark.data
def test_zeros_and_depth_are_as_in_the_real_matrix(op3_world: World) -> None:
    rng = np.random.default_rng(0)
    cells = released(op3_world)
    chosen = rng.choice(cells.index[cells["n_cells"] > 0], size=60, replace=False, p=weights(cells))
    counts = sparse.vstack([op3_world.draw(int(group)) for group in chosen])
    detected = np.diff(sparse.csr_array(counts).indptr)
    compare(
        f"op3 preset, {counts.shape[0]:,} cells of 60 wells",
        {
            "share of zeros": (0.94, 1 - counts.nnz / np.prod(counts.shape), 0.01),
            "genes detected in a cell": (1090, float(detected.mean()), 150),
        },
    )


def weights(cells: pd.DataFrame) -> np.ndarray:
    alive = cells.loc[cells["n_cells"] > 0, "n_cells"]
    return (alive / alive.sum()).to_numpy()


def summary(counts: sparse.csr_array) -> pd.DataFrame:
    """Mean, log2 variance (no gene is constant here) and share of zeros of every gene."""
    dense = counts.toarray().astype(float)
    variance = np.log2(dense.var(axis=0, ddof=1) + 1e-3)
    return pd.DataFrame(
        {"mean": dense.mean(axis=0), "variance": variance, "zeros": (dense == 0).mean(axis=0)}
    )


def depths(counts: sparse.csr_array) -> np.ndarray:
    return np.quantile(np.asarray(counts.sum(axis=1)).ravel(), [0.1, 0.5, 0.9])


@pytest.mark.data
@pytest.mark.parametrize(
    "cell_type", ["B cells", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells", "FCGR3A+ Monocytes"]
)
def test_cells_fitted_to_kang_look_like_kang(real_data: Path, cell_type: str) -> None:
    kang = ad.read_h5ad(real_data / "counts" / "kang_ifnb.h5ad")
    here = (kang.obs["cluster_id"] == cell_type) & (kang.obs["sample_id"] == "ctrl101")
    real = sparse.csr_array(kang[here.to_numpy()].X)
    fit, rng = fit_baseline(real), np.random.default_rng(0)
    # As many cells as the real ones, many times: the variance of few cells is skewed.
    draws = [fit.draw(real.shape[0], rng=rng) for _ in range(20)]
    one, others = summary(real), [summary(draw) for draw in draws]
    much = (one["mean"] > 0.1).to_numpy()
    ratio = np.median([(other["variance"] - one["variance"])[much] for other in others])
    agreement = np.mean([one["variance"][much].corr(other["variance"][much]) for other in others])
    ceiling = np.mean([a["variance"][much].corr(b["variance"][much]) for a, b in pairwise(others)])
    zeros = np.mean([other["zeros"][much].mean() for other in others])
    depth, drawn = depths(real), np.mean([depths(draw) for draw in draws], axis=0)
    compare(
        f"Kang, {cell_type}: {real.shape[0]} cells, {int(much.sum())} genes above 0.1 a cell",
        {
            "log2 variance, drawn over real, median gene": (0.0, float(ratio), 0.2),
            "correlation of log variances (draw with draw; with real)": (
                float(ceiling),
                float(agreement),
                0.04,
            ),
            "share of zeros": (float(one["zeros"][much].mean()), float(zeros), 0.015),
            # Depths of CD14 monocytes are skewed to the left of a log-normal; others are closer.
            "depth, 10th percentile": (depth[0], drawn[0], 0.2 * depth[0]),
            "depth, median": (depth[1], drawn[1], 0.12 * depth[1]),
            "depth, 90th percentile": (depth[2], drawn[2], 0.2 * depth[2]),
        },
    )


@pytest.mark.data
def test_default_dispersion_and_depth_are_within_what_kang_shows(real_data: Path) -> None:
    kang = ad.read_h5ad(real_data / "counts" / "kang_ifnb.h5ad")
    fits: list[CellFit] = []
    for _, cells in kang.obs[kang.obs["group_id"] == "ctrl"].groupby(
        ["cluster_id", "sample_id"], observed=True
    ):
        if len(cells) >= 40:
            fits.append(fit_baseline(kang[cells.index].X))
    settings = preset_settings("op3")
    floors, slopes = [fit.floor for fit in fits], [fit.slope for fit in fits]
    spread = [fit.log_depth_sd for fit in fits]
    compare(
        f"defaults against {len(fits)} Kang samples (median of the fits)",
        {
            "dispersion floor": (
                float(np.median(floors)),
                settings.expression.dispersion_floor,
                0.08,
            ),
            "dispersion slope": (
                float(np.median(slopes)),
                settings.expression.dispersion_slope,
                0.2,
            ),
            "log-sd of depth": (float(np.median(spread)), settings.depth.cell_log_sd, 0.15),
        },
    )


@pytest.mark.data
def test_wells_vary_little_more_than_chance_as_on_the_real_plate(real_data: Path) -> None:
    """Variance between vehicle wells beyond Poisson, as a share of the squared mean."""
    plate = ad.read_h5ad(real_data / "counts" / "macseq_plate.h5ad")
    real = plate[(plate.obs["Treatment_1"] == "DMSO").to_numpy()].X.toarray()
    world = build_world(preset_settings("small"), seed=2)
    groups = world.groups
    on_plate = (groups["sm_name"] == VEHICLE) & (groups["plate_name"] == "plate_0")
    wells = np.flatnonzero(
        on_plate & (groups["cell_type"] == CELL_TYPES[1]) & (groups["n_cells"] > 0)
    )
    ours = np.stack(
        [np.asarray(world.draw(int(group), n_cells=100).sum(axis=0)).ravel() for group in wells]
    )
    compare(
        f"between wells: {len(real)} MAC-seq vehicle wells, {len(ours)} simulated ones of a plate",
        {"excess variance / mean^2, median": (excess(real), excess(ours), 0.08)},
    )


def excess(counts: np.ndarray) -> float:
    """Median of (Var - Poisson) / mean^2 over genes of three counts a well, at equal totals."""
    size = counts.sum(axis=1) / counts.sum(axis=1).mean()
    scaled = counts / size[:, None]
    mean = scaled.mean(axis=0)
    much = mean > 3
    over = scaled.var(axis=0, ddof=1)[much] - mean[much] * np.mean(1 / size)
    return float(np.median(over / mean[much] ** 2))


def test_fit_finds_the_parameters_that_cells_were_drawn_with() -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(200, 0.5))
    mean = share * 1500
    true = CellFit(share, 0.1 + 0.2 / np.maximum(mean, 0.05), np.log(1500.0), 0.3, 0.1, 0.2)
    found = fit_baseline(true.draw(4000, rng=rng))
    assert found.floor == pytest.approx(0.1, abs=0.03)
    assert found.slope == pytest.approx(0.2, abs=0.08)
    assert found.log_depth_sd == pytest.approx(0.3, abs=0.06)
    much = mean > 5
    assert np.allclose(found.share[much], share[much], rtol=0.15)
    assert np.median(np.abs(np.log(found.dispersion[much] / true.dispersion[much]))) < 0.2
