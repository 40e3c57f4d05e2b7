from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from perturbgen.generate import SamplerSettings
from perturbgen.generate.forest import Forest

X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
Y = X[:, 0] ** 2 + X[:, 1] + np.random.default_rng(1).normal(0, 0.3, 300)


@pytest.fixture(scope="module")
def forest() -> Forest:
    settings = SamplerSettings(trees=25, leaf=4, features=0.5)
    return Forest.fit(X, Y, np.linspace(0.5, 2, 300), settings, np.random.default_rng(7))


def test_predictions_and_leaves_are_scikit_learns(forest: Forest) -> None:
    state = int(np.random.default_rng(7).integers(2**31))
    model = RandomForestRegressor(25, min_samples_leaf=4, max_features=0.5, random_state=state)
    model.fit(X, Y, sample_weight=np.linspace(0.5, 2, 300))
    new = np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32)
    assert np.allclose(forest.predict(new), model.predict(new), rtol=1e-12)
    assert (forest.leaves(new) - forest.roots == model.apply(new)).all()


def test_weights_are_meinshausens(forest: Forest) -> None:
    leaves, new = forest.leaves(X), X[:5]
    same = forest.leaves(new)[:, None, :] == leaves[None]
    expected = (same / same.sum(axis=1, keepdims=True)).mean(axis=2)
    assert np.allclose(forest.weights(new), expected)
    assert np.allclose(forest.weights(new).sum(axis=1), 1)


def test_rows_are_drawn_with_these_weights(forest: Forest) -> None:
    rows = forest.draw_rows(X[:2], 40_000, rng=np.random.default_rng(3))
    expected = forest.weights(X[:2])
    found = np.stack([np.bincount(row, minlength=300) / 40_000 for row in rows])
    assert np.abs(found - expected).max() < 5 * np.sqrt(expected.max() / 40_000)


def test_no_rows_give_no_predictions(forest: Forest) -> None:
    assert forest.predict(X[:0]).shape == (0,)
