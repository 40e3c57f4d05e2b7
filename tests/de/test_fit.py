"""The blocked solver gives what an ordinary weighted regression of each gene gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from perturbgen.de.design import Design
from perturbgen.de.native import _Contrasts, _fit_genes, _fit_genes_on
from perturbgen.de.solver import Fitted, Solver
from perturbgen.de.trend import Trend
from perturbgen.de.voom import LogCounts, MeanVariance

GENES = 7


def designs() -> dict[str, Design]:
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.arange(40) % 6)
    group = (codes[:, None] == np.arange(6)).astype(float)
    plate = (rng.integers(0, 4, 40)[:, None] == np.arange(1, 4)).astype(float)
    matrices = {
        "groups and plates": np.hstack([group, plate]),
        "groups only": group,
        "treatment coding": np.hstack([np.ones((40, 1)), group[:, 1:], plate]),
        "a badly scaled covariate": np.hstack([group, rng.normal(1e6, 1e3, (40, 1))]),
        "no indicators at all": rng.normal(size=(40, 5)),
        "rank deficient": np.hstack([group, plate, plate.sum(1, keepdims=True), group[:, :2]]),
    }
    return {name: Design.from_matrix(matrix) for name, matrix in matrices.items()}


@pytest.mark.parametrize(("name", "design"), designs().items(), ids=designs().keys())
def test_equals_a_regression_of_each_gene(name: str, design: Design) -> None:
    rng = np.random.default_rng(1)
    y, w = rng.normal(5, 2, (40, GENES)), rng.gamma(1, 1, (40, GENES)) + 0.05
    kept = design.matrix[:, design.kept]
    weights = np.zeros((3, design.matrix.shape[1]))
    weights[:, design.kept] = rng.normal(size=(3, design.rank))
    solver = Solver(design)
    on_groups, on_q = solver.basis.functionals(weights)
    fitted = solver.weighted(y, w, (csr_matrix(on_groups), on_q))
    for j in range(GENES):
        root = np.sqrt(w[:, j])
        coefficients, _, rank, _ = np.linalg.lstsq(kept * root[:, None], y[:, j] * root, rcond=None)
        residual = root * (y[:, j] - kept @ coefficients)
        covariance = np.linalg.inv((kept * w[:, [j]]).T @ kept)
        chosen = weights[:, design.kept]
        assert rank == design.rank
        np.testing.assert_allclose(
            fitted.effects[:, j], chosen @ coefficients, rtol=1e-7, atol=1e-9
        )
        np.testing.assert_allclose(
            fitted.sigma[j], np.sqrt(residual @ residual / (40 - rank)), rtol=1e-9
        )
        np.testing.assert_allclose(
            fitted.unscaled[:, j],
            np.sqrt(np.einsum("ki,ij,kj->k", chosen, covariance, chosen)),
            rtol=1e-6,
        )


def log_counts(rng: np.random.Generator, design: Design) -> LogCounts:
    trend = Trend(np.linspace(0, 12, 30), rng.uniform(0.5, 1.5, 30))
    e, sizes = rng.normal(6, 2, (40, 50)), rng.uniform(1e5, 1e6, 40)
    return LogCounts(e, sizes, Solver(design), MeanVariance(trend.x, trend.y, trend))


def test_the_torch_fitter_gives_the_same() -> None:
    rng = np.random.default_rng(2)
    design = designs()["groups and plates"]
    weights, logs = rng.normal(size=(4, 9)), log_counts(rng, design)
    for kind in ("exact", "limma"):
        contrasts = _Contrasts.of(design, weights, kind)
        in_torch = _fit_genes_on("cpu", logs, contrasts)
        for mine, other in zip(_fit_genes(logs, contrasts), in_torch, strict=True):
            np.testing.assert_allclose(other, mine, rtol=1e-9)


@pytest.mark.gpu
def test_the_gpu_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(3)
    design = designs()["groups and plates"]
    contrasts = _Contrasts.of(design, rng.normal(size=(4, 9)), "exact")
    logs = log_counts(rng, design)
    on_gpu = _fit_genes(logs, contrasts, device="cuda")
    for mine, other in zip(_fit_genes(logs, contrasts), on_gpu, strict=True):
        np.testing.assert_allclose(other, mine, rtol=1e-9)


HUGE = 1e23  # voom's weights can differ by twenty orders of magnitude; the fit must not notice


@pytest.fixture
def four_groups() -> np.ndarray:
    """Four groups, the last of one sample, and two nuisance columns (samples, coefficients)."""
    groups = np.repeat([0, 1, 2, 3], [5, 4, 4, 1])
    nuisance = np.random.default_rng(0).normal(size=(14, 2))
    return np.hstack([np.eye(4)[groups], nuisance])


def fit(matrix: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[Solver, Fitted]:
    solver = Solver(Design.from_matrix(pd.DataFrame(matrix)))
    basis = solver.basis
    count, rank = len(basis.groups), basis.q.shape[1]
    functions = csr_matrix(np.eye(count + rank)[:, :count]), np.eye(count + rank)[:, count:]
    return solver, solver.weighted(y, w, functions)


def test_both_ways_agree_on_ordinary_weights(four_groups: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    y, w = rng.normal(size=(14, 3)), rng.uniform(0.5, 2, (14, 3))
    solver, fitted = fit(four_groups, y, w)
    count, rank = len(solver.basis.groups), solver.basis.q.shape[1]
    functions = csr_matrix(np.eye(count + rank)[:, :count]), np.eye(count + rank)[:, count:]
    for g in range(3):
        one = solver._by_qr(y[:, g], w[:, g], functions)
        assert one.sigma[0] == pytest.approx(fitted.sigma[g], rel=1e-12)
        assert one.effects[:, 0] == pytest.approx(fitted.effects[:, g], rel=1e-10)
        assert one.unscaled[:, 0] == pytest.approx(fitted.unscaled[:, g], rel=1e-10)


def test_a_single_sample_of_huge_weight_changes_nothing_but_its_own_group(
    four_groups: np.ndarray,
) -> None:
    rng = np.random.default_rng(2)
    y, w = rng.normal(size=(14, 3)), rng.uniform(0.5, 2, (14, 3))
    heavy = w.copy()
    heavy[-1, 1] = HUGE
    (_, plain), (_, extreme) = fit(four_groups, y, w), fit(four_groups, y, heavy)
    assert extreme.sigma == pytest.approx(plain.sigma, rel=1e-6)
    assert extreme.effects == pytest.approx(plain.effects, rel=1e-6)
    assert extreme.unscaled[:3] == pytest.approx(plain.unscaled[:3], rel=1e-6)
    assert np.isfinite(extreme.unscaled).all()


def test_a_sample_of_huge_weight_is_fitted_exactly(four_groups: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    y, w = rng.normal(size=(14, 1)), rng.uniform(0.5, 2, (14, 1))
    w[0] = HUGE
    solver, fitted = fit(four_groups, y, w)
    count = len(solver.basis.groups)
    predicted = solver.predict(fitted.effects[:count], fitted.effects[count:])
    assert predicted[0] == pytest.approx(y[0], rel=1e-9)
    assert np.isfinite(fitted.sigma).all()
