"""Strengths from measured effects, the genes of a subset, and how genes and cell types respond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.simulation import CELL_TYPES, build_world, preset_settings
from perturbgen.simulation.op3.baseline import _spread_subset
from perturbgen.simulation.op3.measured import read_measured_effects


def write(path: Path, names: list[str], values: list[object]) -> Path:
    pd.DataFrame({"sm_name": names, "conserved": values}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.1, -0.2], "negative, missing or text for 'b'"),
        ([0.1, None], "negative, missing or text for 'b'"),
        (["much", 0.2], "negative, missing or text for 'a'"),
        ([0.1, 0.2], "has 2 compounds"),
    ],
)
def test_bad_effects_are_refused(tmp_path: Path, values: list[object], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        read_measured_effects(write(tmp_path / "effects.csv", ["a", "b"], values))


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_measured_effects(tmp_path / "absent.csv")
    pd.DataFrame({"drug": ["a"], "conserved": [1.0]}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(SchemaError, match="sm_name"):
        read_measured_effects(tmp_path / "other.csv")
    twice = write(tmp_path / "twice.csv", ["a"] * 12, [0.1] * 12)
    with pytest.raises(SchemaError, match="11 duplicated compound"):
        read_measured_effects(twice)


def strengths(path: Path, *overrides: str) -> pd.Series:
    settings = preset_settings("tiny", sources={"effects": path}, overrides=overrides)
    table = build_world(settings, seed=0).effects.compounds
    return table["strength"]


def test_a_measured_compound_is_as_strong_as_it_was_found(tmp_path: Path) -> None:
    plain = build_world(preset_settings("tiny"), seed=0).effects.compounds.index
    names = [name for name in plain if name.startswith("Compound")]
    measured = np.linspace(0, 0.5, len(names))
    path = write(tmp_path / "effects.csv", names[:-1], measured[:-1].tolist())
    found = strengths(path, "effects.scale=0.5", "effects.noise=0.1", "effects.strength_cap=0.25")
    expected = 0.25 * np.tanh(0.5 * np.sqrt(np.maximum(measured - 0.1, 0)) / 0.25)
    assert np.allclose(found[names[:-1]], expected[:-1])
    assert found[names[-1]] == expected[:-1].max(), "no measured effect: too toxic for one"
    assert found["Dimethyl Sulfoxide"] == 0


def test_effects_of_other_compounds_are_dealt(tmp_path: Path) -> None:
    path = write(tmp_path / "effects.csv", [f"drug {i}" for i in range(40)], [0.2] * 39 + [0.9])
    found = strengths(path, "effects.noise=0", "effects.scale=1", "effects.strength_cap=1.2")
    active = found.drop("Dimethyl Sulfoxide")
    assert active.min() == pytest.approx(1.2 * np.tanh(np.sqrt(0.2) / 1.2))
    assert active.max() <= 1.2 * np.tanh(np.sqrt(0.9) / 1.2)


def test_a_random_subset_covers_the_range_of_expression() -> None:
    mean = np.random.default_rng(0).lognormal(0, 2, 1000)
    chosen = _spread_subset(mean, 100, rng=np.random.default_rng(1))
    assert len(np.unique(chosen)) == 100
    place = np.sort(pd.Series(mean).rank().to_numpy()[chosen])
    assert np.all((place - 1) // 10 == np.arange(100)), "one of each ten"
    everything = _spread_subset(mean, 1000, rng=np.random.default_rng(1))
    assert np.array_equal(everything, np.arange(1000))


def test_cell_types_respond_and_die_as_set() -> None:
    before = ["effects.cell_types.B cells=1", "effects.frailty.NK cells=1"]
    plain = build_world(preset_settings("tiny", overrides=before), seed=0)
    overrides = ["effects.cell_types.B cells=0.5", "effects.frailty.NK cells=3"]
    changed = build_world(preset_settings("tiny", overrides=overrides), seed=0)
    before, after = (np.arctanh(w.effects.log2_fold_change / 5) for w in (plain, changed))
    ratio = np.sqrt((after**2).sum(axis=(1, 2)) / (before**2).sum(axis=(1, 2)))
    assert np.allclose(ratio, [0.5 if name == "B cells" else 1 for name in CELL_TYPES], rtol=1e-3)
    lost, more = (-np.log(w.effects.survival) for w in (plain, changed))
    active = lost.columns != "Dimethyl Sulfoxide"
    gain = (more - lost).loc[:, active]
    assert (gain.loc["NK cells"] > 0).all()
    assert np.allclose(gain.drop(index="NK cells"), 0, atol=1e-9)


def test_the_preset_of_2025_is_the_world_of_2025() -> None:
    overrides = ["expression.genes=300", "depth.zero_fraction=0.8"]
    world = build_world(preset_settings("op3_2025", overrides=overrides), seed=3)
    # of preset op3 at commit ada8a61, before anything was added to it: old numbers stay repeatable
    assert world.groups["n_cells"].sum() == 293_244
    assert np.abs(world.effects.log2_fold_change).mean() == pytest.approx(0.1371713, rel=1e-5)
    totals = [int(world.draw(group).sum()) for group in range(0, 600, 97)]
    assert totals == [34_608, 50_371, 10_637, 1_499, 14_675, 21_645, 13_686]
    assert preset_settings("op3").effects != world.settings.effects
