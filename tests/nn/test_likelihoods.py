"""The likelihoods against mpmath (50 digits) and scipy, on the grid where float32 formulas fail."""

from __future__ import annotations

from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from perturbgen.nn import gaussian_log_prob, nb_log_prob, zinb_log_prob

COUNTS = [0, 1, 2, 3, 5, 10, 50, 300, 2000, 20000]
MEANS = [1e-30, 1e-12, 1e-4, 0.01, 0.5, 1, 2, 5, 5.1, 50, 300, 1900, 2000, 19000, 20000, 1e5]
DISPERSIONS = [1e-4, 1e-3, 0.1, 0.5, 2, 5.9, 6.1, 30, 1e3, 1e4, 1e6, 1e8, 1e12]

# What float32 allows. The value: 3e-6 relative, and as much absolute. The slopes are of the size of
# k and m (a step of the last bit of log m changes k - m by m 2^-24 log m), so their errors are
# measured against 1 + k + m.
LOG_PROB_ERROR = 3e-6
SLOPE_ERROR = 4e-7


def exact(k: float, log_mean: float, log_r: float) -> tuple[float, float, float]:
    """Log pmf and its slopes along log m and log r, with 50 digits."""
    with mpmath.workdps(50):
        k, m, r = mpmath.mpf(k), mpmath.exp(log_mean), mpmath.exp(log_r)
        log_prob = mpmath.loggamma(k + r) - mpmath.loggamma(r) - mpmath.loggamma(k + 1)
        log_prob += k * (log_mean - mpmath.log(m + r)) - r * mpmath.log1p(m / r)
        by_log_r = r * (
            mpmath.digamma(k + r) - mpmath.digamma(r) - mpmath.log1p(m / r) + (m - k) / (r + m)
        )
        return float(log_prob), float((k - m) * r / (r + m)), float(by_log_r)


@pytest.fixture(scope="module")
def grid() -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """k, log m, log r as float32 and the exact answers (points, 3) at those rounded values."""
    k, m, r = (
        torch.tensor(column, dtype=torch.float64)
        for column in zip(*product(COUNTS, MEANS, DISPERSIONS), strict=True)
    )
    k, log_mean, log_r = k.float(), m.log().float(), r.log().float()
    points = zip(k.tolist(), log_mean.tolist(), log_r.tolist(), strict=True)
    return k, log_mean, log_r, np.array([exact(*point) for point in points])


def value_and_slopes(k: Tensor, log_mean: Tensor, log_r: Tensor) -> list[np.ndarray]:
    log_mean, log_r = log_mean.clone().requires_grad_(), log_r.clone().requires_grad_()
    log_prob = nb_log_prob(k, log_mean, log_r)
    slopes = torch.autograd.grad(log_prob.sum(), [log_mean, log_r])
    return [x.detach().double().numpy() for x in (log_prob, *slopes)]


def test_nb_is_exact_in_float32(grid):
    k, log_mean, log_r, truth = grid
    log_prob, by_log_mean, by_log_r = value_and_slopes(k, log_mean, log_r)
    np.testing.assert_allclose(log_prob, truth[:, 0], rtol=LOG_PROB_ERROR, atol=LOG_PROB_ERROR)
    size = 1 + k.double().numpy() + log_mean.double().exp().numpy()
    np.testing.assert_allclose(by_log_mean / size, truth[:, 1] / size, rtol=0, atol=SLOPE_ERROR)
    np.testing.assert_allclose(by_log_r / size, truth[:, 2] / size, rtol=0, atol=SLOPE_ERROR)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nb_on_a_gpu_is_as_exact(grid):
    *points, truth = grid
    log_mean, log_r = (x.cuda().requires_grad_() for x in points[1:])
    log_prob = nb_log_prob(points[0].cuda(), log_mean, log_r)
    slopes = (
        torch.stack(torch.autograd.grad(log_prob.sum(), [log_mean, log_r]), 1)
        .double()
        .cpu()
        .numpy()
    )
    np.testing.assert_allclose(
        log_prob.detach().cpu(), truth[:, 0], rtol=2 * LOG_PROB_ERROR, atol=2 * LOG_PROB_ERROR
    )
    size = (1 + points[0].double() + points[1].double().exp()).numpy()[:, None]
    np.testing.assert_allclose(slopes / size, truth[:, 1:] / size, rtol=0, atol=2 * SLOPE_ERROR)


def test_nb_in_float64_to_ten_digits(grid):
    k, log_mean, log_r, truth = grid
    log_prob, by_log_mean, by_log_r = value_and_slopes(
        k.double(), log_mean.double(), log_r.double()
    )
    np.testing.assert_allclose(log_prob, truth[:, 0], rtol=1e-10, atol=1e-10)
    size = 1 + k.double().numpy() + log_mean.double().exp().numpy()
    np.testing.assert_allclose(
        np.stack([by_log_mean, by_log_r], 1) / size[:, None],
        truth[:, 1:] / size[:, None],
        atol=1e-11,
    )


def test_nb_pmf_never_exceeds_one(grid):
    k, log_mean, log_r, _ = grid
    assert nb_log_prob(k, log_mean, log_r).max() <= 0


@pytest.mark.parametrize(
    ("k", "mean", "r", "expected"),
    [
        (0, 0.5, 1e4, -0.49999),
        (0, 0.5, 1e6, -0.5),
        (5, 5, 1e6, -1.740302),
        (5, 5, 1e8, -1.740302),
        (1, 1e-12, 2, -27.631021),
    ],
)
def test_nb_where_published_implementations_fail(k, mean, r, expected):
    found = nb_log_prob(torch.tensor(float(k)), torch.tensor(mean).log(), np.log(r))
    assert found.item() == pytest.approx(expected, abs=3e-6, rel=1e-6)


