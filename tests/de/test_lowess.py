"""LOWESS: what it must do on any data, and R's numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from perturbgen.de.trend import Trend


def test_a_straight_line_is_reproduced() -> None:
    x = np.random.default_rng(0).uniform(0, 10, 200)
    np.testing.assert_allclose(Trend.lowess(x, 3 - 2 * x, span=0.5)(x), 3 - 2 * x, atol=1e-10)


def test_outliers_do_not_move_it() -> None:
    rng = np.random.default_rng(1)
    x = np.sort(rng.uniform(0, 10, 300))
    y = np.sin(x) + rng.normal(0, 0.05, 300)
    spoiled = y.copy()
    spoiled[::29] += 100
    assert (
        np.abs(Trend.lowess(x, spoiled, span=0.3)(x) - Trend.lowess(x, y, span=0.3)(x)).max() < 0.05
    )


def test_order_of_the_points_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=400), rng.normal(size=400)
    order = rng.permutation(400)
    np.testing.assert_allclose(
        Trend.lowess(x, y, span=0.5)(x), Trend.lowess(x[order], y[order], span=0.5)(x), atol=1e-12
    )


def test_one_value_of_x_gives_the_mean() -> None:
    trend = Trend.lowess(np.ones(5), np.arange(5.0), span=0.5)
    assert trend(np.array([-3.0, 1.0, 9.0])).tolist() == [2.0, 2.0, 2.0]


def test_the_grid_gives_the_same_as_a_search() -> None:
    rng = np.random.default_rng(3)
    trend = Trend(np.sort(rng.gamma(2, 2, 90)), rng.uniform(1, 2, 90))
    at = np.concatenate([rng.uniform(-5, 30, 20_000), trend.x])
    np.testing.assert_allclose(trend(at), np.interp(at, trend.x, trend.y), atol=1e-12)


def test_adaptive_span() -> None:
    assert Trend.span("adaptive", 50) == 1.0
    assert Trend.span("adaptive", 10) == 1.0
    np.testing.assert_allclose(Trend.span("adaptive", 5317), 0.3 + 0.7 * (50 / 5317) ** (1 / 3))


@pytest.mark.r
@pytest.mark.parametrize(
    ("n", "span", "digits"), [(30, 0.5, 9), (500, 0.3, 1), (5000, 0.5, 9), (5000, 0.5, 1)]
)
def test_equals_r(n: int, span: float, digits: int, rscript: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(n + digits)
    x = rng.gamma(2, 2, n).round(digits)  # one digit makes many ties
    y = np.sin(x) + rng.normal(0, 0.3, n)
    y[::17] += 50
    np.savetxt(tmp_path / "in.txt", np.c_[x, y], fmt="%.17g")
    code = (
        f'd <- as.matrix(read.table("{tmp_path}/in.txt")); l <- lowess(d[, 1], d[, 2], f = {span});'
        f'write.table(format(cbind(l$x, l$y), digits = 17), "{tmp_path}/out.txt",'
        "quote = FALSE, row.names = FALSE, col.names = FALSE)"
    )
    subprocess.run([rscript, "-e", code], check=True, capture_output=True)
    expected = np.loadtxt(tmp_path / "out.txt")
    np.testing.assert_allclose(
        Trend.lowess(x, y, span=span)(expected[:, 0]), expected[:, 1], atol=1e-10
    )
