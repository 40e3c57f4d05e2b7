"""The blocked solver gives what an ordinary weighted regression of each gene gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from perturbgen.de.contrasts import make_contrasts
from perturbgen.de.design import Design, design_from_matrix, make_basis
from perturbgen.de.fit import Solver
from perturbgen.de.native import _fit_genes
from perturbgen.de.torch_fit import fit_genes_on
from perturbgen.de.voom import Trend

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
    return {name: design_from_matrix(matrix) for name, matrix in matrices.items()}


@pytest.mark.parametrize(("name", "design"), designs().items(), ids=designs().keys())
def test_equals_a_regression_of_each_gene(name: str, design: Design) -> None:
    rng = np.random.default_rng(1)
    y, w = rng.normal(5, 2, (40, GENES)), rng.gamma(1, 1, (40, GENES)) + 0.05
    kept = design.matrix[:, design.kept]
    weights = np.zeros((3, design.matrix.shape[1]))
    weights[:, design.kept] = rng.normal(size=(3, design.rank))
    solver = Solver(make_basis(design))
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


def test_the_torch_fitter_gives_the_same() -> None:
    rng = np.random.default_rng(2)
    design = designs()["groups and plates"]
    weights = rng.normal(size=(4, 9))
    solver = Solver(make_basis(design))
    trend = Trend(np.linspace(0, 12, 30), rng.uniform(0.5, 1.5, 30))
    e, sizes = rng.normal(6, 2, (40, 50)), rng.uniform(1e5, 1e6, 40)
    for kind in ("exact", "limma"):
        contrasts = make_contrasts(solver.basis, weights, kind)
        on_cpu = _fit_genes(e, sizes, solver, trend, contrasts)
        in_torch = fit_genes_on("cpu", e, sizes, solver, trend, contrasts)
        for mine, other in zip(on_cpu, in_torch, strict=True):
            np.testing.assert_allclose(other, mine, rtol=1e-9)


@pytest.mark.gpu
def test_the_gpu_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(3)
    solver = Solver(make_basis(designs()["groups and plates"]))
    contrasts = make_contrasts(solver.basis, rng.normal(size=(4, 9)), "exact")
    trend = Trend(np.linspace(0, 12, 30), rng.uniform(0.5, 1.5, 30))
    e, sizes = rng.normal(6, 2, (40, 50)), rng.uniform(1e5, 1e6, 40)
    on_cpu = _fit_genes(e, sizes, solver, trend, contrasts)
    on_gpu = _fit_genes(e, sizes, solver, trend, contrasts, device="cuda")
    for mine, other in zip(on_cpu, on_gpu, strict=True):
        np.testing.assert_allclose(other, mine, rtol=1e-9)
