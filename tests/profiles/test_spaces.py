"""Shared spaces in closed form are those of scikit-learn, scipy and the textbook."""

import numpy as np
import pytest
from scipy.linalg import eigh, orthogonal_procrustes
from sklearn.cross_decomposition import CCA, PLSSVD, PLSCanonical
from sklearn.linear_model import Ridge

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.profiles.crossmodal import _for_matching
from perturbgen.profiles.linear import Spectrum


def blocks(
    rows: int = 60, seed: int = 0, features: tuple[int, int] = (5, 7)
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, 3)) * [2, 1, 0.5]
    return tuple(
        shared @ rng.normal(size=(3, size)) + rng.normal(size=(rows, size)) for size in features
    )


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / x.std(axis=0)


def test_the_correlation_of_two_columns_by_hand() -> None:
    u, v = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    other = Spectrum.of(np.c_[3 * u + 4 * v, 5 * u + 1])
    space = Spectrum.of(np.c_[u, v]).rgcca(other, components=2, tau=0)
    np.testing.assert_allclose(space.first.strength, [1, 1], atol=1e-12)  # both see u and v
    other = Spectrum.of(np.c_[3 * u + 4 * v, 6 * u + 8 * v])
    only = Spectrum.of(np.c_[u, u]).rgcca(other, components=2, tau=0)
    np.testing.assert_allclose(only.first.strength, [0.6], atol=1e-12)


def test_tau_0_is_scikit_learns_cca() -> None:
    x, y = blocks()
    space = Spectrum.of(x).rgcca(Spectrum.of(y), components=3, tau=0)
    theirs = CCA(n_components=3, max_iter=5000, tol=1e-12).fit(x, y)
    a, b = theirs.transform(x, y)
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(space.first.strength, expected, atol=1e-6)
    for ours, other in ((space.first.transform(x), a), (space.second.transform(y), b)):
        along = [abs(np.corrcoef(ours[:, i], other[:, i])[0, 1]) for i in range(3)]
        np.testing.assert_allclose(along, 1, atol=1e-6)


def test_tau_1_is_partial_least_squares() -> None:
    x, y = blocks()
    space = Spectrum.of(x).rgcca(Spectrum.of(y), components=3, tau=1)
    theirs = PLSSVD(n_components=3).fit(x, y)
    canonical = PLSCanonical(n_components=1, tol=1e-12).fit(x, y)
    a, b = theirs.transform(x, y)
    ours = space.first.transform(x)
    for i in range(3):
        assert abs(np.corrcoef(ours[:, i], a[:, i])[0, 1]) == pytest.approx(1, abs=1e-9)
        assert abs(np.corrcoef(space.second.transform(y)[:, i], b[:, i])[0, 1]) == pytest.approx(
            1, abs=1e-9
        )
    assert abs(np.corrcoef(ours[:, 0], canonical.transform(x)[:, 0])[0, 1]) == pytest.approx(
        1, abs=1e-9
    )


@pytest.mark.parametrize(("tau", "features"), [(0.2, (5, 7)), (0.05, (40, 90)), (0.7, (90, 40))])
def test_any_tau_solves_the_eigenproblem(tau: float, features: tuple[int, int]) -> None:
    """Also with more features than rows, where the decomposition leaves most of the space out."""
    x, y = (standardised(block) for block in blocks(30, features=features))
    n = len(x)
    m_x, m_y = ((1 - tau) * z.T @ z / n + tau * np.eye(z.shape[1]) for z in (x, y))
    cross = x.T @ y / n
    values, axes = eigh(cross @ np.linalg.solve(m_y, cross.T), m_x)
    a, b = axes[:, -1], np.linalg.solve(m_y, cross.T @ axes[:, -1])
    space = Spectrum.of(x).rgcca(Spectrum.of(y), components=1, tau=tau)
    assert space.first.strength[0] == pytest.approx(np.corrcoef(x @ a, y @ b)[0, 1], abs=1e-9)
    assert abs(np.corrcoef(space.first.transform(x)[:, 0], x @ a)[0, 1]) == pytest.approx(
        1, abs=1e-9
    )
    assert values[-1] > 0


