"""The statistic that the released table holds until it is read by others: Welch's t, in log space, against scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse, special, stats

from perturbgen.data.vocabulary import VEHICLE
from perturbgen.simulate.de_stage import de_table, log_cpm, log_tail, signed_log10_p


def test_signed_log10_p_is_scipys_welch() -> None:
    rng = np.random.default_rng(0)
    treated, vehicle = rng.normal(0.5, 1, (5, 40)), rng.normal(0, 2, (9, 40))
    test = stats.ttest_ind(treated, vehicle, equal_var=False)
    expected = np.sign(test.statistic) * -np.log10(test.pvalue)
    assert np.allclose(signed_log10_p(treated, vehicle), expected, rtol=1e-9)


def test_p_that_underflows_is_still_a_number() -> None:
    rng = np.random.default_rng(0)
    found = signed_log10_p(rng.normal(1e6, 1, (400, 3)), rng.normal(0, 1, (400, 3)))
    assert np.isfinite(found).all()
    assert (found > 320).all()


def test_the_tail_beyond_underflow_continues_the_one_before() -> None:
    df = np.array([3.0, 20.0, 400.0])
    t = np.array([1e9, 1e12, 38.0])
    series = -np.log(df) - special.betaln(df / 2, 0.5) - df / 2 * np.log1p(t**2 / df)
    assert np.allclose(log_tail(t, df)[:2], series[:2], rtol=1e-12)
    assert np.allclose(stats.t.logsf(t[0], df[0]), series[0], rtol=1e-9)
    assert np.isfinite(log_tail(np.array([1e200]), np.array([2.5]))).all()


def test_rows_are_labelled_by_cell_type_and_compound_and_ignore_sample_order() -> None:
    rng = np.random.default_rng(1)
    names = [VEHICLE] * 4 + ["a"] * 3 + ["b"] * 1
    obs = pd.DataFrame({"cell_type": ["x"] * 8 + ["y"] * 8, "sm_name": names * 2})
    counts = sparse.csr_matrix(rng.poisson(20, (16, 6)))
    genes = [f"g{i}" for i in range(6)]
    table = de_table(counts, obs, genes=genes)
    assert table.index.tolist() == [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")]
    assert np.isfinite(table.to_numpy()).all()
    order = rng.permutation(16)
    shuffled = de_table(counts[order], obs.iloc[order], genes=genes)
    pd.testing.assert_frame_equal(table, shuffled)
    values = log_cpm(counts.toarray())
    assert np.allclose(table.loc[("y", "a")], signed_log10_p(values[12:15], values[8:12]))
