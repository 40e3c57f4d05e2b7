"""MODZ, its weights and measures, and z-scores of a plate, against hand-made numbers."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from perturbgen.core.errors import SchemaError
from perturbgen.l1000 import collapse, modz, robust_z
from perturbgen.l1000.signatures import _cc_q75, _modz_weights, _tas, _Variant


def replicates(n: int, genes: int = 60, *, seed: int = 0, noise: float = 1.0) -> pd.DataFrame:
    """Replicates of one profile."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=genes) * 2 + noise * rng.normal(size=(n, genes))
    return pd.DataFrame(
        values, index=[f"r{i}" for i in range(n)], columns=[str(i) for i in range(genes)]
    )


def slow_modz(table: pd.DataFrame, variant: str) -> np.ndarray:
    """MODZ as the papers say it, one number at a time."""
    z = table.clip(-10, 10).to_numpy()
    n = len(z)
    raw = []
    for i in range(n):
        agreement = [max(spearmanr(z[i], z[j]).statistic, 0) for j in range(n) if j != i]
        raw.append(
            max(0.5 * sum(agreement) if variant == "cmapm" else sum(agreement) / (n - 1), 0.01)
        )
    weights = np.array(raw) / sum(raw)
    return (weights.round(4) if variant == "cmappy" else weights) @ z


@pytest.mark.parametrize("variant", ["cmapm", "cmappy"])
@pytest.mark.parametrize(("n", "noise"), [(2, 1.0), (3, 1.0), (5, 0.5), (4, 30.0)])
def test_it_is_what_the_papers_say(n: int, noise: float, variant: _Variant) -> None:
    table = replicates(n, noise=noise)
    np.testing.assert_allclose(
        modz(table, variant=variant).values, slow_modz(table, variant), atol=1e-12
    )


def test_two_replicates_give_the_mean_and_one_itself() -> None:
    table = replicates(2)
    np.testing.assert_allclose(modz(table).values, table.clip(-10, 10).mean())
    alone = modz(table.iloc[:1])
    np.testing.assert_allclose(alone.values, table.iloc[0].clip(-10, 10))
    assert alone.weights.tolist() == [1.0]
    assert np.isnan(alone.cc_q75)
    assert np.isnan(alone.tas)


def test_the_variants_differ_only_where_the_least_weight_binds() -> None:
    correlation = np.array(
        [[[1, 0.9, -0.5, 0.8], [0.9, 1, 0.004, 0.7], [-0.5, 0.004, 1, 0.005], [0.8, 0.7, 0.005, 1]]]
    )
    ours, theirs = _modz_weights(correlation)[0], _modz_weights(correlation, variant="cmappy")[0]
    raw = np.array([1.7, 1.604, 0.009, 1.505])
    np.testing.assert_allclose(ours, np.maximum(raw / 2, 0.01) / np.maximum(raw / 2, 0.01).sum())
    expected = np.maximum(raw / 3, 0.01)
    np.testing.assert_allclose(theirs, (expected / expected.sum()).round(4))
    assert theirs[2] > 1.4 * ours[2]
    free = np.array([[[1, 0.5, 0.4], [0.5, 1, 0.3], [0.4, 0.3, 1]]])
    np.testing.assert_allclose(
        _modz_weights(free), _modz_weights(free, variant="cmappy"), atol=5e-5
    )


def test_the_deviant_replicate_counts_least_and_order_does_not_matter() -> None:
    table = replicates(4)
    table.iloc[2] = np.random.default_rng(9).normal(size=60)
    found = modz(table)
    assert found.weights.idxmin() == "r2"
    again = modz(table.iloc[[3, 1, 0, 2]])
    np.testing.assert_allclose(again.values, found.values)
    pd.testing.assert_series_equal(again.weights.sort_index(), found.weights.sort_index())


def test_only_landmarks_decide_the_weights_and_all_genes_are_averaged() -> None:
    table = replicates(3)
    landmarks = [str(i) for i in range(20)]
    found = modz(table, landmarks=landmarks)
    np.testing.assert_allclose(found.weights, modz(table[landmarks]).weights)
    assert len(found.values) == 60
    with pytest.raises(SchemaError, match="1 landmarks are not among the genes: 'x'"):
        modz(table, landmarks=["1", "x"])


def test_missing_values_and_constant_replicates_do_not_spread() -> None:
    table = replicates(3)
    table.iloc[0, 5] = np.nan
    table.iloc[:, 7] = np.nan
    found = modz(table)
    weights = found.weights.to_numpy()
    assert found.values["5"] == pytest.approx(
        weights[1:] @ table["5"].to_numpy()[1:] / weights[1:].sum()
    )
    assert np.isnan(found.values["7"])
    assert found.values.drop("7").notna().all()
    pd.testing.assert_series_equal(found.weights, modz(table.drop(columns=["5", "7"])).weights)
    table = replicates(3)
    table.iloc[1] = 0.0
    assert modz(table).weights.iloc[1] < 0.05


def test_quality_is_matlabs_percentile_and_activity_its_formula() -> None:
    correlation = np.array([[[1, 0.1, 0.2], [0.1, 1, 0.4], [0.2, 0.4, 1]]])
    assert _cc_q75(correlation)[0] == pytest.approx(0.35)  # Hazen: 0.2 + 0.75 * (0.4 - 0.2)
    assert _tas(np.array([400]), np.array([0.25]), 978)[0] == pytest.approx(10 / np.sqrt(978))
    assert _tas(np.array([400]), np.array([-0.5]), 978)[0] == 0
    table = replicates(3, noise=0.1)
    found = modz(table)
    assert found.ss_ngene == (np.abs(found.values) * np.sqrt(3) >= 2).sum()
    assert 0 < found.tas < 1


def test_many_groups_at_once_are_each_what_they_are_alone() -> None:
    tables = [replicates(n, seed=seed) for seed, n in enumerate([3, 1, 2, 3, 5])]
    obs = pd.DataFrame(
        {"drug": [f"d{i}" for i, t in enumerate(tables) for _ in range(len(t))], "cell": "A375"}
    )
    data = ad.AnnData(
        np.concatenate(tables).astype(np.float32),
        obs=obs.set_axis([f"s{i}" for i in range(len(obs))]),
    )
    shuffled = data[np.random.default_rng(0).permutation(len(data))]
    found = collapse(shuffled, ["drug", "cell"])
    assert sorted(found.obs["drug"]) == [f"d{i}" for i in range(5)]
    for i, table in enumerate(tables):
        row = found.obs["drug"].tolist().index(f"d{i}")
        np.testing.assert_allclose(found.X[row], modz(table.astype(np.float32)).values, atol=1e-5)
        assert found.obs["replicates"].iloc[row] == len(table)
        assert len(found.obs["members"].iloc[row].split("|")) == len(table)
    with pytest.raises(SchemaError, match="did you mean 'drug'"):
        collapse(data, ["drugs"])


def test_z_scores_of_a_plate() -> None:
    expression = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0], [100.0, 6.0]])
    z = robust_z(expression)
    np.testing.assert_allclose(z[:, 0], (expression[:, 0] - 3) / 1.4826)
    assert np.isfinite(z).all(), "a gene without spread is divided by the least one"
    np.testing.assert_allclose(robust_z(expression, least_mad=0.1)[:, 1], [0, 0, 0, 0, 1 / 0.14826])
