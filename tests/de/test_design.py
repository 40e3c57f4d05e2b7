"""Aliased columns, the basis of a design, and what can be estimated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import DesignError
from perturbgen.de.design import Design, _independent_columns


def indicators(codes: list[int]) -> np.ndarray:
    return (np.array(codes)[:, None] == np.unique(codes)).astype(float)


def test_the_last_of_dependent_columns_is_dropped() -> None:
    group = indicators([0, 0, 1, 1, 2, 2, 0, 1])
    plate = indicators([0, 1, 0, 1, 0, 1, 1, 0])
    assert _independent_columns(np.hstack([group, plate])).tolist() == [0, 1, 2, 3]
    assert _independent_columns(np.hstack([plate, group])).tolist() == [0, 1, 2, 3]


def test_zero_and_repeated_columns_are_dropped() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    matrix = np.column_stack([x[:, 0], np.zeros(20), x[:, 1], 3 * x[:, 0] - x[:, 1], x[:, 2]])
    assert _independent_columns(matrix).tolist() == [0, 2, 4]


def test_small_but_independent_columns_stay() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 3)) * [1, 1e-9, 1e9]
    assert _independent_columns(matrix).tolist() == [0, 1, 2]
    nearly = np.column_stack([matrix[:, 0], matrix[:, 0] + 1e-9 * rng.normal(size=20)])
    assert _independent_columns(nearly).tolist() == [0]


@pytest.mark.parametrize("leading", [True, False])
def test_the_basis_gives_least_squares_coefficients(leading: bool) -> None:
    rng = np.random.default_rng(1)
    group, covariates = indicators(list(rng.integers(0, 4, 30))), rng.normal(1e4, 30, (30, 3))
    matrix = np.hstack([group, covariates] if leading else [covariates, group[:, 1:]])
    design = Design.from_matrix(matrix)
    y = rng.normal(size=(30, 2))
    np.testing.assert_allclose(
        design.basis.solve(y), np.linalg.lstsq(matrix, y, rcond=None)[0], rtol=1e-8, atol=1e-10
    )


def test_unscaled_covariance_is_the_inverse_of_the_cross_product() -> None:
    rng = np.random.default_rng(2)
    matrix = np.hstack([indicators(list(rng.integers(0, 4, 30))), rng.normal(size=(30, 3))])
    basis = Design.from_matrix(matrix).basis
    np.testing.assert_allclose(
        basis.unscaled_covariance(np.eye(7)), np.linalg.inv(matrix.T @ matrix), atol=1e-12
    )


def test_a_contrast_across_a_gap_between_plates_is_not_estimable() -> None:
    obs = pd.DataFrame(
        {"g": ["c", "c", "a", "a", "b", "b"], "plate": ["p", "p", "p", "p", "q", "q"]},
        index=list("uvwxyz"),
    )
    design = Design.from_formula("~0 + {group} + plate", obs, obs["g"])
    assert design.aliased == ["plateq"]
    weights = np.array([design.contrast("a", "c"), design.contrast("b", "c")])
    assert design.estimable(weights).tolist() == [True, False]


def test_the_compared_factor_must_stand_alone() -> None:
    obs = pd.DataFrame({"g": list("aabb"), "d": list("xyxy")}, index=list("stuv"))
    with pytest.raises(DesignError, match="interaction"):
        Design.from_formula("~ {group} * d", obs, obs["g"])
    with pytest.raises(DesignError, match="does not hold the compared factor"):
        Design.from_formula("~ d", obs, obs["g"])
    with pytest.raises(DesignError, match="one level"):
        Design.from_formula("~ {group}", obs, pd.Series("a", obs.index))
