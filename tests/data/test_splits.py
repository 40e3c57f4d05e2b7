from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.data import Split


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def obs() -> pd.DataFrame:
    cell_type = ["B cells", "NK cells"] * 50
    return pd.DataFrame(
        {"cell_type": cell_type, "compound": [f"c{i % 7}" for i in range(100)]},
        [f"o{i}" for i in range(100)],
    )


def test_random_cells_have_the_right_size_and_forced_cells_stay(
    obs: pd.DataFrame, rng: np.random.Generator
) -> None:
    forced = (obs["cell_type"] == "B cells").to_numpy()
    split = Split.random_cells(obs, rng=rng, fraction=0.1, force_train=forced)
    assert len(split.members("validation")) == 10
    assert (obs.loc[split.members("validation"), "cell_type"] == "NK cells").all()
    split.check_leaks(obs)


def test_one_seed_gives_one_split(obs: pd.DataFrame) -> None:
    one, other = (Split.random_cells(obs, rng=np.random.default_rng(3)).parts for _ in range(2))
    pd.testing.assert_series_equal(one, other)
    assert not one.equals(Split.random_cells(obs, rng=np.random.default_rng(4)).parts)


def test_more_validation_cells_than_are_free_is_an_error(
    obs: pd.DataFrame, rng: np.random.Generator
) -> None:
    with pytest.raises(SchemaError, match="only 0 are not forced"):
        Split.random_cells(obs, rng=rng, force_train=np.ones(100, bool))
    with pytest.raises(SchemaError, match="between 0 and 1"):
        Split.random_cells(obs, rng=rng, fraction=2)


def test_leave_out_takes_all_of_a_value_and_spares_the_controls(obs: pd.DataFrame) -> None:
    split = Split.leave_out(obs, "cell_type", ["NK cells"])
    assert set(obs.loc[split.members("test"), "cell_type"]) == {"NK cells"}
    assert set(obs.loc[split.members("train"), "cell_type"]) == {"B cells"}
    spared = Split.leave_out(obs, "cell_type", ["NK cells"], except_compounds=["c1"])
    assert "c1" not in set(obs.loc[spared.members("test"), "compound"])
    spared.check_leaks(obs)


def test_leave_out_of_an_unknown_value_suggests_the_nearest(obs: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match="did you mean 'NK cells'"):
        Split.leave_out(obs, "cell_type", ["NK cell"])


@pytest.mark.parametrize("by", [None, "compound"])
def test_folds_are_even_and_whole(
    obs: pd.DataFrame, rng: np.random.Generator, by: str | None
) -> None:
    split = Split.kfold(obs, 3, rng=rng, by=by)
    split.check_leaks(obs)
    sizes = split.parts.value_counts() if by is None else obs[by].groupby(split.parts).nunique()
    assert sizes.max() - sizes.min() <= 1
    assert sizes.index.sort_values().tolist() == ["fold_0", "fold_1", "fold_2"]


def test_too_many_folds_is_an_error(obs: pd.DataFrame, rng: np.random.Generator) -> None:
    with pytest.raises(SchemaError, match="8 folds of 7 compound"):
        Split.kfold(obs, 8, rng=rng, by="compound")


@pytest.mark.parametrize("kind", ["cells", "conditions"])
def test_a_written_split_is_read_back_the_same(
    obs: pd.DataFrame, rng: np.random.Generator, tmp_path: Path, kind: str
) -> None:
    # names are joined by: a split holds them as they are, whatever a spreadsheet makes of them
    obs = obs.set_axis(["=1#", "-c", *obs.index[2:]]).replace("c2", "@c2 #3\r4")
    conditions = obs.drop_duplicates().reset_index(drop=True)
    split = (
        Split.leave_out(obs, "compound", ["c3"])
        if kind == "cells"
        else Split.kaggle(conditions, rng=rng, known=["c0"], public=2)
    )
    split.write(tmp_path / "split.csv")
    again = Split.read(tmp_path / "split.csv")
    pd.testing.assert_series_equal(again.parts, split.parts, check_names=False)
    assert (again.kind, again.apart) == (split.kind, split.apart)


def test_a_file_that_is_no_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a split file"):
        Split.read(tmp_path / "x.csv")


