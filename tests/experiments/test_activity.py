"""Replicate mAP against controls: equal to copairs before and after whitening, and honest about
fitted controls.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from activity import activity, held_out_activity

from perturbgen.core.errors import SchemaError
from perturbgen.profiles import Profiles, read_profiles
from perturbgen.profiles.correct import Pipeline, tvn

REFERENCE = Path(__file__).parents[1] / "retrieval" / "copairs"
COMPOUND = "Metadata_broad_sample"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "step", "active"),
    [("cellpainting", Pipeline(), 33), ("cellpainting_whitened", tvn(), 58)],
)
def test_a_real_plate_before_and_after_whitening_equals_copairs(
    real_data: Path, name: str, step: Pipeline, active: int
) -> None:
    plate = read_profiles(
        real_data / "imaging" / "cellpainting" / "SQ00015054_normalized_feature_select.csv.gz"
    )
    control = (plate.meta[COMPOUND] == "DMSO").to_numpy()
    corrected = plate.with_values(step.fit_transform(plate.values, plate.meta, control=control))
    expected = pd.read_csv(REFERENCE / f"{name}.csv").set_index("compound")
    ours = activity(corrected, control=control, same=COMPOUND).loc[expected.index]
    assert len(ours) == 58
    np.testing.assert_allclose(ours["map"], expected["map"], atol=1e-7)
    np.testing.assert_allclose(ours["nmap"], expected["nmap"], atol=1e-7)
    assert (ours["p_bh"] < 0.05).sum() == (expected["q"] < 0.05).sum() == active


def inert(features: int = 60) -> tuple[Profiles, np.ndarray]:
    """Twelve controls and eight treatments that do nothing."""
    rng = np.random.default_rng(0)
    meta = pd.DataFrame({"drug": ["DMSO"] * 12 + [f"d{i}" for i in range(8) for _ in range(4)]})
    return Profiles(rng.normal(size=(44, features)), meta, pd.Index(range(features))), (
        meta["drug"] == "DMSO"
    ).to_numpy()


def test_whitening_on_its_own_negatives_invents_activity_and_other_controls_show_it() -> None:
    profiles, control = inert()
    step = tvn()
    whitened = profiles.with_values(
        step.fit_transform(profiles.values, profiles.meta, control=control)
    )
    before = activity(profiles, control=control, same="drug")["nmap"].mean()
    fooled = activity(whitened, control=control, same="drug")["nmap"].mean()
    honest = held_out_activity(
        profiles, tvn(), control=control, same="drug", splits=3, rng=np.random.default_rng(1)
    )["nmap"].mean()
    assert abs(before) < 0.15
    assert fooled > 0.3  # nothing was done to these wells
    assert abs(honest) < 0.15


def test_without_a_correction_halving_uses_every_control_once_a_split() -> None:
    profiles, control = inert()
    table = held_out_activity(
        profiles, Pipeline(), control=control, same="drug", splits=1, rng=np.random.default_rng(0)
    )
    assert list(table.index) == [f"d{i}" for i in range(8)]
    assert (table["map"].between(0, 1)).all()
    few = np.zeros(len(control), bool)
    few[:3] = True
    with pytest.raises(SchemaError, match="3 controls cannot be halved"):
        held_out_activity(
            profiles, Pipeline(), control=few, same="drug", splits=1, rng=np.random.default_rng(0)
        )
