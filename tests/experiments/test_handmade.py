"""Simple features of images, by hand on small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import _correlation, _feature_names, _measure, measured

from perturbgen.images.network.fields import Fields
from perturbgen.images.network.settings import ImageData
from perturbgen.profiles import Profiles
from perturbgen.simulation.images import ImageLayout, write_bbbc021


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


def test_every_field_keeps_its_labels(tmp_path: Path) -> None:
    fields = Fields.read(ImageData(path=write_bbbc021(tmp_path / "images")))
    profiles = measured(fields.files, fields.table, fields.channels)
    assert profiles.values.shape == (len(fields), len(_feature_names([1, 2, 4])))
    one = measured(fields.files[5:6], fields.table.iloc[5:6], fields.channels)
    np.testing.assert_array_equal(profiles.values[5], one.values[0])


def told(values: np.ndarray, label: pd.Series) -> float:
    """Share of rows whose nearest other row has their label."""
    distance = ((values[:, None] - values[None]) ** 2).sum(axis=2) + np.diag(
        np.full(len(values), np.inf)
    )
    return float((label.to_numpy()[distance.argmin(axis=1)] == label.to_numpy()).mean())


def test_the_fixture_holds_what_it_plants(tmp_path: Path) -> None:
    def wells(stain: float, effect: float) -> Profiles:
        root = tmp_path / f"{stain} {effect}"
        write_bbbc021(root, layout=ImageLayout(sites=4, stain=stain, effect=effect, artefacts=3))
        fields = Fields.read(ImageData(path=root))
        found = measured(fields.files, fields.table, fields.channels).averaged(["plate", "well"])
        return found.with_values(
            (found.values - found.values.mean(axis=0)) / (found.values.std(axis=0) + 1e-9)
        )

    plain, strong = wells(0.0, 0.0), wells(0.0, 2.0)
    treated = [
        (w.meta["moa"].notna() & (w.meta["compound"] != "DMSO")).to_numpy() for w in (plain, strong)
    ]
    without, with_effect = (
        told(w.values[t], w.meta["moa"][t]) for w, t in zip((plain, strong), treated, strict=True)
    )
    assert without < 0.55 < 0.8 < with_effect
    dmso = [(w, (w.meta["compound"] == "DMSO").to_numpy()) for w in (wells(1.0, 0.0),)]
    assert told(dmso[0][0].values[dmso[0][1]], dmso[0][0].meta["week"][dmso[0][1]]) > 0.8
    assert len(pd.read_csv(tmp_path / "0.0 0.0" / "artefacts.csv")) == 3
