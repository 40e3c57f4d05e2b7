"""PCA, WCCN and the replicate metric: against scikit-learn, by their defining equations, and on bad
input.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.profiles.linear import PCA, WCCN, ReplicateMetric, _within_covariance
from perturbgen.retrieval import retrieve


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """200 rows of 25 classes: signal in five features, a strong nuisance that replicates do not
    share in another.
    """
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(25), 8)
    x = rng.normal(size=(200, 30))
    x[:, :5] += rng.normal(size=(25, 5))[label]
    x[:, 5] *= 8
    return x, np.array([f"d{i}" for i in label])


@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_scikit_learns(data: tuple[np.ndarray, np.ndarray], whiten: bool) -> None:
    from sklearn.decomposition import PCA as Reference

    x, _ = data
    train, test = x[:150], x[150:]
    ours = PCA(6, scale=False, whiten=whiten).fit(train).transform(test)
    theirs = Reference(6, svd_solver="full", whiten=whiten).fit(train).transform(test)
    theirs *= np.sqrt(150 / 149) if whiten else 1  # theirs divides by n - 1
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-10)  # up to signs


def test_scaling_is_of_the_training_rows(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = data
    x = np.hstack([x, np.ones((200, 1))])  # a constant feature says nothing
    fitted = PCA(4).fit(x[:150])
    standard = (x - x[:150].mean(axis=0)) / np.where(
        x[:150].std(axis=0) > 0, x[:150].std(axis=0), np.inf
    )
    reference = PCA(4, scale=False).fit(standard[:150])
    np.testing.assert_allclose(
        fitted.transform(x[150:]), reference.transform(standard[150:]), atol=1e-10
    )
    assert np.isfinite(fitted.matrix).all()


def test_wccn_makes_the_within_class_covariance_one(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, labels = data
    whitened = WCCN(10, shrink=0).fit(x, labels).transform(x)
    np.testing.assert_allclose(_within_covariance(whitened, labels), np.eye(10), atol=1e-10)
    full = WCCN(10, shrink=1).fit(x, labels).transform(x)  # all shrinkage: PCA up to one scale
    plain = PCA(10).fit(x).transform(x)
    np.testing.assert_allclose(full / full[0, 0], plain / plain[0, 0], atol=1e-10)


def test_wccn_does_not_depend_on_order_or_names(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, labels = data
    order = np.random.default_rng(1).permutation(len(x))
    one = WCCN(10).fit(x, labels).transform(x)
    two = WCCN(10).fit(x[order], np.char.add("z", labels[order])).transform(x)
    np.testing.assert_allclose(one @ one.T, two @ two.T, atol=1e-8)


@pytest.mark.parametrize("embedding", [WCCN(20), ReplicateMetric(10, 20)])
def test_what_replicates_do_not_share_counts_less(
    data: tuple[np.ndarray, np.ndarray], embedding: WCCN | ReplicateMetric
) -> None:
    x, labels = data
    train = np.isin(labels, [f"d{i}" for i in range(15)])
    held_out = pd.DataFrame({"label": labels[~train]})
    fitted = replace(embedding, scale=False).fit(x[train], labels[train])
    raw, linear = (
        retrieve(values, held_out, same="label").summary().loc["per query", "auc"]
        for values in (x[~train], fitted.transform(x[~train]))
    )
    assert linear > raw + 0.05


def test_the_replicate_metric_orders_directions_by_replicate_correlation(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    x, labels = data
    fitted = ReplicateMetric(8, 20, shrink=0).fit(x, labels)
    assert (np.diff(fitted.strength) <= 0).all()
    assert ((fitted.strength > 0) & (fitted.strength <= 1)).all()
    y = fitted.transform(x)
    share = 1 - np.diag(_within_covariance(y, labels)) / y.var(axis=0)
    # r is the variance that classes explain
    np.testing.assert_allclose(share, fitted.strength, atol=1e-9)
    # and components are weighted by sqrt(r)
    np.testing.assert_allclose(y.var(axis=0), fitted.strength, atol=1e-9)


def test_more_components_than_the_data_have(
    data: tuple[np.ndarray, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    x, labels = data
    assert PCA(64).fit(x).matrix.shape == (30, 30)
    assert "64 components were asked for; 200 rows have 30" in caplog.text
    assert np.isfinite(WCCN(64).fit(x[:20], labels[:20]).matrix).all()


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda x, y: PCA(0).fit(x), ConfigError, "0 components"),
        (lambda x, y: PCA(3).fit(x[0]), SchemaError, "data of shape"),
        (lambda x, y: PCA(3).fit(np.where(x > 2, np.nan, x)), SchemaError, "NaN or infinity"),
        (lambda x, y: WCCN(3, shrink=2).fit(x, y), ConfigError, "shrink is 2"),
        (lambda x, y: WCCN(3).fit(x, y[:-1]), SchemaError, "199 labels for 200 rows"),
        (lambda x, y: WCCN(3).fit(x, np.arange(200)), SchemaError, "every class has one row only"),
        (lambda x, y: PCA(3).fit(x).transform(x[:, :4]), SchemaError, "as the training rows"),
    ],
)
def test_mistakes_are_explained(
    data: tuple[np.ndarray, np.ndarray], act: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        act(*data)
