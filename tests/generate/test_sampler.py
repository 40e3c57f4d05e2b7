"""What the samplers promise: calibrated, dependent where cells and depth depend, exact on disk,
joined by label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.generate import CellSampler, SamplerSettings, WellTable, cross_validate, summarise
from perturbgen.generate.features import _fit_cells, _fit_depth, _UnharmedWells
from perturbgen.generate.sampler import _condition_folds, _poisson_mixture_quantiles
from perturbgen.generate.validate import LEVELS, TARGETS, score_samplers

from .conftest import TOXIC


def test_intervals_of_hidden_wells_hold_what_they_promise(
    sampler: CellSampler, hidden: WellTable
) -> None:
    scores = score_samplers(sampler, hidden, draws=100, rng=np.random.default_rng(1))
    for row in summarise(scores):
        if row["cell type"] == "all":
            for level in LEVELS:  # 120 wells: two standard errors are nine points at 50 %
                assert row[f"{level:.0%}"] == pytest.approx(level, abs=0.1), (
                    row["quantity"],
                    level,
                )


def test_hidden_wells_are_foretold_better_than_by_the_wells_of_their_plate(
    sampler: CellSampler, hidden: WellTable, released: WellTable
) -> None:
    found = sampler.cell_numbers(hidden.groups, 200, np.random.default_rng(1)).median(axis=1)
    error = (found - hidden.groups["n_cells"]).abs().mean()
    median = released.groups.groupby(["plate", "cell_type"])["n_cells"].median()
    plate = median.loc[pd.MultiIndex.from_frame(hidden.groups[["plate", "cell_type"]])].to_numpy()
    assert error < 0.7 * np.abs(plate - hidden.groups["n_cells"]).mean()


def test_toxic_compounds_lose_cells_and_depth_together(
    sampler: CellSampler, hidden: WellTable
) -> None:
    rng = np.random.default_rng(2)
    toxic = hidden.groups[hidden.groups["compound"].isin(TOXIC)]
    few = sampler.libraries(toxic, np.full(len(toxic), 3), rng)
    many = sampler.libraries(toxic, np.full(len(toxic), 40), rng)
    assert (
        np.mean([np.log(part).mean() for part in few])
        < np.mean([np.log(part).mean() for part in many]) - 0.05
    )
    rest = hidden.groups[~hidden.groups["compound"].isin(TOXIC)]
    counts = [sampler.cell_numbers(part, 20, rng).to_numpy().mean() for part in (toxic, rest)]
    assert counts[0] < 0.6 * counts[1]


def test_library_sizes_are_as_many_as_asked_and_spread_as_cells_do(
    sampler: CellSampler, hidden: WellTable
) -> None:
    groups = hidden.groups.iloc[:6]
    n = np.array([0, 1, 5, 2000, 0, 3])
    found = sampler.libraries(groups, n, np.random.default_rng(3))
    assert [len(part) for part in found] == n.tolist()
    assert np.log(found[3]).std() == pytest.approx(0.4, abs=0.07)
    assert all((part > 0).all() for part in found)
    with pytest.raises(SchemaError, match="one whole number"):
        sampler.libraries(groups, n[:3], np.random.default_rng(3))
    with pytest.raises(SchemaError, match="one whole number"):
        sampler.libraries(groups, n + 0.5, np.random.default_rng(3))


def test_quantiles_are_those_of_the_draws(sampler: CellSampler, hidden: WellTable) -> None:
    groups = hidden.groups.iloc[::10]
    q = [0.1, 0.5, 0.9]
    exact = sampler.quantiles(groups, q)
    drawn = sampler.cell_numbers(groups, 4000, np.random.default_rng(4)).quantile(q, axis=1).T
    assert exact.index.equals(groups.index)
    assert np.abs(exact - drawn).max().max() <= 2
    assert (exact.diff(axis=1).iloc[:, 1:] >= 0).all().all()
    with pytest.raises(ConfigError, match="between 0 and 1"):
        sampler.quantiles(groups, [0.5, 1.0])


def test_quantiles_of_one_poisson_are_its_own() -> None:
    rate, q = np.array([[0.01], [3.0], [250.0]]), np.array([0.025, 0.5, 0.975])
    assert (_poisson_mixture_quantiles(rate, q) == stats.poisson.ppf(q, rate)).all()


def test_draws_follow_labels_not_positions_and_repeat_with_the_seed(
    sampler: CellSampler, hidden: WellTable
) -> None:
    groups = hidden.groups
    first = sampler.cell_numbers(groups, 50, np.random.default_rng(5))
    assert first.equals(sampler.cell_numbers(groups, 50, np.random.default_rng(5)))
    shuffled = groups.sample(frac=1, random_state=0)
    rates = sampler.log_rate(shuffled, sampler.maker.features(shuffled))
    expected = pd.Series(sampler.log_rate(groups, sampler.maker.features(groups)), groups.index)
    assert np.allclose(rates, expected.loc[shuffled.index])


def test_what_is_known_of_a_row_never_holds_the_row_itself(
    released: WellTable, sampler: CellSampler
) -> None:
    groups = released.groups
    row = groups.index[(groups["cell_type"] == "NK") & (groups["compound"] == "c05")][:1]
    changed = groups.copy()
    changed.loc[row, "n_cells"] *= 10
    maker = sampler.maker
    other = type(maker).of(maker.encoder, maker.reference.cells, maker.reference.depth, changed)
    assert np.array_equal(maker.features(groups.loc[row]), other.features(groups.loc[row]))
    same_well = groups.index[
        (groups["well"] == groups["well"][row[0]]) & (groups["plate"] == groups["plate"][row[0]])
    ]
    assert not np.array_equal(
        maker.features(groups.loc[same_well]), other.features(groups.loc[same_well])
    )


def test_a_sampler_comes_back_from_disk_to_the_bit(
    sampler: CellSampler, hidden: WellTable, tmp_path: Path
) -> None:
    again = CellSampler.load(sampler.save(tmp_path / "s.npz"))
    counts = [s.cell_numbers(hidden.groups, 5, np.random.default_rng(6)) for s in (sampler, again)]
    assert counts[0].equals(counts[1])
    n = counts[0][0].to_numpy()
    depths = [
        np.concatenate(s.libraries(hidden.groups, n, np.random.default_rng(6)))
        for s in (sampler, again)
    ]
    assert np.array_equal(depths[0], depths[1])
    assert again.settings == sampler.settings


def test_files_that_are_no_samplers_are_refused(sampler: CellSampler, tmp_path: Path) -> None:
    path = sampler.save(tmp_path / "s.npz")
    path.write_bytes(path.read_bytes()[:5000])
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    np.savez(tmp_path / "code.npz", about=np.array([{"a": 1}], object))
    for name in ("s.npz", "other.npz", "code.npz"):
        with pytest.raises(InputError, match="is not a sampler"):
            CellSampler.load(tmp_path / name)
    with pytest.raises(InputError, match=r"not a \.npz file"):
        sampler.save(tmp_path / "s.pkl")


def test_a_plate_or_cell_type_nobody_measured_is_refused(
    sampler: CellSampler, hidden: WellTable
) -> None:
    with pytest.raises(SchemaError, match="plate 'p9'"):
        sampler.cell_numbers(hidden.groups.assign(plate="p9"), 2, np.random.default_rng(0))
    with pytest.raises(SchemaError, match="cell type 'C'"):
        sampler.cell_numbers(hidden.groups.assign(cell_type="C"), 2, np.random.default_rng(0))
    new = hidden.groups.iloc[:3].assign(compound="unheard of")
    assert sampler.cell_numbers(new, 50, np.random.default_rng(0)).to_numpy().mean() > 1


def test_one_sample_is_refused(released: WellTable) -> None:
    seen = np.flatnonzero(released.groups["n_cells"] > 0)[0]
    one = released.take(np.arange(len(released.groups)) == seen)
    with pytest.raises(SchemaError, match=r"1 samples \(wells\) x cell types have cells"):
        CellSampler.fit(one, rng=np.random.default_rng(0))


def test_few_samples_follow_their_own_other_cell_types() -> None:
    """Ten samples of two types: a sample of twice the cells, and of half the depth, is foretold."""
    rng = np.random.default_rng(0)
    rows, totals = [], []
    for i in range(9):
        size, depth = (2.0, 500) if i == 4 else (1.0, 1000)
        for kind in ("T", "B"):
            if (i, kind) == (4, "B"):
                continue  # withheld
            n = int(200 * size)
            rows += [(kind, "v" if i % 2 else "d", "p", f"s{i}")] * n
            totals += list(depth * np.exp(rng.normal(0, 0.1, n)))
    obs = pd.DataFrame(rows, columns=["cell_type", "compound", "plate", "well"])
    obs.index = obs.index.astype(str)
    table = WellTable.tabulate(obs, pd.Series(totals, obs.index))
    table = table.take((table.groups["n_cells"] > 0).to_numpy())  # nobody looked there
    assert len(table.groups) == 17
    sampler = CellSampler.fit(table, rng=np.random.default_rng(0))
    wells = table.wells.assign(cell_type="B")
    n_cells = sampler.cell_numbers(wells, 200, np.random.default_rng(1)).median(axis=1)
    sizes = sampler.libraries(wells, n_cells.to_numpy().round(), np.random.default_rng(2))
    deep = pd.Series([np.median(part) for part in sizes], wells["well"])
    found = n_cells.set_axis(wells["well"])
    assert found["s4"] / found.drop("s4").median() == pytest.approx(2, rel=0.15)
    assert deep["s4"] / deep.drop("s4").median() == pytest.approx(0.5, rel=0.2)


def test_the_only_condition_is_dealt_by_well(released: WellTable) -> None:
    """With vehicle samples alone every fold of conditions would hold all of them."""
    table = released.take((released.groups["compound"] == "DMSO").to_numpy())
    one = table.take((table.groups["cell_type"] == "NK").to_numpy())
    folds = _condition_folds(one.groups, 5, rng=np.random.default_rng(0))
    assert len(np.unique(folds)) == 5


def test_a_profile_of_bulk_is_one_cell() -> None:
    obs = pd.DataFrame({"cell_type": "L", "compound": ["v", "d"] * 15, "plate": "p"})
    obs = obs.assign(well=[f"A{i}" for i in range(30)]).set_axis([f"c{i}" for i in range(30)])
    table = WellTable.tabulate(obs, pd.Series(100.0, obs.index))
    sampler = CellSampler.fit(table, rng=np.random.default_rng(0))
    found = sampler.cell_numbers(sampler.table.groups, 5, np.random.default_rng(0))
    assert (found == 1).all().all()


def test_the_reference_knows_plates_and_cell_types_by_hand() -> None:
    rates = {("p", "B"): 20, ("p", "T"): 40, ("q", "B"): 10, ("q", "T"): 80}
    effect = {"v": 1.0, "x": 0.5}
    rows = [(p, k, c, int(rate * e)) for (p, k), rate in rates.items() for c, e in effect.items()]
    groups = pd.DataFrame(rows * 10, columns=["plate", "cell_type", "compound", "n_cells"])
    groups["log_library"] = (
        7 + groups["cell_type"].map({"B": 0, "T": 0.5}) - groups["compound"].map({"v": 0, "x": 0.3})
    )
    reference = _UnharmedWells(_fit_cells(groups), _fit_depth(groups))
    ratio = (
        reference.cells.loc[[("p", "T"), ("q", "B"), ("q", "T")]].to_numpy()
        / reference.cells[("p", "B")]
    )
    assert ratio == pytest.approx([2, 0.5, 4], rel=0.25)
    depth = reference.expected_depth(groups)
    gap = depth[groups["cell_type"] == "T"].mean() - depth[groups["cell_type"] == "B"].mean()
    assert gap == pytest.approx(0.5, abs=1e-6)


def test_every_condition_but_the_vehicle_is_scored_once(released: WellTable) -> None:
    settings = SamplerSettings(trees=8, leaf=5, folds=2)
    scores = cross_validate(released, settings, rng=np.random.default_rng(0), folds=2, draws=10)
    compounds = released.groups["compound"] != "DMSO"
    assert len(scores) == compounds.sum()
    assert {f"{name}_crps" for name in TARGETS} <= set(scores)
    with pytest.raises(ConfigError, match="folds"):
        cross_validate(released, settings, rng=np.random.default_rng(0), folds=1)
