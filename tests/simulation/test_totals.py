"""Totals drawn without cells have the moments of sums of cells; wells have what they share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from perturbgen.simulation import CELL_TYPES, World, build_world, preset_settings, sample_nb_sparse
from perturbgen.simulation.op3.cells import sample_nb_total

REPEATS = 4000


@pytest.fixture(scope="module")
def sizes() -> np.ndarray:
    """Depths of twelve cells, as unequal as a well's."""
    return np.exp(np.random.default_rng(1).normal(0, 0.42, 12))


def sums_of_cells(sizes: np.ndarray, share: np.ndarray, r: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(2)
    cells = sample_nb_sparse(rng, size=np.tile(sizes, REPEATS), share=share, r=r).toarray()
    return cells.reshape(REPEATS, len(sizes), -1).sum(axis=1)


def totals(sizes: np.ndarray, share: np.ndarray, r: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.array([sample_nb_total(rng, size=sizes, share=share, r=r) for _ in range(REPEATS)])


def test_totals_have_the_law_of_sums_of_cells(sizes: np.ndarray) -> None:
    share, r = np.array([0.01, 0.2, 2.0, 2.0, 2.0]), np.array([0.5, 0.5, 0.5, 5.0, np.inf])
    direct, summed = totals(sizes, share, r), sums_of_cells(sizes, share, r)
    for gene in range(len(share)):
        mean, squares = share[gene] * sizes.sum(), share[gene] ** 2 * (sizes**2).sum()
        variance = mean + squares / r[gene]
        error = np.sqrt(variance / REPEATS)
        assert abs(direct[:, gene].mean() - mean) < 4 * error
        # of a variance of counts as heavy-tailed as these
        assert direct[:, gene].var() == pytest.approx(variance, rel=0.12)
        assert stats.ks_2samp(direct[:, gene], summed[:, gene]).pvalue > 1e-3


def test_the_comparison_would_notice_another_dispersion(sizes: np.ndarray) -> None:
    share = np.array([2.0])
    direct, summed = (
        totals(sizes, share, np.array([5.0])),
        sums_of_cells(sizes, share, np.array([0.5])),
    )
    assert stats.ks_2samp(direct[:, 0], summed[:, 0]).pvalue < 1e-6


def test_without_a_cell_there_is_no_count() -> None:
    total = sample_nb_total(
        np.random.default_rng(0), size=np.zeros(0), share=np.ones(3), r=np.ones(3)
    )
    assert total.tolist() == [0, 0, 0]


def test_a_world_s_totals_are_those_of_its_cells() -> None:
    world = build_world(preset_settings("tiny"), seed=0)
    groups = np.flatnonzero(world.groups["n_cells"] > 0)[:200]
    direct = sum(world.draw_total(int(group)).toarray() for group in groups)
    summed = sum(world.draw(int(group)).sum(axis=0).reshape(1, -1) for group in groups)
    # the same wells with the same cells: only counting differs
    expected = np.asarray(summed).ravel()
    deep = expected > 200
    assert deep.sum() > 50
    ratio = np.asarray(direct).ravel()[deep] / expected[deep]
    assert np.abs(ratio - 1).mean() < 0.06


def well_logs(world: World) -> np.ndarray:
    """Log effects of wells (wells, cell types, genes) before counting, the type's mean removed."""
    wells = range(0, 60 * len(CELL_TYPES), len(CELL_TYPES))
    logs = np.array(
        [
            [
                np.log(world._before_counting(well + i, 0)[1] / world.group_share(well + i))
                for i in range(len(CELL_TYPES))
            ]
            for well in wells
        ]
    )
    return logs - logs.mean(axis=2, keepdims=True)


def test_cell_types_of_a_well_share_its_tube() -> None:
    settings = ["expression.tube_log_sd=0.3", "expression.well_log_sd=0.3"]
    logs = well_logs(build_world(preset_settings("tiny", overrides=settings), seed=0))
    within = np.corrcoef(logs[:, 0].ravel(), logs[:, 1].ravel())[0, 1]
    between = np.corrcoef(logs[:-1, 0].ravel(), logs[1:, 1].ravel())[0, 1]
    assert within == pytest.approx(0.5, abs=0.03)
    assert abs(between) < 0.03


def test_a_replicate_has_another_tube() -> None:
    settings = ["tube_log_sd=0.3", "well_log_sd=0", "vehicle_log_sd=0"]
    overrides = ["effects.well_log_sd=0", *(f"expression.{text}" for text in settings)]
    world = build_world(preset_settings("tiny", overrides=overrides), seed=0)
    once, again, more = (world._well_effect(group, k) for group, k in ((0, 0), (1, 0), (0, 1)))
    assert np.array_equal(once, again)
    assert abs(np.corrcoef(np.asarray(once), np.asarray(more))[0, 1]) < 0.2
