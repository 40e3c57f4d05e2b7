"""Probes find what is planted and not what is shuffled, and see no group on both sides."""

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.l1000.embedder.probe import (
    KINDS,
    MAJORITY,
    ProbeTask,
    _fit_network,
    _fit_ridge,
    _logistic,
    _predict_withheld,
    _scores,
)


@pytest.fixture
def planted() -> tuple[np.ndarray, pd.DataFrame]:
    """Four mechanisms of six compounds with eight profiles each; every compound has a mark of its
    own as well."""
    rng = np.random.default_rng(0)
    compound = np.repeat(np.arange(24), 8)
    moa = compound % 4
    x = rng.normal(size=(192, 12)) + 1.5 * rng.normal(size=(24, 12))[compound]
    x[:, :4] += 6 * np.eye(4)[moa]
    return x, pd.DataFrame({"moa": [f"m{k}" for k in moa], "compound": [f"c{k}" for k in compound]})


def task_of(samples: pd.DataFrame, column: str = "moa") -> ProbeTask:
    return ProbeTask.of(samples, column, "compound", rng=np.random.default_rng(0))


def test_a_planted_mechanism_is_found_and_shuffled_ones_are_not(planted):
    x, samples = planted
    found = task_of(samples).probe({"planted": x}, seed=0).set_index(["input", "classifier"])
    for kind in KINDS:
        assert found.loc[("planted", kind), "macro-F1"] > 0.75
        assert found.loc[("planted", kind), "top-1 of groups"] > 0.8
        assert found.loc[("planted, shuffled", kind), "macro-F1"] < 0.45
    assert found.loc[("none", MAJORITY), "balanced"] <= 0.25


def test_a_mark_of_the_compound_alone_says_nothing_about_unseen_compounds(planted):
    """A classifier that saw the compound would read its mechanism perfectly from its mark."""
    _, samples = planted
    marks = np.eye(24)[np.repeat(np.arange(24), 8)] * 5
    found = task_of(samples).probe({"marks": marks}, seed=0, kinds=("logistic",)).set_index("input")
    assert found.loc["marks", "top-1"] < 0.5
    x_seen = _predict_withheld(
        marks, task_of(samples), np.tile(np.arange(2), 96), "logistic", seed=0
    )
    assert _scores(x_seen, task_of(samples))["top-1"] == 1


def test_groups_are_whole_and_every_fold_knows_every_class(planted):
    task = task_of(planted[1])
    fold = task.folds(np.random.default_rng(3))
    assert all(len(np.unique(fold[task.groups == g])) == 1 for g in range(24))
    for number in range(5):
        assert set(task.codes[fold != number]) == set(range(4))
    assert np.bincount(fold).max() <= 5 * 8
    shuffled = task.shuffled(np.random.default_rng(0))
    assert all(len(np.unique(shuffled.codes[task.groups == g])) == 1 for g in range(24))
    np.testing.assert_array_equal(np.bincount(shuffled.codes), np.bincount(task.codes))
    assert (shuffled.codes != task.codes).any()


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

    rng = np.random.default_rng(0)
    codes, logs = rng.integers(0, 3, 60), rng.normal(size=(60, 3))
    codes[:3] = range(3)
    task = ProbeTask(np.arange(60), codes, np.arange(60), ("a", "b", "c"))
    found, told = _scores(logs, task), logs.argmax(1)
    assert found["top-1"] == pytest.approx(accuracy_score(codes, told))
    assert found["balanced"] == pytest.approx(balanced_accuracy_score(codes, told))
    assert found["macro-F1"] == pytest.approx(f1_score(codes, told, average="macro"))
    assert found["top-1 of groups"] == found["top-1"]  # groups of one profile


def test_groups_are_told_by_all_their_profiles():
    logs = np.log([[0.6, 0.4], [0.1, 0.9], [0.55, 0.45], [0.9, 0.1]])
    task = ProbeTask(np.arange(4), np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]), ("a", "b"))
    assert _scores(logs, task)["top-1"] == 0.75
    assert _scores(logs, task)["top-1 of groups"] == 1


def test_a_class_that_varies_within_groups_can_be_probed_too(planted):
    """Is the plate to be read from the places?"""
    x, samples = planted
    plate = np.tile(np.arange(4), 48)
    samples = samples.assign(plate=[f"p{k}" for k in plate])
    x = x.copy()
    x[:, 8:] += 6 * np.eye(4)[plate]
    found = (
        task_of(samples, "plate").probe({"x": x}, seed=0, kinds=("logistic",)).set_index("input")
    )
    assert found.loc["x", "top-1"] > 0.8
    assert found.loc["x, shuffled", "top-1"] < 0.45
    assert np.isnan(found.loc["x", "top-1 of groups"])


def test_profiles_without_a_usable_class_are_left_out(planted):
    _, samples = planted
    samples = samples.copy()
    samples.loc[:7, "moa"] = None
    samples.loc[8:9, "moa"] = " "
    samples.loc[10:15, "moa"] = "of one compound only"
    task = task_of(samples)
    assert task.rows.min() == 16
    assert task.names == ("m0", "m1", "m2", "m3")
    few = ProbeTask.of(samples, "moa", "compound", rng=np.random.default_rng(0), most=100)
    assert len(few.rows) <= 100
    assert (np.diff(few.rows) > 0).all()


def test_what_cannot_be_probed_is_refused(planted):
    _, samples = planted
    with pytest.raises(SchemaError, match="no column 'mao'"):
        task_of(samples, "mao")
    with pytest.raises(
        SchemaError, match="0 of 24 values of 'compound' occur in two compounds or more"
    ):
        task_of(samples, "compound")
    with pytest.raises(SchemaError, match="0 of 0 values of 'moa'"):
        task_of(samples.assign(moa=None))


def test_classifiers_repeat_and_leave_the_random_state_alone(planted):
    import torch

    x, samples = planted
    task = task_of(samples)
    before = torch.random.get_rng_state()
    one, two = (_fit_network(x, task.codes, "1D-CNN", classes=4, seed=1)(x) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(np.exp(one).sum(1), 1, rtol=1e-5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_penalty_is_chosen_on_the_held_rows_and_classes_may_be_absent(planted):
    x, samples = planted
    codes = task_of(samples).codes
    held = np.arange(len(x)) % 4 == 0
    chosen = _fit_ridge(x, codes, held, classes=6)(x)
    assert chosen.shape == (192, 6)
    assert np.isneginf(chosen[:, 4:]).all()
    everything = [_logistic(x, codes, c, 6)(x) for c in (1e-3, 1e-2, 1e-1, 1.0)]
    assert any(np.array_equal(chosen, other) for other in everything)
    assert (_logistic(x[:4], np.ones(4, int), 1.0, 3)(x).argmax(1) == 1).all()
