"""Outliers in the space of features: found in any order, and said where there can be none."""

import numpy as np
import pytest
from outliers import outlier_scores

from perturbgen.core.errors import SchemaError


@pytest.mark.parametrize("method", ["knn", "mahalanobis", "lof"])
def test_the_planted_outlier_is_first_however_the_rows_lie(method: str) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(60, 80))  # fewer rows than features
    values[17] += 3
    order = rng.permutation(60)
    scores = outlier_scores(values, method=method)  # type: ignore[arg-type]
    assert scores.argmax() == 17
    np.testing.assert_allclose(
        outlier_scores(values[order], method=method), scores[order], rtol=1e-6
    )  # type: ignore[arg-type]


def test_outliers_of_too_few_or_equal_rows() -> None:
    with pytest.raises(SchemaError, match="neighbours of 3 rows"):
        outlier_scores(np.eye(3))
    with pytest.raises(SchemaError, match="all rows are equal"):
        outlier_scores(np.ones((4, 2)), method="mahalanobis")
