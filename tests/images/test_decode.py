"""The plan of RxRx1's plates, real and planted, and decoding with and without it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.images import read_rxrx1_metadata, rxrx1
from perturbgen.images.rxrx1 import PlatePlan, decode_wells


def noisy_log_p(
    truth: pd.Series, names: list[int], *, signal: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Log-probabilities of a classifier that sees the truth through noise.

    Scores are normal, the true class's raised by ``signal``.
    """
    scores = rng.normal(size=(len(truth), len(names)))
    scores[np.arange(len(truth)), pd.Index(names).get_indexer(pd.Index(truth))] += signal
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return pd.DataFrame(scores, index=truth.index, columns=names)


@pytest.fixture(scope="module")
def planted(fixtures: dict[str, Path]) -> pd.DataFrame:
    return read_rxrx1_metadata(fixtures["rxrx1"])


@pytest.mark.data
def test_the_real_plate_maps(real_data: Path) -> None:
    meta = read_rxrx1_metadata(real_data / "imaging" / "rxrx1")
    assert len(meta) == 62_755
    assert meta["experiment"].nunique() == 51
    groups = PlatePlan.sirna_groups(meta)
    assert groups.value_counts().tolist() == [277] * 4
    plan = PlatePlan.of(meta, groups)
    assert len(plan.table) == 33
    assert plan.counts() == [22, 7, 4]
    assert plan.is_rotation()


def test_the_planted_rotations_are_recovered(planted: pd.DataFrame) -> None:
    groups = PlatePlan.sirna_groups(planted)
    assert groups.value_counts().tolist() == [6] * 4
    plan = PlatePlan.of(planted, groups)
    assert plan.is_rotation()
    assert plan.counts() == [1, 1, 1, 1]


def test_mixed_plates_are_said(planted: pd.DataFrame) -> None:
    wells = planted.copy()
    wells["sirna_id"] = np.where(
        wells["well_type"] == "treatment",
        np.random.default_rng(0).permutation(wells["sirna_id"]) % 24,
        wells["sirna_id"],
    )
    with pytest.raises(SchemaError, match="its siRNAs are of groups"):
        PlatePlan.sirna_groups(wells)


def wells_of(meta: pd.DataFrame) -> pd.DataFrame:
    wells = PlatePlan.treated_wells(meta)
    wells.index = wells["experiment"] + wells["plate"].astype(str) + wells["well"]
    return wells


def test_decoders_recover_a_planted_rotation_and_never_lose_by_it(planted: pd.DataFrame) -> None:
    wells, groups = wells_of(planted), PlatePlan.sirna_groups(planted)
    plan = PlatePlan.of(planted, groups)
    log_p = noisy_log_p(
        wells["sirna_id"], list(groups.index), signal=2.0, rng=np.random.default_rng(0)
    )
    for experiment, part in wells.groupby("experiment"):
        assert (
            rxrx1.plate_groups(log_p.loc[part.index], part["plate"], groups)
            == plan.table.loc[experiment].to_dict()
        )
    named = {mode: decode_wells(log_p, wells, mode=mode, groups=groups) for mode in rxrx1.MODES}
    share = {mode: (found == wells["sirna_id"]).mean() for mode, found in named.items()}
    assert share["independent"] < share["plate_group"] <= share["assignment"]
    assigned = wells.assign(found=named["assignment"])
    assert not assigned.duplicated(["experiment", "plate", "found"]).any()
    by_type = rxrx1.accuracy(
        named["independent"], wells["sirna_id"], wells["experiment"].str.split("-").str[0]
    )
    assert by_type["all"] == pytest.approx(share["independent"])
    assert set(by_type.index) == {"HUVEC", "U2OS", "all"}


def test_independent_decoding_knows_nothing_of_plates(planted: pd.DataFrame) -> None:
    wells, groups = wells_of(planted), PlatePlan.sirna_groups(planted)
    log_p = noisy_log_p(
        wells["sirna_id"], list(groups.index), signal=1.0, rng=np.random.default_rng(1)
    )
    moved = wells.assign(plate=1)
    pd.testing.assert_series_equal(
        decode_wells(log_p, wells, mode="independent"),
        decode_wells(log_p, moved, mode="independent"),
    )


def test_decoding_asks_for_what_it_needs(planted: pd.DataFrame) -> None:
    wells, groups = wells_of(planted), PlatePlan.sirna_groups(planted)
    log_p = noisy_log_p(
        wells["sirna_id"], list(groups.index), signal=1.0, rng=np.random.default_rng(1)
    )
    with pytest.raises(SchemaError, match="needs the groups"):
        decode_wells(log_p, wells, mode="assignment")
    with pytest.raises(SchemaError, match="different labels"):
        decode_wells(log_p.iloc[::-1], wells, mode="independent")
    with pytest.raises(SchemaError, match="belongs to no group"):
        decode_wells(log_p, wells, mode="plate_group", groups=groups.iloc[1:])
