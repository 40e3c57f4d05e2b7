"""Boosted trees: what the compressed form costs, threads, devices."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.baselines import make
from perturbgen.baselines.trees import BoostedTrees, _cuda_present, _pick_device
from tests.baselines.cases import LOW_RANK

Task = tuple[pd.DataFrame, pd.DataFrame]
RNG = np.random.default_rng


def test_blocks_of_columns_are_one_model_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = RNG(0)
    features, labels = rng.normal(size=(60, 5)), rng.normal(size=(60, 23))
    whole = BoostedTrees(features, labels, {"seed": 1}, trees=5, device="cpu").predict(features)
    alone = BoostedTrees(features, labels[:, 13:14], {"seed": 1}, trees=5, device="cpu").predict(
        features
    )
    np.testing.assert_allclose(whole[:, 13:14], alone, rtol=1e-5, atol=1e-6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = BoostedTrees(features, labels, {"seed": 1}, trees=5, device="cpu").predict(features)
    np.testing.assert_array_equal(whole, again)


def test_more_seeds_are_an_average(task: Task) -> None:
    train, test = task
    settings = {**LOW_RANK, "trees": 20, "rate": 0.2}
    one, many = (
        make("xgboost", seeds=n, **settings).fit(train, rng=RNG(0)).predict(test.index)
        for n in (1, 8)
    )
    error = [float(((found - test) ** 2).to_numpy().mean()) for found in (one, many)]
    assert error[1] < error[0]


def test_out_of_the_box_is_xgboost_itself(task: Task) -> None:
    import xgboost

    train, test = task
    found = make("xgboost_plain", trees=10, device="cpu").fit(train, rng=RNG(0)).predict(test.index)
    hot = pd.get_dummies(pd.concat(task).index.to_frame(index=False)).to_numpy(dtype=float)
    model = xgboost.XGBRegressor(n_estimators=10, tree_method="hist", n_jobs=1)
    model.fit(hot[: len(train)], train["g7"])
    np.testing.assert_allclose(found["g7"], model.predict(hot[len(train) :]), rtol=1e-4, atol=1e-4)


def test_devices() -> None:
    assert _pick_device("cpu") == "cpu"
    assert _pick_device("cuda") == "cuda"
    assert _pick_device("auto") == ("cuda" if _cuda_present() else "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not _cuda_present(), reason="no CUDA device")
def test_the_gpu_agrees(task: Task) -> None:
    train, test = task
    settings = {**LOW_RANK, "trees": 20, "rows": 1.0, "columns": 1.0}
    found = [
        make("xgboost", device=d, **settings).fit(train, rng=RNG(0)).predict(test.index)
        for d in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*found, rtol=0.05, atol=0.05)
