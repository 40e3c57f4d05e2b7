"""The benchmark's real table: counts that two independent programs agree on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from perturbgen.images import read_bbbc021
from perturbgen.images.evaluate import Matching, treatment_profiles
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import (
    ControlScaler,
    Coral,
    Correction,
    NestedCentre,
    Pipeline,
    Sphering,
    tvn,
)

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Medians in rotated coordinates hang on rounding, and sums over threads round differently."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def wells(real_data: Path) -> Profiles:
    return read_bbbc021(real_data / "imaging" / "bbbc021")


def test_the_table_is_whole(wells: Profiles) -> None:
    assert wells.values.shape == (632, 516)
    assert (wells.meta["compound"] == "DMSO").sum() == 330
    assert wells.meta["moa"].notna().all()
    assert len(treatment_profiles(wells, vehicle="DMSO")) == 103


@pytest.mark.parametrize(
    ("correction", "how", "same_compound", "same_batch"),
    [
        (Pipeline(), "median", 47, 30),
        (Pipeline(), "mean", 51, 30),
        (ControlScaler(), "median", 88, 63),
        (ControlScaler(), "mean", 89, 63),
        (tvn(), "median", 96, 68),
        (tvn(), "mean", 96, 70),
        (Pipeline(ControlScaler(), NestedCentre(["plate"]), Sphering()), "median", 94, 66),
        (Pipeline(ControlScaler(), NestedCentre(["plate"]), Sphering()), "mean", 95, 69),
        (
            Pipeline(ControlScaler(), NestedCentre(["plate"]), Sphering(), Coral(["week"])),
            "median",
            93,
            69,
        ),
        (
            Pipeline(ControlScaler(), NestedCentre(["plate"]), Sphering(), Coral(["week"])),
            "mean",
            94,
            71,
        ),
        (tvn(["week"]), "mean", 95, 70),
    ],
)
def test_the_golden_table(
    wells: Profiles, correction: Correction, how: str, same_compound: int, same_batch: int
) -> None:
    values = correction.fit_transform(
        wells.values, wells.meta, control=wells.meta["compound"] == "DMSO"
    )
    profiled = treatment_profiles(wells.with_values(values), vehicle="DMSO", how=how)
    assert str(Matching.nsc(profiled)) == f"{same_compound}/103"
    assert str(Matching.nscb(profiled)) == f"{same_batch}/92"
