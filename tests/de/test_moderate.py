"""Moderation: limits that can be worked out, what robustness is for. R itself: test_parity_r.py."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.special import polygamma

from perturbgen.core.errors import DesignError
from perturbgen.de.moderate import (
    _fit_prior,
    _inverse_trigamma,
    _natural_spline,
    _robust_prior,
    _winsorised_moments,
    moderate,
)


def draw(
    rng: np.random.Generator, genes: int, df: float, prior_df: float, scale: float
) -> np.ndarray:
    """Variances from the model: scale * F(df, prior_df)."""
    true = scale * prior_df / rng.chisquare(prior_df, genes)
    return true * rng.chisquare(df, genes) / df


def test_the_prior_is_recovered() -> None:
    variance = draw(np.random.default_rng(0), 50_000, 8, 12, 0.7)
    prior = _fit_prior(variance, 8)
    np.testing.assert_allclose(prior.scale[0], 0.7, rtol=0.02)
    np.testing.assert_allclose(prior.df[0], 12, rtol=0.1)


def test_equal_variances_have_an_infinite_prior() -> None:
    rng = np.random.default_rng(1)
    variance = 2 * rng.chisquare(5, 500) / 5
    variance = np.exp(np.log(variance) * 0.5)  # less spread than chance alone would give
    found = moderate(variance, 5, mean=np.zeros(500))
    np.testing.assert_allclose(found.s2_post, variance.mean())
    assert (found.df_total == 5 * 500).all()


def test_posterior_is_the_weighted_mean() -> None:
    variance = draw(np.random.default_rng(2), 300, 4, 6, 1.0)
    found = moderate(variance, 4, mean=np.zeros(300))
    weight = found.prior.df
    np.testing.assert_allclose(
        found.s2_post, (4 * variance + weight * found.prior.scale) / (4 + weight)
    )
    np.testing.assert_allclose(found.df_total, 4 + weight)


def test_total_df_never_exceed_those_of_all_genes() -> None:
    variance = draw(np.random.default_rng(3), 4, 3, 500, 1.0)
    assert (moderate(variance, 3, mean=np.zeros(4)).df_total <= 12).all()


def test_one_gene_is_left_alone() -> None:
    assert moderate(np.array([2.0]), 3, mean=np.zeros(1)).s2_post.tolist() == [2.0]


def test_robust_prior_ignores_outliers_and_takes_their_prior_away() -> None:
    rng = np.random.default_rng(4)
    variance = draw(rng, 2000, 6, 30, 1.0)
    variance[:40] *= 60
    plain, robust = _fit_prior(variance, 6), _robust_prior(variance, 6)
    assert plain.df[0] < 15 < robust.df[100:].max()
    assert robust.df[:40].max() < 0.5 * np.median(robust.df)
    np.testing.assert_allclose(robust.scale[0], 1.0, rtol=0.1)


def test_robust_with_an_infinite_bulk_gives_outliers_finite_df() -> None:
    rng = np.random.default_rng(5)
    variance = rng.chisquare(10, 1000) / 10
    variance = np.exp(np.log(variance) * 0.8)
    variance[:5] = 50
    prior = _robust_prior(variance, 10)
    assert np.isfinite(prior.df[:5]).all()
    assert np.isinf(np.median(prior.df))


def test_trend_follows_the_mean() -> None:
    rng = np.random.default_rng(6)
    mean = rng.uniform(0, 10, 5000)
    variance = np.exp(-0.3 * mean) * draw(rng, 5000, 6, 20, 1.0)
    prior = _fit_prior(variance, 6, mean)
    np.testing.assert_allclose(np.log(prior.scale), -0.3 * mean, atol=0.25)
    assert _fit_prior(variance, 6).df[0] < 0.5 * prior.df[0]


def test_natural_splines_are_straight_beyond_the_outer_knots_and_smooth_between() -> None:
    x = np.linspace(0, 1, 2001)
    basis = _natural_spline(x, 4)
    assert np.linalg.matrix_rank(basis) == 4
    second = np.diff(basis, 2, axis=0) / (x[1] - x[0]) ** 2
    np.testing.assert_allclose(second[[0, -1]], 0, atol=0.05)
    assert np.abs(np.diff(second, axis=0)).max() < 0.05


@pytest.mark.parametrize("value", [1e-8, 1e-3, 0.3, 1.0, 20.0, 1e9])
def test_inverse_trigamma(value: float) -> None:
    np.testing.assert_allclose(float(polygamma(1, _inverse_trigamma(value))), value, rtol=1e-6)


def test_winsorised_moments_agree_with_simulation() -> None:
    z = np.log(np.random.default_rng(7).f(7, 11, 400_000))
    clipped = np.clip(z, *np.quantile(z, [0.05, 0.9]))
    mean, variance = _winsorised_moments(7, 11)
    np.testing.assert_allclose([mean, variance], [clipped.mean(), clipped.var()], rtol=0.02)
    np.testing.assert_allclose(
        _winsorised_moments(7, 1e9), _winsorised_moments(7, np.inf), rtol=1e-6
    )


def test_zero_variances_are_offset_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    variance = draw(np.random.default_rng(8), 100, 4, 6, 1.0)
    variance[:3] = 0
    with caplog.at_level(logging.WARNING, "perturbgen"):
        found = moderate(variance, 4, mean=np.zeros(100))
    assert "zero sample variances in 3 genes" in caplog.text
    assert (found.s2_post > 0).all()
    variance[:60] = 0
    moderate(variance, 4, mean=np.zeros(100))
    assert "more than half" in caplog.text


def test_nothing_to_estimate_a_variance_from() -> None:
    with pytest.raises(DesignError, match="no residual degrees of freedom"):
        moderate(np.ones(5), 0, mean=np.zeros(5))
