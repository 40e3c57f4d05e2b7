"""Goldens of cell-eval 0.8.2 (pip install cell-eval==0.8.2), which scores the Virtual Cell
Challenge.

Made from the tables below by

    initialize_de_comparison(truth, prediction).compute_overlap(k=None)
    DESigGenesRecall(0.05)
    DEDirectionMatch(0.05)
    discrimination_score(pair, metric=...)

with |value| as fold change and scipy's ``false_discovery_control`` of 10^-|value| as FDR. Its
discrimination divides the rank by N, ours by N - 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.evaluate import score, score_points

OVERLAP = [0.5555555555555556, 0.38461538461538464, 0.375, 0.25, 0.0, 0.16666666666666666]
RECALL = [0.6296296296296297, 0.5384615384615384, 0.5, 0.75, 0.2, 0.3333333333333333]
DIRECTION = [0.7777777777777778, 0.5384615384615384, 0.875, 0.75, 0.0, 0.5]
DISCRIMINATION = {
    "discrimination_l1": [5 / 6, 1, 1, 1, 1, 4 / 6],
    "centroid_accuracy": [5 / 6, 1, 1, 1, 5 / 6, 5 / 6],
    "perturbation_discrimination": [1, 1, 1, 1, 1 / 6, 5 / 6],
}
ENERGY = 0.2379892047149781  # 2 delta - sigma - sigma of its edistance, euclidean


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Six conditions of forty genes, the prediction partly right."""
    condition, gene = np.ogrid[:6, :40]
    wave = np.sin(1.7 * gene + 0.9 * condition * gene + condition) * np.exp(
        -0.03 * gene * (condition + 1)
    )
    truth = np.round(4 * wave * 1.5, 3)
    return truth, np.round(0.3 * truth + 2.4 * np.cos(2.3 * gene * (condition + 2)), 3)


@pytest.fixture(scope="module")
def scores(pair: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    """All of our metrics."""
    truth, prediction = (pd.DataFrame(values) for values in pair)
    return score(truth, prediction)


@pytest.mark.parametrize(
    ("metric", "golden"),
    [("de_overlap", OVERLAP), ("de_recall", RECALL), ("sign_accuracy_de", DIRECTION)],
)
def test_de_metrics_are_those_of_cell_eval(
    scores: pd.DataFrame, metric: str, golden: list[float]
) -> None:
    np.testing.assert_allclose(scores.loc[metric], golden)


@pytest.mark.parametrize("metric", DISCRIMINATION)
def test_discrimination_is_that_of_cell_eval_but_for_the_divisor(
    scores: pd.DataFrame, metric: str
) -> None:
    ranks = (1 - np.array(DISCRIMINATION[metric])) * 6
    np.testing.assert_allclose(scores.loc[metric], 1 - ranks / 5)


def test_energy_distance_is_that_of_cell_eval(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    cells = {"a": truth.T[:25, :4]}, {"a": prediction.T[5:35, :4]}
    found = score_points(*cells, metrics=["energy_distance_squared"]).iloc[0, 0]
    assert found == pytest.approx(ENERGY, rel=1e-10)
