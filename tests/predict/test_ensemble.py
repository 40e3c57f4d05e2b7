"""Weights of an ensemble: recovered where they are known, never negative, and a gain that is judged
out of sample.
"""

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.predict import fit_ensemble, mrrmse

INDEX = pd.MultiIndex.from_product(
    [["B", "M"], [f"c{i}" for i in range(8)]], names=["cell_type", "compound"]
)
GENES = [f"g{i}" for i in range(200)]


def frame(values):
    return pd.DataFrame(values, INDEX, GENES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_weights_are_recovered_and_sum_to_what_they_must(rng):
    a, b = (frame(rng.normal(size=(16, 200))) for _ in range(2))
    truth = 0.5 * a + 0.25 * b
    found = fit_ensemble({"a": a, "b": b.iloc[::-1, ::-1]}, truth, rng=rng)
    assert found.weights.to_dict() == pytest.approx({"a": 0.5, "b": 0.25}, abs=1e-6)
    pd.testing.assert_frame_equal(found.apply({"a": a, "b": b}), truth, atol=1e-6)


def test_two_noisy_views_of_a_signal_are_better_together_and_a_wrong_one_gets_nothing(rng):
    signal = frame(rng.normal(size=(16, 200)))
    truth = signal + rng.normal(0, 0.3, signal.shape)
    views = {name: signal + rng.normal(0, 1, signal.shape) for name in "ab"}
    found = fit_ensemble(views | {"wrong": -signal}, truth, rng=rng)
    # Two views of unit noise: the best weights are 1/3 each (covariance 1, variance 2).
    assert found.weights["a"] == pytest.approx(1 / 3, abs=0.05)
    assert found.weights["wrong"] == 0.0
    assert found.interval[0] <= found.gain <= found.interval[1]
    assert found.interval[0] > 0
    assert mrrmse(found.apply(views | {"wrong": -signal}), truth) < min(
        mrrmse(v, truth) for v in views.values()
    )


def test_the_interval_of_the_gain_counts_compounds_not_conditions(rng):
    truth = frame(rng.normal(size=(16, 200)))
    members = {
        "a": truth + rng.normal(0, 1, truth.shape),
        "b": truth + rng.normal(0, 1, truth.shape),
    }
    half = truth.index.get_level_values(0) == "B"
    few, many = ({name: values[half] for name, values in members.items()}, dict(members))
    for name, values in many.items():
        # a second cell type that says the same
        many[name] = pd.DataFrame(np.tile(values[half], (2, 1)), INDEX, GENES)
    doubled = pd.DataFrame(np.tile(truth[half], (2, 1)), INDEX, GENES)
    one = fit_ensemble(few, truth[half], rng=np.random.default_rng(1))
    two = fit_ensemble(many, doubled, rng=np.random.default_rng(1))
    assert two.interval == pytest.approx(one.interval)


def test_members_of_pure_noise_gain_nothing(rng):
    truth = frame(rng.normal(size=(16, 200)))
    found = fit_ensemble(
        {"zeros": truth * 0, "noise": frame(rng.normal(size=(16, 200)))}, truth, rng=rng
    )
    assert found.gain < 0.005
    assert found.interval[0] <= 0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda p, t: ({}, t), ConfigError, "no predictions"),
        (lambda p, t: ({"a": p.iloc[:3]}, t), SchemaError, "conditions"),
        (lambda p, t: ({"a": p.iloc[:, :3]}, t), SchemaError, "genes"),
        (lambda p, t: ({"a": p.where(p > 0)}, t), SchemaError, "infinite values in 'a'"),
        (lambda p, t: ({"a": p}, t.where(t > 0)), SchemaError, "the truth"),
        (
            lambda p, t: ({"a": p.iloc[[0, 8]]}, t.iloc[[0, 8]]),
            ConfigError,
            "two or more withheld compounds",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(rng, change, error, words):
    values = frame(rng.normal(size=(16, 200)))
    predictions, truth = change(values, values)
    with pytest.raises(error, match=words):
        fit_ensemble(predictions, truth, rng=rng)
