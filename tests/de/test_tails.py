"""Tail probabilities against arbitrary-precision arithmetic."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from perturbgen.de import log_p_t
from perturbgen.de.limma import _EPS_LOG10_P
from perturbgen.de.tails import _exact_log_p_t, log_p_f

T = np.array([1e-6, 1e-3, 0.3, 0.67, 0.7, 1.0, 3.0, 8.0, 20.0, 35.0, 50.0, 150.0, 1e3, 1e4])


def mp_log_p_t(t: float, df: float) -> float:
    """log p from the tail integral, scaled so that nothing underflows."""
    with mpmath.workdps(40):
        t, df = mpmath.mpf(t), mpmath.mpf(df)
        if df < 2000:
            return float(
                mpmath.log(
                    mpmath.betainc(
                        df / 2, mpmath.mpf(1) / 2, 0, df / (df + t * t), regularized=True
                    )
                )
            )
        step = 1 / (1 + t * (df + 1) / (df + t * t))

        def ratio(u: mpmath.mpf) -> mpmath.mpf:
            return mpmath.exp(-(df + 1) / 2 * mpmath.log((df + (t + u * step) ** 2) / (df + t * t)))

        integral = mpmath.quad(ratio, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, mpmath.inf]) * step
        log_density = (
            -(df + 1) / 2 * mpmath.log1p(t * t / df)
            - mpmath.log(df) / 2
            - mpmath.log(mpmath.beta(df / 2, 0.5))
        )
        return float(mpmath.log(2 * integral) + log_density)


@pytest.mark.parametrize("df", [0.3, 1, 3.7, 22.03, 420, 1e5, 7e6])
def test_log_p_of_t_is_right_however_small(df: float) -> None:
    expected = np.array([mp_log_p_t(t, df) for t in T])
    np.testing.assert_allclose(log_p_t(T, df), expected, rtol=1e-10)


def test_infinite_df_is_the_normal_distribution() -> None:
    with mpmath.workdps(40):
        expected = [float(mpmath.log(mpmath.erfc(mpmath.mpf(t) / mpmath.sqrt(2)))) for t in T]
    np.testing.assert_allclose(log_p_t(T, np.inf), expected, rtol=1e-12)


@pytest.mark.parametrize("df", [0.3, 2.5, 22.03, 420.7, np.inf])
def test_the_table_for_many_values_agrees_with_direct_computation(df: float) -> None:
    t = np.concatenate([np.geomspace(1e-9, 200, 50_000), [39.999999, 40.0, 40.1]])
    np.testing.assert_allclose(log_p_t(t, df), _exact_log_p_t(t, df), rtol=1e-8)


def test_each_gene_may_have_its_own_df() -> None:
    rng = np.random.default_rng(0)
    df = rng.choice([4.0, 9.5, np.inf], 400)
    t = rng.normal(0, 8, (300, 400))
    expected = np.stack([_exact_log_p_t(np.abs(t[:, j]), df[j]) for j in range(400)], axis=1)
    np.testing.assert_allclose(log_p_t(t, df), expected, rtol=1e-8)


def test_ends_of_the_range() -> None:
    found = log_p_t(np.array([0.0, -3.0, 3.0, np.inf, np.nan]), 10.0)
    assert found[0] == 0
    assert found[1] == found[2]
    assert np.isneginf(found[3])
    assert np.isnan(found[4])


@pytest.mark.parametrize("df1", [1, 9, 1300])
@pytest.mark.parametrize("df2", [0.8, 18.4, 500, np.inf])
def test_log_p_of_f(df1: float, df2: float) -> None:
    f = np.array([0.5, 1, 1.3, 3, 10, 1e3, 1e6])
    with mpmath.workdps(60):
        if np.isinf(df2):
            tails = [
                mpmath.gammainc(mpmath.mpf(df1) / 2, df1 * mpmath.mpf(x) / 2, regularized=True)
                for x in f
            ]
        else:
            a, b = mpmath.mpf(df2) / 2, mpmath.mpf(df1) / 2
            tails = [
                mpmath.betainc(a, b, 0, df2 / (df2 + df1 * mpmath.mpf(x)), regularized=True)
                for x in f
            ]
        expected = np.array([float(mpmath.log(p)) for p in tails])
    np.testing.assert_allclose(log_p_f(f, df1, df2), expected, rtol=1e-8, atol=1e-30)


def test_the_organisers_stand_in_for_zero() -> None:
    assert round(-_EPS_LOG10_P, 2) == 15.65
