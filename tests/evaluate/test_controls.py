from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from perturbgen.core.errors import SchemaError
from perturbgen.evaluate import interpolated_duplicate, score, scorecard
from perturbgen.evaluate.duplicate import _adjusted_p
from tests.evaluate.tables import frame


def test_by_hand() -> None:
    # p = .01 and 1: adjusted .02 and 1
    duplicate = frame([[2.0, 0.0]])
    found = interpolated_duplicate(duplicate, pd.Series({"g1": 0.5, "g0": -1.0}))
    np.testing.assert_allclose(found, [[0.98 * 2 - 0.02, 0.5]])
    given = frame([[0.5, 0.25]])
    np.testing.assert_allclose(
        interpolated_duplicate(duplicate, given, adj_p=given), [[1.25, 0.0625]]
    )


def test_what_is_not_significant_is_like_what_it_was_tested_against() -> None:
    # p = .01 and 1: adjusted .02 and 1; the control's own value is 0
    duplicate = frame([[2.0, 0.0]])
    np.testing.assert_allclose(interpolated_duplicate(duplicate), [[0.98 * 2, 0.0]])
    rng = np.random.default_rng(1)
    signal = np.where(rng.random((20, 400)) < 0.02, rng.normal(0, 6, (20, 400)), 0.0)
    truth, repeated = (frame(signal + rng.normal(size=signal.shape)) for _ in range(2))
    mean = pd.Series(rng.normal(0, 0.5, 400), truth.columns)
    found = {
        name: score(truth, table, metrics=["perturbation_discrimination"], groups=None)
        .mean(axis=1)
        .iloc[0]
        for name, table in (
            ("zero", interpolated_duplicate(repeated)),
            ("mean", interpolated_duplicate(repeated, mean)),
        )
    }
    assert found["zero"] > found["mean"], "a mean blended in makes all conditions alike"


def test_adjusted_p_is_scipys() -> None:
    strength = np.abs(np.random.default_rng(0).normal(size=(5, 90)) * 2)
    expected = [scipy.stats.false_discovery_control(10.0**-row) for row in strength]
    np.testing.assert_allclose(_adjusted_p(strength), expected)


def test_it_is_a_better_control_than_duplicate_and_mean() -> None:
    rng = np.random.default_rng(0)
    responds = rng.random((30, 600)) < 0.05
    signal = np.where(responds, rng.normal(0, 12, responds.shape), 0.0)
    truth, duplicate = (frame(signal + rng.normal(size=signal.shape)) for _ in range(2))
    mean = truth.mean() * 0
    tables = {
        "duplicate": duplicate,
        "interpolated": interpolated_duplicate(duplicate, mean),
        "zeros": truth * 0,
    }
    rmse = {
        name: score(truth, t, metrics=["mean_rowwise_rmse"]).mean(axis=1).iloc[0]
        for name, t in tables.items()
    }
    assert rmse["interpolated"] < rmse["duplicate"] - 0.05
    assert rmse["interpolated"] < rmse["zeros"] / 2
    card = scorecard(truth, tables, positive="interpolated", resamples=20)
    assert card.ranking["method"].iloc[-1] == "zeros"


def test_a_mistake_is_explained() -> None:
    duplicate = frame([[2.0, 0.0]])
    with pytest.raises(SchemaError, match="no value for 1 genes: 'g1'"):
        interpolated_duplicate(duplicate, pd.Series({"g0": 1.0}))
    with pytest.raises(SchemaError, match=r"outside 0\.\.1"):
        interpolated_duplicate(duplicate, duplicate, adj_p=duplicate)
