"""On and off the disease axis, hits with their errors controlled, panels of controls, outliers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.images import DISEASED, HEALTHY, stream_embeddings
from perturbgen.images.hits import (
    _Null,
    _project,
    _project_controls,
    _z_prime,
    centred_wells,
    hit_table,
    score_wells,
)
from perturbgen.profiles import Profiles
from perturbgen.simulation.images import WRITERS

KEYS = ["experiment", "plate", "site"]


def test_on_and_off_by_hand() -> None:
    healthy, diseased = np.array([[0.0, 1], [0, -1]]), np.array([[4.0, 0], [4, 0]])
    on, off = _project(np.array([[0.0, 0], [4, 0], [2, 3], [-4, 0]]), healthy, diseased)
    assert on.tolist() == [0, 1, 0.5, -1]
    assert off.tolist() == [0, 0, 3, 0]


def test_on_and_off_do_not_change_with_translation_and_rotation() -> None:
    rng = np.random.default_rng(0)
    healthy, diseased, others = (
        rng.normal(size=(9, 6)),
        rng.normal(size=(7, 6)) + 2,
        rng.normal(size=(5, 6)),
    )
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    one = _project(others, healthy, diseased)
    other = _project(others @ turn + 5, healthy @ turn + 5, diseased @ turn + 5)
    np.testing.assert_allclose(one, other, atol=1e-9)
    on, _ = _project(healthy, healthy, diseased)
    assert on.mean() == pytest.approx(0, abs=1e-12)
    on, _ = _project(diseased, healthy, diseased)
    assert on.mean() == pytest.approx(1)


def test_controls_are_scored_without_themselves() -> None:
    rng = np.random.default_rng(1)
    healthy, diseased = rng.normal(size=(5, 4)), rng.normal(size=(6, 4)) + 1
    (on_healthy, off_healthy), (on_diseased, off_diseased) = _project_controls(healthy, diseased)
    for i in range(5):
        on, off = _project(healthy[[i]], np.delete(healthy, i, axis=0), diseased)
        assert (on_healthy[i], off_healthy[i]) == pytest.approx((on[0], off[0]))
    for i in range(6):
        on, off = _project(diseased[[i]], healthy, np.delete(diseased, i, axis=0))
        assert (on_diseased[i], off_diseased[i]) == pytest.approx((on[0], off[0]))


def test_z_prime_by_hand() -> None:
    assert _z_prime(np.array([-0.1, 0.1]), np.array([0.9, 1.1])) == pytest.approx(
        1 - 3 * 2 * np.sqrt(0.02)
    )
    assert _z_prime(np.ones(3), np.ones(3)) == -np.inf


def hits_of(profiles: Profiles, *, draws: int = 3000, gate: float = 0.0) -> pd.DataFrame:
    wells = centred_wells(profiles, HEALTHY, KEYS, ["well_id"])
    masks = {"healthy": wells.chosen(HEALTHY), "diseased": wells.chosen(DISEASED)}
    scores = score_wells(wells, **masks, gate=gate)
    return hit_table(
        scores.wells,
        treatment="treatment",
        dose="treatment_conc",
        draws=draws,
        rng=np.random.default_rng(0),
    )


def written(tmp_path: Path, **options: object) -> Profiles:
    folder = WRITERS["rxrx19a"](tmp_path / "data", **options)
    return stream_embeddings(folder, tmp_path / "profiles")[0]


def test_planted_rescuers_come_first_and_side_effects_last(tmp_path: Path) -> None:
    profiles = written(
        tmp_path,
        drugs=24,
        rescuers=3,
        doses=4,
        replicates=2,
        controls=10,
        sites=2,
        features=96,
        infection=0.6,
        seed=2,
    )
    found = hits_of(profiles)
    for _, part in found.groupby("cell_type"):
        assert set(part["treatment"].head(3)) == {"drug-1", "drug-2", "drug-3"}
        assert (part["q"].head(3) < 0.05).all()
        assert (part["q"].iloc[3:] > 0.05).all()
        assert part["low"].iloc[0] < part["rescue"].iloc[0] < part["high"].iloc[0]
        assert (part["trend"].head(3) > 0.5).all()
        assert part.set_index("treatment")["z_off"].idxmax() == "drug-24"


def test_p_values_of_drugs_without_effect_are_not_too_small(tmp_path: Path) -> None:
    p = []
    for seed in range(3):
        profiles = written(
            tmp_path / str(seed),
            drugs=60,
            rescuers=0,
            doses=3,
            controls=12,
            sites=1,
            features=64,
            side_effect=0.0,
            seed=seed,
        )
        p.append(hits_of(profiles, draws=2000, gate=-9)["p"].to_numpy())
    values = np.concatenate(p)
    assert (values <= 0.05).mean() < 0.07
    assert 0.35 < np.median(values) < 0.65  # nor are they too large


def test_controls_with_one_mean_have_no_axis() -> None:
    with pytest.raises(SchemaError, match="no axis between them"):
        _project(np.zeros((1, 2)), np.zeros((3, 2)), np.zeros((3, 2)))


def test_groups_without_controls_or_signal_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiles = written(tmp_path, drugs=3, controls=8, sites=1, features=32)
    wells = centred_wells(profiles, HEALTHY, KEYS, ["well_id"])
    healthy, diseased = wells.chosen(HEALTHY), wells.chosen(DISEASED)
    one = np.flatnonzero(diseased & (wells.meta["experiment"] == "VERO-1"))[1:]
    few = diseased.copy()
    few[one] = False
    scores = score_wells(wells, healthy=healthy, diseased=few)
    assert set(scores.wells["experiment"]) == {"HRCE-1"}
    assert "1 of 2 groups left out" in caplog.text
    with pytest.raises(SchemaError, match="no group can be told apart"):
        score_wells(wells, healthy=healthy, diseased=diseased, gate=1.0)
    with pytest.raises(SchemaError, match="both healthy and diseased"):
        score_wells(wells, healthy=healthy, diseased=healthy)


def test_the_null_is_that_of_a_t_statistic_for_one_dose() -> None:
    from scipy.stats import norm

    rng = np.random.default_rng(3)
    null = _Null(rng.normal(size=400), draws=20_000, rng=rng)
    score = null.scores(np.array([null.pool.mean() + 0.8]), np.array([4]))
    assert score[0] == pytest.approx(0.8 / (null.pool.std(ddof=1) * np.sqrt(1 / 4 + 1 / 400)))
    assert null.p(1.645, np.array([4])) == pytest.approx(norm.sf(1.645), abs=0.01)
    assert null.p(1.645, np.array([4, 4, 4])) == pytest.approx(1 - norm.cdf(1.645) ** 3, abs=0.02)
    assert null.p(99.0, np.array([4])) == pytest.approx(1 / 20_001)


def test_the_dose_that_is_reported_is_the_dose_of_the_score() -> None:
    """Of two doses below 0 the one of six wells is further above the controls, and hit sqrt(n) is
    lower for it.
    """
    pool = np.tile([-0.2, 0.0], 50)  # mean -.1
    doses, hits = np.repeat([1.0, 3.0], [6, 2]), np.repeat([-0.05, -0.04], [6, 2])
    treated = pd.DataFrame({"role": "treated", "treatment": "x", "dose": doses, "hit": hits})
    wells = pd.concat([pd.DataFrame({"role": "diseased", "hit": pool}), treated], ignore_index=True)
    wells = wells.assign(cell_type="A", rescue=wells["dose"], z_off=0.0)
    found = hit_table(
        wells, treatment="treatment", dose="dose", draws=200, rng=np.random.default_rng(0)
    ).iloc[0]
    assert found["score"] == pytest.approx(0.05 / (pool.std(ddof=1) * np.sqrt(1 / 6 + 1 / 100)))
    assert (found["best_dose"], found["rescue"], found["doses"], found["wells"]) == (1.0, 1.0, 2, 8)
