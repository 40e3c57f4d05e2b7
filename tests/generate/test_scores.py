from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from perturbgen.generate.sampler import _deconvolve
from perturbgen.generate.validate import _crps, _pit, coverage


def test_crps_by_hand() -> None:
    # |1 - 2| and |4 - 2| average to 1.5; the only pair differs by 3, and half its mean is 1.5
    assert _crps(np.array([[1.0, 4.0]]), np.array([2.0])) == pytest.approx([0.0])
    # errors 2, 1, 0 average to 1; pairs differ by 1, 2, 1, half their mean is 2/3
    assert _crps(np.array([[3.0, 1.0, 2.0]]), np.array([3.0])) == pytest.approx([1 - 2 / 3])
    assert _crps(np.array([[5.0]]), np.array([3.0])) == pytest.approx([2.0])


def test_crps_of_a_normal_is_the_closed_form_and_the_truth_is_best() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=4000)
    right = _crps(rng.normal(size=(4000, 100)), y).mean()
    assert right == pytest.approx(1 / np.sqrt(np.pi), rel=0.03)
    for wrong in (
        rng.normal(0.3, 1, (4000, 100)),
        rng.normal(0, 2, (4000, 100)),
        rng.normal(0, 0.5, (4000, 100)),
    ):
        assert _crps(wrong, y).mean() > right


def test_pit_is_uniform_for_the_right_counts_and_coverage_follows() -> None:
    rng = np.random.default_rng(1)
    draws, y = rng.poisson(3, (5000, 199)), rng.poisson(3, 5000)
    values = _pit(draws, y, rng=rng)
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert coverage(values, 0.8) == pytest.approx(0.8, abs=0.02)
    assert coverage(_pit(draws * 0 + 3, y, rng=rng), 0.5) < 0.4


def test_deconvolution_takes_the_noise_out_and_no_more() -> None:
    rng = np.random.default_rng(2)
    noise = rng.uniform(0.01, 0.5, 20_000)
    residual = rng.normal(0, 0.3, 20_000) + rng.normal(0, np.sqrt(noise))
    clean = _deconvolve(residual, noise)
    for part in (noise < 0.1, noise > 0.4):
        assert clean[part].std() == pytest.approx(0.3, rel=0.05)
    assert (_deconvolve(rng.normal(0, 0.01, 100), np.full(100, 0.5)) == 0).all()