def test_every_kind_of_leak_is_named(obs: pd.DataFrame) -> None:
    split = Split.leave_out(obs, "compound", ["c3"])
    with pytest.raises(SchemaError, match="1 rows have no part: 'new'"):
        split.check_leaks(pd.concat([obs, obs.iloc[:1].rename(index=lambda _: "new")]))
    with pytest.raises(SchemaError, match="99 rows are in the split but not in the data"):
        split.check_leaks(obs.iloc[:1])
    with pytest.raises(SchemaError, match="leaks: compound 'c3'"):
        moved = split.parts.copy()
        moved[split.members("test")[0]] = "train"
        Split(moved, "moved", ("compound",)).check_leaks(obs)
    with pytest.raises(SchemaError, match="assigned twice: 'o0'"):
        Split(pd.concat([split.parts, split.parts.iloc[:1]]), "twice").check_leaks(obs)


def test_members_of_an_unknown_part(obs: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match="did you mean 'train'"):
        Split.leave_out(obs, "compound", ["c3"]).members("trian")


@pytest.mark.data
def test_the_competition_is_emulated_from_its_real_tables(
    real_data: Path, rng: np.random.Generator
) -> None:
    train = pd.read_csv(real_data / "op3" / "train_obs_614.csv").rename(
        columns={"sm_name": "compound"}
    )
    test = pd.read_csv(real_data / "op3" / "id_map.csv").rename(columns={"sm_name": "compound"})
    conditions = pd.concat([train, test])[["cell_type", "compound"]].reset_index(drop=True)
    split = Split.kaggle(conditions, rng=rng)
    split.check_leaks(conditions)
    assert len(split.members("train")) == 614
    public, private = split.members("public"), split.members("private")
    assert len(public) + len(private) == 255
    assert (public.unique("compound").size, private.unique("compound").size) == (50, 79)
    assert public.unique("compound").intersection(private.unique("compound")).empty
    assert set(split.members("train")) == set(
        map(tuple, train[["cell_type", "compound"]].to_numpy())
    )


def flagged(obs: pd.DataFrame) -> pd.DataFrame:
    return obs.assign(control=obs["compound"].isin(["c0", "c1"]))


def test_a_calibration_split_hides_wanted_cells_and_some_known_compounds(
    obs: pd.DataFrame, rng: np.random.Generator
) -> None:
    wanted = pd.DataFrame({"cell_type": ["B cells"], "compound": ["c6"]})
    split = Split.for_calibration(flagged(obs), wanted, rng=rng, share=0.5, validation=0.2)
    rows = obs.assign(part=split.parts)
    assert set(rows.loc[(rows["cell_type"] == "B cells") & (rows["compound"] == "c6"), "part"]) == {
        "hidden"
    }
    assert (rows["part"] == "hidden").sum() == 7
    calibration = rows[rows["part"] == "calibration"]
    assert set(calibration["cell_type"]) == {"B cells"}
    assert calibration["compound"].nunique() == 2, (
        "half of c2, c3, c4, c5; controls and what is wanted never"
    )
    assert not set(calibration["compound"]) & {"c0", "c1", "c6"}
    others = rows[(rows["cell_type"] == "B cells") & rows["compound"].isin(calibration["compound"])]
    assert set(others["part"]) == {"calibration"}, "all cells of such a condition"
    assert 5 < (rows["part"] == "validation").sum() < 30
    split.check_leaks(obs)


def test_a_vehicle_without_a_column_of_controls_calibrates_nothing(
    obs: pd.DataFrame, rng: np.random.Generator
) -> None:
    wanted = pd.DataFrame({"cell_type": ["B cells"], "compound": ["c6"]})
    split = Split.for_calibration(obs, wanted, rng=rng, share=1.0, validation=0.2, vehicle="c0")
    chosen = obs.loc[(split.parts == "calibration").to_numpy(), "compound"]
    assert set(chosen) == {"c1", "c2", "c3", "c4", "c5"}


def test_a_calibration_split_of_no_share_withholds_nothing_but_the_wanted(
    obs: pd.DataFrame, rng: np.random.Generator
) -> None:
    wanted = pd.DataFrame({"cell_type": ["B cells"], "compound": ["unseen"]})
    split = Split.for_calibration(flagged(obs), wanted, rng=rng, share=0.0, validation=0.1)
    assert set(split.parts) == {"train", "validation"}


def test_a_calibration_split_needs_two_known_compounds(
    obs: pd.DataFrame, rng: np.random.Generator
) -> None:
    wanted = pd.DataFrame({"cell_type": "B cells", "compound": [f"c{i}" for i in range(3, 7)]})
    with pytest.raises(SchemaError, match="1 compounds are known in 'B cells'"):
        Split.for_calibration(flagged(obs), wanted, rng=rng, share=0.5, validation=0.1)