def test_variates_have_variance_one_and_training_correlations() -> None:
    x, y = blocks()
    space = Spectrum.of(x).rgcca(Spectrum.of(y), components=4, tau=0.1)
    a, b = space.first.transform(x), space.second.transform(y)
    np.testing.assert_allclose(a.std(axis=0), 1)
    np.testing.assert_allclose((a * b).mean(axis=0), space.first.strength)
    weighted = _for_matching(space).first.transform(x)
    np.testing.assert_allclose(weighted, a * np.sqrt(space.first.strength))


def test_planted_canonical_correlations_are_recovered() -> None:
    rng = np.random.default_rng(3)
    planted = np.array([0.9, 0.7, 0.5, 0.0])
    z, e = rng.normal(size=(20_000, 4)), rng.normal(size=(20_000, 4))
    x = z @ rng.normal(size=(4, 4))
    y = (planted * z + np.sqrt(1 - planted**2) * e) @ rng.normal(size=(4, 4))
    found = Spectrum.of(x).rgcca(Spectrum.of(y), components=4, tau=0).first.strength
    np.testing.assert_allclose(found, planted, atol=0.025)


def test_procrustes_is_scipys() -> None:
    x, y = blocks()
    space = Spectrum.of(x).procrustes(Spectrum.of(y), components=4)
    scores = [
        decomposed.u * decomposed.s
        for decomposed in (Spectrum.of(x).leading(4), Spectrum.of(y).leading(4))
    ]
    rotation, _ = orthogonal_procrustes(*scores)
    np.testing.assert_allclose(space.first.transform(x), scores[0] @ rotation, atol=1e-9)
    np.testing.assert_allclose(space.second.transform(y), scores[1], atol=1e-9)


def test_regression_is_scikit_learns_ridge() -> None:
    x, y = blocks()
    space = Spectrum.of(x).regression(Spectrum.of(y), ridge=0.5)
    penalty = 0.5 * (Spectrum.of(x).s ** 2).mean()
    theirs = Ridge(alpha=penalty, fit_intercept=False).fit(standardised(x), standardised(y))
    np.testing.assert_allclose(space.first.transform(x), theirs.predict(standardised(x)), atol=1e-9)
    np.testing.assert_allclose(space.second.transform(y), standardised(y), atol=1e-12)


def test_constant_features_say_nothing_and_nothing_else_is_lost() -> None:
    x, y = blocks()
    wider = np.c_[x, np.full(len(x), 7.0), np.full(len(x), 1e9)]
    one, other = (
        Spectrum.of(block).rgcca(Spectrum.of(y), components=3, tau=0.1) for block in (x, wider)
    )
    np.testing.assert_allclose(
        np.abs(other.first.transform(wider)), np.abs(one.first.transform(x)), atol=1e-9
    )
    assert (other.first.matrix[-2:] == 0).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda x, y: Spectrum.of(x).rgcca(Spectrum.of(y[1:]), components=2, tau=0),
            SchemaError,
            "60 and 59 rows",
        ),
        (
            lambda x, y: Spectrum.of(x).rgcca(Spectrum.of(y), components=2, tau=1.5),
            ConfigError,
            "tau is 1.5",
        ),
        (
            lambda x, y: Spectrum.of(x).regression(Spectrum.of(y), ridge=-1),
            ConfigError,
            "ridge is -1",
        ),
        (lambda x, y: Spectrum.of(x * 0 + 3), SchemaError, "no feature varies"),
        (
            lambda x, y: Spectrum.of(np.where(x == x[0, 0], np.nan, x)),
            SchemaError,
            "1 rows hold NaN",
        ),
    ],
)
def test_mistakes(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(*blocks())
