"""The sparse sampler draws exactly the negative binomial."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from perturbgen.simulation import sample_nb_sparse
from perturbgen.simulation.op3.baseline import _probability_nonzero
from perturbgen.simulation.op3.cells import _DENSE_ABOVE, Stream


def chi_square_p(draws: np.ndarray, mean: float, r: float) -> float:
    """p of the counts against scipy's NB (Poisson: r = inf), ten expected draws a bin."""
    law = stats.poisson(mean) if np.isinf(r) else stats.nbinom(r, r / (r + mean))
    top = max(int(law.isf(10 / len(draws))), 1)
    observed = np.bincount(np.minimum(draws, top), minlength=top + 1)
    expected = len(draws) * np.append(law.pmf(np.arange(top)), law.sf(top - 1))
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("r", [0.3, 2.0, 50.0, np.inf])
@pytest.mark.parametrize("mean", [0.002, 0.05, 0.29, 0.31, 3.0, 40.0])
def test_counts_follow_the_law_of_scipy(mean: float, r: float) -> None:
    rng = np.random.default_rng(5)
    share = np.array([mean, 2 * mean])
    counts = sample_nb_sparse(rng, size=np.ones(100_000), share=share, r=np.full(2, r)).toarray()
    for gene, expected in enumerate(share):
        assert chi_square_p(counts[:, gene], expected, r) > 1e-3


def test_every_cell_has_its_own_size_in_a_mixed_batch() -> None:
    size = np.repeat([0.2, 1.0, 3.0], 60_000)
    share, r = np.array([0.05, 1.0]), np.array([0.5, 2.0])
    counts = sample_nb_sparse(np.random.default_rng(6), size=size, share=share, r=r).toarray()
    for value in (0.2, 1.0, 3.0):
        for gene in range(2):
            assert chi_square_p(counts[size == value, gene], value * share[gene], r[gene]) > 1e-3


def test_a_tilt_multiplies_the_means_and_changes_no_law() -> None:
    factor = np.repeat([0.3, 1.0, 4.0], 60_000)
    share, r = np.array([0.05, 1.0]), np.array([0.5, 2.0])
    tilt = np.log(np.stack([factor, factor[::-1]]))
    counts = sample_nb_sparse(
        np.random.default_rng(6), size=np.ones(len(factor)), share=share, r=r, tilt=tilt
    ).toarray()
    for gene, factors in enumerate((factor, factor[::-1])):
        for value in (0.3, 1.0, 4.0):
            draws = counts[factors == value, gene]
            assert chi_square_p(draws, value * share[gene], r[gene]) > 1e-3


def test_the_chi_square_would_notice_a_wrong_law() -> None:
    counts = sample_nb_sparse(
        np.random.default_rng(5), size=np.ones(100_000), share=np.array([0.2]), r=np.array([1.0])
    )
    assert chi_square_p(counts.toarray()[:, 0], 0.2, 3.0) < 1e-6


def test_both_ways_of_drawing_are_used_and_columns_stay_in_place() -> None:
    share = np.array([5 * _DENSE_ABOVE, 0.0, _DENSE_ABOVE / 10, 0.0, 10 * _DENSE_ABOVE])
    counts = sample_nb_sparse(
        np.random.default_rng(0), size=np.ones(40_000), share=share, r=np.full(5, 2.0)
    )
    assert np.allclose(np.asarray(counts.mean(axis=0)).ravel(), share, rtol=0.06)
    assert counts.has_canonical_format
    assert counts.dtype == np.int32
    assert counts.data.min() > 0


def test_a_cellless_or_silent_request_is_an_empty_matrix() -> None:
    rng = np.random.default_rng(0)
    assert sample_nb_sparse(rng, size=np.ones(0), share=np.ones(3), r=np.ones(3)).shape == (0, 3)
    assert sample_nb_sparse(rng, size=np.ones(4), share=np.zeros(3), r=np.ones(3)).nnz == 0


def test_probability_nonzero_is_the_complement_of_scipys_zero() -> None:
    mean, r = np.array([1e-6, 0.1, 5.0]), np.array([0.5, 2.0, 100.0])
    assert np.allclose(
        _probability_nonzero(mean, r), stats.nbinom.sf(0, r, r / (r + mean)), rtol=1e-9
    )


def test_streams_depend_on_their_key_only() -> None:
    assert Stream(2).rng(1, 3).random() == Stream(2).rng(1, 3).random()
    draws = {
        Stream(part).rng(seed, *key).random()
        for seed, part, *key in [(1, 2, 3), (1, 2, 4), (1, 3), (2, 2, 3)]
    }
    assert len(draws) == 4
