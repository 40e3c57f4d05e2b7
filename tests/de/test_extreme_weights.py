"""voom's weights can differ by twenty orders of magnitude; the fit must not notice."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from perturbgen.de.design import design_from_matrix, make_basis
from perturbgen.de.fit import Solver, _Fitted

HUGE = 1e23


@pytest.fixture
def design() -> np.ndarray:
    """Four groups, the last of one sample, and two nuisance columns (samples, coefficients)."""
    groups = np.repeat([0, 1, 2, 3], [5, 4, 4, 1])
    nuisance = np.random.default_rng(0).normal(size=(14, 2))
    return np.hstack([np.eye(4)[groups], nuisance])


def fit(design: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[Solver, _Fitted]:
    basis = make_basis(design_from_matrix(pd.DataFrame(design)))
    solver = Solver(basis)
    count, rank = len(basis.groups), basis.q.shape[1]
    functions = csr_matrix(np.eye(count + rank)[:, :count]), np.eye(count + rank)[:, count:]
    return solver, solver.weighted(y, w, functions)


def test_both_ways_agree_on_ordinary_weights(design: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    y, w = rng.normal(size=(14, 3)), rng.uniform(0.5, 2, (14, 3))
    solver, fitted = fit(design, y, w)
    count, rank = len(solver.basis.groups), solver.basis.q.shape[1]
    functions = csr_matrix(np.eye(count + rank)[:, :count]), np.eye(count + rank)[:, count:]
    for g in range(3):
        one = solver._by_qr(y[:, g], w[:, g], functions)
        assert one.sigma[0] == pytest.approx(fitted.sigma[g], rel=1e-12)
        assert one.effects[:, 0] == pytest.approx(fitted.effects[:, g], rel=1e-10)
        assert one.unscaled[:, 0] == pytest.approx(fitted.unscaled[:, g], rel=1e-10)


def test_a_single_sample_of_huge_weight_changes_nothing_but_its_own_group(
    design: np.ndarray,
) -> None:
    rng = np.random.default_rng(2)
    y, w = rng.normal(size=(14, 3)), rng.uniform(0.5, 2, (14, 3))
    heavy = w.copy()
    heavy[-1, 1] = HUGE
    (_, plain), (_, extreme) = fit(design, y, w), fit(design, y, heavy)
    assert extreme.sigma == pytest.approx(plain.sigma, rel=1e-6)
    assert extreme.effects == pytest.approx(plain.effects, rel=1e-6)
    assert extreme.unscaled[:3] == pytest.approx(plain.unscaled[:3], rel=1e-6)
    assert np.isfinite(extreme.unscaled).all()


def test_a_sample_of_huge_weight_is_fitted_exactly(design: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    y, w = rng.normal(size=(14, 1)), rng.uniform(0.5, 2, (14, 1))
    w[0] = HUGE
    solver, fitted = fit(design, y, w)
    count = len(solver.basis.groups)
    predicted = solver.predict(fitted.effects[:count], fitted.effects[count:])
    assert predicted[0] == pytest.approx(y[0], rel=1e-9)
    assert np.isfinite(fitted.sigma).all()
