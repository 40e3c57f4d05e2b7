"""Corrections: what they promise, by hand, against numpy, and where the input is too little."""

import itertools

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import (
    Compress,
    ControlScaler,
    Coral,
    NestedCentre,
    Pipeline,
    Sphering,
    batch_predictability,
    tvn,
)
from perturbgen.profiles.correct.build import _batch_variance, _told_apart


def design(
    rng: np.random.Generator, *, wells: int = 6, features: int = 5
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Two experiments of two plates of two sites; half the wells are controls; offsets at every
    level.
    """
    keys = itertools.product(["A", "B"], [1, 2], [1, 2], range(wells))
    meta = pd.DataFrame(list(keys), columns=["experiment", "plate", "site", "well"])
    values = rng.normal(size=(len(meta), features))
    for labels in (["experiment"], ["experiment", "plate"], ["experiment", "plate", "site"]):
        values += 10 * rng.normal(size=(8, features))[meta.groupby(labels).ngroup()]
    return values, meta, (meta["well"] < wells // 2).to_numpy()


def test_nested_centring_puts_the_controls_of_every_group_at_zero() -> None:
    values, meta, control = design(np.random.default_rng(0))
    found = NestedCentre(["experiment", "plate", "site"]).fit_transform(
        values, meta, control=control
    )
    means = (
        pd.DataFrame(found[control])
        .groupby([meta.loc[control, name].to_numpy() for name in ("experiment", "plate", "site")])
        .mean()
    )
    np.testing.assert_allclose(means, 0, atol=1e-12)
    assert np.abs(found[~control].mean(axis=0)).max() > 1e-3


def test_nested_centring_does_not_depend_on_the_order_of_keys_or_rows() -> None:
    values, meta, control = design(np.random.default_rng(1))
    keys = ["experiment", "plate", "site"]
    one = NestedCentre(keys).fit_transform(values, meta, control=control)
    for order in itertools.permutations(keys):
        np.testing.assert_allclose(
            NestedCentre(order).fit_transform(values, meta, control=control), one, atol=1e-12
        )
    rows = np.random.default_rng(2).permutation(len(meta))
    shuffled = NestedCentre(keys).fit_transform(
        values[rows], meta.iloc[rows], control=control[rows]
    )
    np.testing.assert_allclose(shuffled, one[rows], atol=1e-12)


def test_a_plate_without_controls_takes_its_parents_centre(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meta = pd.DataFrame({"experiment": ["A"] * 6, "plate": [1, 1, 1, 2, 2, 3]})
    values, control = (
        np.array([[1.0], [3.0], [9.0], [20.0], [5.0], [7.0]]),
        np.array([True, True, False, True, False, False]),
    )
    step = NestedCentre(["experiment", "plate"]).fit(values, meta, control=control)
    # plate 3: mean of 1, 3, 20
    assert step.transform(values, meta).ravel().tolist() == [-1, 1, 7, 0, -15, -1]
    assert "1 of 3 groups" in caplog.text
    step = NestedCentre(["experiment", "plate"], min_reference=2).fit(values, meta, control=control)
    # one control is not enough on plate 2
    assert step.transform(values, meta).ravel().tolist() == [-1, 1, 7, 12, -3, -1]
    unseen = pd.DataFrame({"experiment": ["A", "C"], "plate": [9, 1]})
    assert step.transform(np.array([[8.0], [8.0]]), unseen).ravel().tolist() == [0, 0]


def test_shrinking_lies_between_own_and_parents_mean() -> None:
    meta = pd.DataFrame({"plate": [1, 1, 2, 2]})
    values = np.array([[0.0], [2.0], [10.0], [12.0]])
    found = NestedCentre(["plate"], strength=2).fit_transform(values, meta)
    # centres (2 x 1 + 2 x 6) / 4 and (2 x 11 + 2 x 6) / 4
    assert found.ravel().tolist() == [-3.5, -1.5, 1.5, 3.5]


def test_scalers_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    meta = pd.DataFrame({"plate": [1] * 5})
    values = np.array([[1.0, 4], [2, 4], [3, 4], [4, 4], [100, 5]])
    control = np.array([True, True, True, True, False])
    sd = ControlScaler().fit_transform(values, meta, control=control)
    np.testing.assert_allclose(sd[:, 0], (values[:, 0] - 2.5) / np.sqrt(1.25))
    assert (sd[:, 1] == 0).all()
    assert "constant" in caplog.text
    mad = ControlScaler(method="mad").fit_transform(values, meta, control=control)
    np.testing.assert_allclose(mad[:, 0], (values[:, 0] - 2.5) / 1.4826)
    low, high = np.percentile([1, 2, 3, 4], [1, 99])
    percentile = ControlScaler(method="percentile").fit_transform(values, meta, control=control)
    np.testing.assert_allclose(percentile[:, 0], (values[:, 0] - low) / (high - low))


def test_a_plate_of_one_control_is_scaled_by_all(caplog: pytest.LogCaptureFixture) -> None:
    meta = pd.DataFrame({"plate": [1, 1, 1, 2]})
    values = np.array([[0.0], [1.0], [2.0], [9.0]])
    found = ControlScaler(["plate"]).fit_transform(values, meta)
    assert "1 of 2 groups have fewer than 2 controls" in caplog.text
    assert found[3, 0] == pytest.approx((9 - 3) / values.std())
    half = ControlScaler(["plate"], shrink=3).fit(values, meta)
    assert half.location[0, 0] == pytest.approx(0.5 * 1 + 0.5 * 3)
    assert half.scale[0, 0] ** 2 == pytest.approx(0.5 * np.var([0, 1, 2]) + 0.5 * values.var())


def test_large_offsets_cost_no_digits() -> None:
    meta = pd.DataFrame({"plate": np.zeros(50)})
    values = np.random.default_rng(6).normal(size=(50, 3))
    np.testing.assert_allclose(
        ControlScaler().fit_transform(values + 1e7, meta),
        ControlScaler().fit_transform(values, meta),
        atol=1e-6,
    )


@pytest.mark.parametrize("controls", [200, 12])
def test_sphering_is_numpys_and_works_with_fewer_controls_than_features(controls: int) -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(size=(controls + 30, 20)) @ rng.normal(size=(20, 20))
    meta, control = pd.DataFrame(index=range(len(values))), np.arange(len(values)) < controls
    found = Sphering(ridge=0.5).fit_transform(values, meta, control=control)
    away = values - values[control].mean(axis=0)
    variances, vectors = np.linalg.eigh(away[control].T @ away[control] / controls)
    expected = away @ (vectors / np.sqrt(np.maximum(variances, 0) + 0.5)) @ vectors.T
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-7)


def test_without_a_ridge_sphering_makes_the_identity_or_says_it_cannot() -> None:
    values, meta = (
        np.random.default_rng(8).normal(size=(300, 4)) @ np.diag([1, 2, 3, 40]),
        pd.DataFrame(index=range(300)),
    )
    np.testing.assert_allclose(
        np.cov(Sphering(ridge=0).fit_transform(values, meta).T, ddof=0), np.eye(4), atol=1e-9
    )
    with pytest.raises(SchemaError, match="singular"):
        Sphering(ridge=0).fit(values[:3], meta.iloc[:3])


@pytest.mark.parametrize("wells", [4, 40])
def test_coral_is_the_formula_whether_controls_are_few_or_many(wells: int) -> None:
    rng = np.random.default_rng(9)
    meta = pd.DataFrame({"batch": np.repeat(["a", "b"], wells)})
    values = rng.normal(size=(2 * wells, 6)) * np.where(meta["batch"] == "a", 1, 3)[:, None]
    found = Coral(["batch"], eta=0.3).fit_transform(values, meta)

    def root(matrix: np.ndarray, exponent: float) -> np.ndarray:
        size, vectors = np.linalg.eigh(matrix + 0.3 * np.eye(6))
        return (vectors * size**exponent) @ vectors.T

    for name in "ab":
        rows = (meta["batch"] == name).to_numpy()
        expected = values[rows] @ root(np.cov(values[rows].T), -0.5) @ root(np.cov(values.T), 0.5)
        np.testing.assert_allclose(found[rows], expected, atol=1e-9)


def test_coral_leaves_a_batch_of_one_control_alone(caplog: pytest.LogCaptureFixture) -> None:
    meta = pd.DataFrame({"batch": list("aaaab")})
    values = np.random.default_rng(10).normal(size=(5, 3))
    found = Coral(["batch"]).fit_transform(values, meta)
    np.testing.assert_array_equal(found[4], values[4])
    assert "1 of 2 batches" in caplog.text


def test_a_pipeline_is_its_steps_and_streams_from_disk(tmp_path) -> None:
    values, meta, control = design(np.random.default_rng(12), wells=900)
    by_hand = values
    for step in (
        NestedCentre(["experiment", "plate"]),
        ControlScaler(),
        Sphering(),
        Coral(["experiment"]),
    ):
        by_hand = step.fit_transform(by_hand, meta, control=control)
    pipeline = Pipeline(NestedCentre(["experiment", "plate"]), *tvn(["experiment"]).steps)
    mapped = np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype=np.float64, shape=values.shape
    )
    mapped[:] = values
    out = np.empty(values.shape)
    pipeline.fit(mapped, meta, control=control).transform(mapped, meta, out=out)
    np.testing.assert_allclose(out, by_hand, atol=1e-8)


def test_compress_is_linear_near_zero_and_tames_the_rest() -> None:
    found = Compress().fit_transform(np.array([[0.01], [1000.0]]), pd.DataFrame(index=range(2)))
    assert found.ravel() == pytest.approx([0.01, np.log(2000)], rel=1e-4)


@pytest.mark.parametrize("mask", [np.zeros(4, bool), np.ones(3, bool), np.ones(4)])
def test_a_wrong_mask_of_controls(mask: np.ndarray) -> None:
    with pytest.raises(SchemaError, match="control"):
        NestedCentre(["plate"]).fit(np.ones((4, 2)), pd.DataFrame({"plate": [1] * 4}), control=mask)


def test_a_missing_label_is_an_error() -> None:
    with pytest.raises(SchemaError, match="'plate' is missing in 1 rows"):
        NestedCentre(["plate"]).fit(np.ones((2, 2)), pd.DataFrame({"plate": [1, None]}))


def test_batches_are_told_from_held_out_controls_before_and_not_after() -> None:
    rng = np.random.default_rng(13)
    meta = pd.DataFrame({"plate": np.repeat([1, 2, 3], 120), "well": np.tile(np.arange(120), 3)})
    values = rng.normal(size=(360, 3)) + 4 * rng.normal(size=(3, 3))[meta["plate"] - 1]
    profiles = Profiles(values, meta, pd.Index(list("abc")))
    found = batch_predictability(
        NestedCentre(["plate"]),
        profiles,
        control=np.ones(360, bool),
        batch=["plate"],
        split=["plate"],
        well=["plate", "well"],
        rng=np.random.default_rng(0),
    )
    accuracy, share = found["nearest neighbours"], found["variance between"]
    assert accuracy["before"] > 0.9
    assert accuracy["after"] == pytest.approx(1 / 3, abs=0.12)
    assert share["before"] > 0.5
    assert abs(share["after"]) < 0.1


def test_the_sites_of_a_well_are_held_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(15)
    meta = pd.DataFrame(
        {"plate": 1, "well": np.repeat(np.arange(40), 2), "site": np.tile([1, 2], 40)}
    )
    profiles = Profiles(rng.normal(size=(80, 3)), meta, pd.Index(list("abc")))
    step, seen = NestedCentre(["plate", "site"]), []
    monkeypatch.setattr(
        step,
        "fit",
        lambda *_, control: seen.append(control) or NestedCentre.fit(step, *_, control=control),
    )
    _told_apart(
        step, profiles, control=np.ones(80, bool), batch=["plate"], inner=["plate", "site"], rng=rng
    )
    assert 0 < seen[0].sum() < 80
    assert (seen[0][::2] == seen[0][1::2]).all()


def test_the_share_of_batch_variance_is_unbiased() -> None:
    rng = np.random.default_rng(14)
    shares = [
        _batch_variance(rng.normal(size=(60, 4)), np.repeat(np.arange(10), 6)) for _ in range(200)
    ]
    assert abs(np.mean(shares)) < 0.005


def test_controls_that_cannot_be_held_out() -> None:
    meta = pd.DataFrame({"plate": [1, 2, 3], "well": [1, 2, 3]})
    profiles = Profiles(np.eye(3), meta, pd.Index(list("abc")))
    with pytest.raises(SchemaError, match="none can be withheld"):
        batch_predictability(
            NestedCentre(["plate"]),
            profiles,
            control=np.ones(3, bool),
            batch=["plate"],
            split=["plate"],
            well=["well"],
            rng=np.random.default_rng(0),
        )


def test_a_plate_that_was_not_fitted_is_no_unit() -> None:
    step = ControlScaler(["plate"]).fit(np.eye(2), pd.DataFrame({"plate": [1, 1]}))
    with pytest.raises(SchemaError, match="not there when it was fitted"):
        step.transform(np.eye(2)[:1], pd.DataFrame({"plate": [7]}))