@pytest.mark.parametrize("r", [0.05, 1, 7.5, 400])
def test_nb_equals_scipy(r):
    k, mean = np.arange(200), np.geomspace(0.01, 150, 40)[:, None]
    found = nb_log_prob(
        torch.tensor(k, dtype=torch.float32).expand(40, 200),
        torch.tensor(mean).log().float().expand(40, 200),
        np.log(r),
    )
    np.testing.assert_allclose(
        found, stats.nbinom.logpmf(k, r, r / (r + mean)), rtol=5e-6, atol=5e-6
    )


@pytest.mark.parametrize(("mean", "r"), [(0.1, 0.5), (3, 0.2), (20, 4), (50, 1e6)])
def test_nb_sums_to_one(mean, r):
    k = torch.arange(5000.0)
    total = (
        nb_log_prob(k, torch.tensor(float(mean)).log().expand(5000), np.log(r)).double().exp().sum()
    )
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_mean_zero_allows_nothing_but_zero():
    log_mean = torch.full((2,), -torch.inf, requires_grad=True)
    log_prob = nb_log_prob(torch.tensor([0.0, 3.0]), log_mean, 0.0)
    assert log_prob.tolist() == [0, -torch.inf]
    (slope,) = torch.autograd.grad(log_prob[0], log_mean)
    assert slope.tolist() == [0, 0]


def test_a_mean_that_underflows_keeps_its_slope():
    log_mean = torch.tensor([-200.0], requires_grad=True)
    log_prob = nb_log_prob(torch.tensor([3.0]), log_mean, 0.7)
    log_prob.backward()
    expected = exact(3, -200.0, np.float32(0.7).item())
    assert log_prob.item() == pytest.approx(expected[0], rel=1e-6)
    assert log_mean.grad.item() == pytest.approx(3)


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_a_count_that_is_none_gives_nan(bad):
    assert nb_log_prob(torch.tensor([bad]), torch.zeros(1), 0.0).isnan().all()


def test_poisson_equals_scipy():
    k, mean = (x.reshape(-1) for x in np.meshgrid(COUNTS, MEANS))
    log_mean = torch.tensor(np.log(mean), dtype=torch.float32)
    found = nb_log_prob(torch.tensor(k, dtype=torch.float32), log_mean, torch.inf)
    expected = stats.poisson.logpmf(k, np.exp(log_mean.double().numpy()))
    np.testing.assert_allclose(found, expected, rtol=LOG_PROB_ERROR, atol=LOG_PROB_ERROR)


def test_nb_tends_to_poisson_as_r_grows():
    k, log_mean = torch.arange(12.0), torch.full((12,), 1.1)
    poisson = nb_log_prob(k, log_mean, torch.inf)
    gaps = [
        (nb_log_prob(k, log_mean, np.log(r)) - poisson).abs().max().item() for r in (1e2, 1e4, 1e6)
    ]
    assert gaps[0] > 10 * gaps[1] > 50 * gaps[2]
    torch.testing.assert_close(nb_log_prob(k, log_mean, np.log(1e8)), poisson, rtol=0, atol=2e-6)


def test_gradcheck():
    k = torch.tensor([[0.0, 1, 7], [40, 0, 2]], dtype=torch.float64)
    log_mean = torch.randn(
        2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    log_r = torch.tensor([-1.0, 0.5, 3], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([[-2.0], [1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: nb_log_prob(k, *x), (log_mean, log_r))
    assert torch.autograd.gradcheck(lambda *x: zinb_log_prob(k, *x), (log_mean, log_r, logits))


def test_zinb_by_hand():
    """π = ¼, NB(m = 2, r = 1) is geometric: ⅓ (⅔)^k."""
    found = zinb_log_prob(
        torch.tensor([0.0, 2.0]), torch.tensor([2.0, 2.0]).log(), 0.0, torch.tensor(1 / 3).log()
    )
    np.testing.assert_allclose(found.exp(), [1 / 4 + 3 / 4 / 3, 3 / 4 * 4 / 27], rtol=1e-6)


def test_zinb_without_dropout_is_nb_and_with_certain_dropout_is_zero():
    k, log_mean = torch.tensor([0.0, 1, 30]), torch.tensor([0.3, -2, 3])
    torch.testing.assert_close(
        zinb_log_prob(k, log_mean, 0.5, torch.tensor(-torch.inf)), nb_log_prob(k, log_mean, 0.5)
    )
    certain = zinb_log_prob(k, log_mean, 0.5, torch.tensor(200.0))
    np.testing.assert_allclose(certain[0], 0, atol=1e-6)
    assert (certain[1:] < -190).all()


def test_gaussian_equals_scipy():
    x, mean, sd = (
        np.array([0.3, -4.0, 2e3]),
        np.array([0.0, 1.0, 1999.0]),
        np.array([1e-3, 2.0, 5.0]),
    )
    found = gaussian_log_prob(
        *(torch.tensor(a, dtype=torch.float32) for a in (x, mean, np.log(sd)))
    )
    np.testing.assert_allclose(found, stats.norm.logpdf(x, mean, sd), rtol=1e-5)


def test_half_precision_is_raised():
    log_mean = torch.tensor([1.5, -3.0], dtype=torch.bfloat16)
    found = nb_log_prob(torch.tensor([4.0, 0.0]), log_mean, torch.tensor(0.7, dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found,
        nb_log_prob(
            torch.tensor([4.0, 0.0]), log_mean.float(), torch.tensor(0.7).bfloat16().float()
        ),
    )
