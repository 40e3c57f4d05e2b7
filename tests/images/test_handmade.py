"""Simple features of images, by hand on small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perturbgen.images.handmade import _correlation, _feature_names, _measure, measured
from perturbgen.images.network.fields import read_fields
from perturbgen.images.network.settings import ImageData


def test_features_have_names_and_say_what_they_are_called() -> None:
    ramp = np.tile(np.arange(9.0), (9, 1))
    found = dict(zip(_feature_names([1, 2]), _measure(np.array([ramp, 8 - 2 * ramp])), strict=True))
    assert found["w1 mean"] == 4
    assert found["w1 SD"] == pytest.approx(np.arange(9.0).std())
    assert found["w1 quantile 50"] == 4
    assert found["w1 slope"] == 1
    assert found["w2 slope"] == 2
    assert found["w1 bright area"] == pytest.approx(4 / 9)
    assert found["correlation w1 w2"] == pytest.approx(-1)
    assert _correlation(ramp, np.ones((9, 9))) == 0


def test_fine_grain_is_detail_at_every_scale_and_broad_spots_only_at_wide_ones() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    spot = np.exp(-((y - 32) ** 2 + (x - 32) ** 2) / 200)
    names = _feature_names([1])
    grain, broad = (
        dict(zip(names, _measure(image[None]), strict=True))
        for image in (rng.random((64, 64)), spot)
    )
    assert grain["w1 detail 1"] / grain["w1 SD"] > 0.8
    assert broad["w1 detail 1"] / broad["w1 SD"] < 0.05
    assert broad["w1 detail 4"] > 3 * broad["w1 detail 1"]


def test_every_field_keeps_its_labels(fixtures: dict[str, Path]) -> None:
    fields = read_fields(ImageData(path=fixtures["bbbc021"]))
    profiles = measured(fields.files, fields.table, fields.channels)
    assert profiles.values.shape == (len(fields), len(_feature_names([1, 2, 4])))
    one = measured(fields.files[5:6], fields.table.iloc[5:6], fields.channels)
    np.testing.assert_array_equal(profiles.values[5], one.values[0])
