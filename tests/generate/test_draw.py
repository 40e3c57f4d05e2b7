"""Counts are exactly negative binomial, and cost what they count."""

import numpy as np
import pytest
from scipy import stats

from perturbgen.generate.cells import _HEAVY, _STRIDE, _draw_counts

CASES = [
    (0.02, 0.5),
    (0.5, 2.0),
    (3.0, 0.3),
    (40.0, 10.0),
    (7.0, 1e7),
    (7.0, np.inf),
    (1.0, np.inf),
]


@pytest.mark.parametrize(("m", "r"), CASES)
def test_counts_have_the_negative_binomial_distribution(m, r):
    n = 40_000
    mean, size = np.full((n // 4, 4), m, np.float32), np.full((1, 4), r, np.float32)
    counts = _draw_counts(mean, size, np.random.default_rng(0)).toarray().ravel()
    law = stats.poisson(m) if r > 1e6 else stats.nbinom(r, r / (r + m))
    edges = np.unique(law.ppf(np.linspace(0.02, 0.999, 25))).astype(int)
    found = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    expected = n * np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    kept = expected > 3
    assert (
        stats.chi2.sf(((found - expected)[kept] ** 2 / expected[kept]).sum(), kept.sum() - 1) > 1e-3
    )


def test_genes_keep_their_places_and_their_own_dispersion():
    mean = np.array([[0, 5, 0, 1], [2, 0, 0, 0]], np.float32).repeat(4000, axis=0)
    r = np.array([[1, 1e6, 1, 0.5], [0.5, 1, 1, 1]], np.float32).repeat(4000, axis=0)
    counts = _draw_counts(mean, r, np.random.default_rng(1)).toarray()
    assert (counts[mean == 0] == 0).all()
    first, second = counts[:4000], counts[4000:]
    np.testing.assert_allclose(first.mean(axis=0), [0, 5, 0, 1], atol=0.2)
    np.testing.assert_allclose(first.var(axis=0), [0, 5, 0, 3], rtol=0.25)
    assert second[:, 0].var() == pytest.approx(2 + 4 / 0.5, rel=0.25)


def test_genes_passed_by_in_strides_keep_their_means():
    mean = np.random.default_rng(0).gamma(0.2, 0.1, 3 * _STRIDE + 7).astype(np.float32)
    mean[[5, _STRIDE + 1]] = _HEAVY * 1.01, _HEAVY * 0.99
    cells = 60_000
    counts = _draw_counts(
        np.tile(mean, (cells, 1)), np.full((1, len(mean)), 2, np.float32), np.random.default_rng(1)
    )
    error = np.sqrt((mean + mean**2 / 2) / cells)
    seen = mean * cells > 20
    assert np.abs((counts.sum(axis=0) / cells - mean) / error)[seen].max() < 4


def test_one_seed_one_draw():
    mean = np.full((3, 50), 0.7, np.float32)
    first, again, other = (
        _draw_counts(mean, mean[:1], np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0
    assert first.dtype == np.int32
    assert first.has_canonical_format
