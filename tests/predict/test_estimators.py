"""Estimators by hand, and what must hold of them on noise whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.de import DETable
from perturbgen.predict import Shrinkage, average_t, expression_levels, mrrmse
from perturbgen.predict.estimators import _has_converged, _over_error, _usual_error

INDEX = pd.MultiIndex.from_tuples(
    [("B", "x"), ("B", "y"), ("M", "x")], names=["cell_type", "compound"]
)
GENES = pd.Index(["g1", "g2", "g3"])


def frame(values: object) -> pd.DataFrame:
    return pd.DataFrame(np.broadcast_to(np.asarray(values, float), (3, 3)).copy(), INDEX, GENES)


def table(t: pd.DataFrame, *, df: float = 10.0, se: float = 1.0) -> DETable:
    index, genes = t.index, t.columns
    same = {
        name: pd.DataFrame(value, index, genes)
        for name, value in (("se", se), ("df", df), ("ave_expr", 5.0))
    }
    log10_p = pd.DataFrame(np.log10(2 * stats.t.sf(np.abs(t), df)), index, genes)
    return DETable(
        logfc=t * se,
        t=t,
        log10_p=log10_p,
        adj_p=10**log10_p,
        conditions=pd.DataFrame(index=index),
        **same,
    )


def test_mean_t_and_its_p_by_hand() -> None:
    found = average_t([table(frame([1.0, -4.0, 0.0]), df=8), table(frame([3.0, -2.0, 0.0]), df=12)])
    expected = -np.log10(2 * stats.t.sf([2.0, 3.0, 0.0], 10)) * [1, -1, 0]
    assert np.allclose(found, np.broadcast_to(expected, (3, 3)), rtol=1e-9)


def test_replicates_are_joined_by_label_and_missing_ones_are_left_out() -> None:
    first, second = frame(np.arange(9).reshape(3, 3)), frame(np.arange(9).reshape(3, 3) + 2)
    second.iloc[0, 0] = np.nan
    shuffled = table(second.iloc[[2, 0, 1], [1, 2, 0]])
    found = average_t([table(first), shuffled])
    assert found.equals(average_t([table(first), table(second)]))
    assert found.iloc[0, 0] == pytest.approx(0.0)  # t = 0 of the first replicate alone
    assert found.iloc[0, 1] == pytest.approx(-np.log10(2 * stats.t.sf(2.0, 10)))


def test_replicates_of_another_design_are_refused() -> None:
    with pytest.raises(SchemaError, match="other conditions"):
        average_t([table(frame(1)), table(frame(1).iloc[:2])])
    with pytest.raises(SchemaError, match="other genes"):
        average_t([table(frame(1)), table(frame(1).iloc[:, :2])])
    with pytest.raises(ConfigError, match="no replicate"):
        average_t([])


def test_more_replicates_come_closer_to_what_the_noise_hides() -> None:
    rng = np.random.default_rng(0)
    genes = [f"g{i}" for i in range(400)]
    truth = pd.DataFrame(rng.normal(0, 1.5, (3, 400)), INDEX, genes)
    tables = [table(truth + rng.normal(0, 1, truth.shape)) for _ in range(20)]
    target = table(truth).signed_log10_p
    errors = [
        float(((average_t(tables[:k]) - target) ** 2).to_numpy().mean()) for k in (1, 2, 6, 20)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_plug_in_is_the_ratio_and_joins_by_label() -> None:
    logfc = frame([2.0, -3.0, 0.0])
    se = frame([0.5, 1.0, 1.0]).iloc[::-1, ::-1]
    found = _over_error(logfc, se, frame(20.0))
    expected = -np.log10(2 * stats.t.sf([4.0, 3.0, 0.0], 20)) * [1, -1, 0]
    assert np.allclose(found, np.broadcast_to(expected, (3, 3)), rtol=1e-9)
    with pytest.raises(SchemaError, match="zero or negative"):
        _over_error(logfc, se * 0, frame(20.0))
    with pytest.raises(SchemaError, match=r"genes \(se\)"):
        _over_error(logfc, se.iloc[:, :2], frame(20.0))


def test_far_tails_do_not_become_infinite() -> None:
    found = _over_error(frame(1e3), frame(1.0), frame(100.0))
    assert np.isfinite(found).all().all()
    assert (found > 150).all().all()


def test_the_usual_error_is_the_median_of_the_measured_conditions() -> None:
    measured = table(frame(1.0))
    measured.se.loc[:] = [[1.0, 1, 1], [3, 3, 3], [9, 9, 9]]
    wanted = pd.MultiIndex.from_tuples([("M", "new"), ("B", "new")], names=INDEX.names)
    se, _ = _usual_error(measured, wanted)
    assert se.loc[("B", "new")].tolist() == [2.0, 2.0, 2.0]
    assert se.loc[("M", "new")].tolist() == [9.0, 9.0, 9.0]
    with pytest.raises(SchemaError, match="no measured condition of cell type 'NK'"):
        _usual_error(measured, pd.MultiIndex.from_tuples([("NK", "x")]))


def test_levels_hold_equally_many_genes() -> None:
    expression = pd.DataFrame(
        [[5.0, 1, 3, 2], [1, 2, 3, 4]], index=["B", "M"], columns=list("abcd")
    )
    assert expression_levels(expression, levels=2).to_numpy().tolist() == [
        [1, 0, 1, 0],
        [0, 0, 1, 1],
    ]
    with pytest.raises(ConfigError, match="5 levels of 4 genes"):
        expression_levels(expression, levels=5)


def test_shrinkage_recovers_what_the_truth_was_scaled_by() -> None:
    rng = np.random.default_rng(1)
    conditions = pd.MultiIndex.from_product([["B", "M"], list("pqrst")], names=INDEX.names)
    predictions = pd.DataFrame(rng.normal(0, 2, (10, 60)), conditions, [f"g{i}" for i in range(60)])
    levels = pd.DataFrame(
        [[i % 3 for i in range(60)], [i // 20 for i in range(60)]], ["B", "M"], predictions.columns
    )
    wanted = pd.DataFrame([[0.2, 0.5, 1.0], [0.0, 0.7, 0.9]], ["B", "M"], range(3))
    truth = Shrinkage(wanted, 0.0).apply(predictions, levels)
    shuffled = predictions.iloc[rng.permutation(10), rng.permutation(60)]
    found = Shrinkage.fit(shuffled, truth, levels)
    assert found.noise == 0.0
    assert np.allclose(found.factors, wanted, atol=1e-6)
    assert np.allclose(
        found.apply(shuffled, levels).loc[truth.index, truth.columns], truth, atol=1e-6
    )


def test_weak_conditions_are_shrunk_more_than_strong_ones() -> None:
    rng = np.random.default_rng(3)
    conditions = pd.MultiIndex.from_product(
        [["B"], [f"c{i}" for i in range(24)]], names=INDEX.names
    )
    signal = rng.normal(0, 1, (24, 400)) * np.repeat([[0.1], [2.0]], 12, axis=0)
    truth, predictions = (
        pd.DataFrame(signal + rng.normal(0, 0.6, signal.shape), conditions, range(400))
        for _ in range(2)
    )
    levels = pd.DataFrame(0, ["B"], truth.columns)
    found = Shrinkage.fit(predictions, truth, levels)
    ratio = (found.apply(predictions, levels) / predictions).mean(axis=1).to_numpy()
    assert ratio[:12].mean() < 0.6 * ratio[12:].mean()
    alike = min(mrrmse(predictions * factor, truth) for factor in np.arange(0, 1, 0.02))
    assert mrrmse(found.apply(predictions, levels), truth) < 0.97 * alike
    # By hand: a row of mean square 4 and one of 1, a factor of 1/2, noise of 1: 2 * (4/5) / 2 and 1
    # * (1/2) / 2.
    shrunk = Shrinkage(pd.DataFrame([[0.5]], ["B"]), 1.0).apply(
        frame(2.0).iloc[[0]], pd.DataFrame(0, ["B"], GENES)
    )
    assert np.allclose(shrunk, 0.8)


def test_factors_minimise_the_mean_of_row_errors_and_are_never_negative() -> None:
    rng = np.random.default_rng(2)
    conditions = pd.MultiIndex.from_product(
        [["B"], [f"c{i}" for i in range(30)]], names=INDEX.names
    )
    truth = pd.DataFrame(rng.normal(0, 1, (30, 50)) * rng.gamma(0.5, 3, (30, 1)), conditions)
    predictions = truth * 0.5 + rng.normal(0, 1, truth.shape) * rng.gamma(0.5, 3, (30, 1))
    levels = pd.DataFrame(0, ["B"], truth.columns)
    found = Shrinkage.fit(predictions, truth, levels)

    def score(by: float) -> float:
        return mrrmse(Shrinkage(found.factors * by, found.noise).apply(predictions, levels), truth)

    assert score(1.0) <= min(score(0.97), score(1.03)) + 1e-9
    # never inflated
    assert (Shrinkage.fit(predictions, 3 * predictions, levels).factors == 1).all(axis=None)
    assert score(1.0) <= min(mrrmse(predictions * f, truth) for f in np.arange(0, 2, 0.05))
    assert Shrinkage.fit(-truth, truth, levels).factors.iloc[0, 0] == 0.0


def test_a_condition_is_shrunk_by_what_other_compounds_call_for() -> None:
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_tuples(
        [("B", "x"), ("B", "y"), ("B", "z"), ("M", "z")], names=["cell_type", "compound"]
    )
    predictions = pd.DataFrame(rng.normal(size=(4, 50)), index)
    levels = pd.DataFrame(0, ["B", "M"], predictions.columns)
    truth = 0.5 * predictions + rng.normal(0, 0.1, predictions.shape)
    first = Shrinkage.by_others(predictions, truth, levels)
    truth.loc[
        ("B", "x")
    ] = -5.0  # its own answer does not matter to a condition, and does to the others
    second = Shrinkage.by_others(predictions, truth, levels)
    pd.testing.assert_series_equal(first.loc[("B", "x")], second.loc[("B", "x")])
    assert not first.loc[("B", "y")].equals(second.loc[("B", "y")])
    # no other in its cell type
    pd.testing.assert_series_equal(
        Shrinkage.by_others(predictions, 0.2 * predictions, levels).loc[("M", "z")],
        predictions.loc[("M", "z")],
    )


def test_shrinking_a_cell_type_without_a_factor_is_refused() -> None:
    levels = pd.DataFrame(0, ["B", "M"], GENES)
    with pytest.raises(SchemaError, match="no factor was fitted for cell type 'M'"):
        Shrinkage(pd.DataFrame([[0.5]], ["B"]), 0.0).apply(frame(1.0), levels)
    with pytest.raises(SchemaError, match="missing values"):
        Shrinkage.fit(frame(np.nan), frame(1.0), levels)


@pytest.mark.parametrize(
    ("scores", "done"),
    [
        ([1.0], False),
        ([1.0, 0.9, 0.85], False),
        ([1.0, 0.9, 0.85, 0.849, 0.848], True),
        ([1.0, 0.9, 0.85, 0.851, 0.80], False),
        ([0.8, 0.9, 1.0], True),
    ],
)
def test_more_replicates_stop_when_two_in_a_row_bring_nothing(
    scores: list[float], done: bool
) -> None:
    assert _has_converged(scores) is done


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="no number"):
        _has_converged([1.0, float("nan"), 0.9])
