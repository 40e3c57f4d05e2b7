"""Activity after a correction: against controls that its fit has not seen, or called in-sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen import cli
from perturbgen.core.errors import SchemaError
from perturbgen.images.evaluate import IN_SAMPLE, measures
from perturbgen.profiles import Profiles, read_profiles
from perturbgen.profiles.correct import rows_to_fit

Capture = pytest.CaptureFixture[str]
WHO = ["--controls", "Metadata_compound=DMSO"]


def inert(path: Path) -> Path:
    """Two plates of twelve DMSO wells, and twenty compounds of six wells that do nothing; 150
    features of noise.
    """
    compounds = ["DMSO"] * 12 + [f"c{i}" for i in range(20) for _ in range(3)]
    meta = pd.DataFrame(
        {
            "Metadata_Plate": np.repeat(["p1", "p2"], 72),
            "Metadata_Well": [f"W{i:02d}" for i in range(72)] * 2,
            "Metadata_compound": compounds * 2,
        }
    )
    values = np.random.default_rng(0).normal(size=(144, 150))
    pd.concat([meta, pd.DataFrame(values).add_prefix("Cells_")], axis=1).to_csv(path, index=False)
    return path


def asked(source: Path, page: Path, capsys: Capture) -> tuple[dict[str, float], str]:
    """The lines of ``images evaluate`` and what it said beside them."""
    verb = [
        "images",
        "evaluate",
        str(source),
        "--same",
        "Metadata_compound",
        *WHO,
        "--batch",
        "plate",
    ]
    assert cli._run([*verb, "--draws", "99", "--plots", str(page), "--json"]) == 0
    said = capsys.readouterr()
    return {row["measure"]: row["value"] for row in json.loads(said.out)}, said.err


@pytest.mark.parametrize(("withhold", "left"), [([], 6), (["--withhold", "0.5"], 12)])
def test_compounds_without_effect_are_not_active_against_controls_left_out_of_the_fit(
    withhold: list[str], left: int, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    verb = ["images", "correct", str(inert(tmp_path / "t.csv")), *WHO, "--whiten", "1", *withhold]
    assert cli._run([*verb, "--out", str(out), "--json"]) == 0
    meta = read_profiles(out).meta
    control = meta["Metadata_compound"] == "DMSO"
    assert (~meta["fitted"] & control).groupby(meta["plate"]).sum().tolist() == [left / 2, left / 2]
    assert not meta["fitted"][~control].any()
    found, warned = asked(out, tmp_path / "page.html", capsys)
    assert found["active (q < .05)"] <= 0.05
    assert not any(IN_SAMPLE in name for name in [*found, warned])
    assert IN_SAMPLE not in (tmp_path / "page.html").read_text()


def test_activity_against_the_controls_of_the_fit_is_said_to_be_in_sample(
    tmp_path: Path, capsys: Capture
) -> None:
    source, out = inert(tmp_path / "t.csv"), tmp_path / "out"
    before, warned = asked(source, tmp_path / "before.html", capsys)
    assert before["active (q < .05)"] <= 0.05
    assert IN_SAMPLE not in warned
    verb = [
        "images",
        "correct",
        str(source),
        *WHO,
        "--whiten",
        "1",
        "--withhold",
        "0",
        "--out",
        str(out),
        "--json",
    ]
    assert cli._run(verb) == 0
    found, warned = asked(out, tmp_path / "page.html", capsys)
    assert found[f"active (q < .05), {IN_SAMPLE}"] > 0.5  # nothing was done to these wells
    assert {name.split(",")[0] for name in found if IN_SAMPLE in name} == {
        "mAP against controls",
        "active (q < .05)",
        "magnitude (energy distance)",
        "strong (q < .05)",
        "neighbours of the same plate",
        "iLISI of plate (1 is mixed)",
    }
    assert "--withhold 0.25" in " ".join(warned.split())
    assert "--withhold 0.25" in (tmp_path / "page.html").read_text()


def wells(controls: dict[str, int]) -> pd.DataFrame:
    """So many control wells of each plate and one treated, two sites each."""
    rows = [
        (plate, f"W{i}", site, "x" if i == n else "DMSO")
        for plate, n in controls.items()
        for i in range(n + 1)
        for site in (1, 2)
    ]
    return pd.DataFrame(rows, columns=["plate", "well", "site", "compound"])


def labelled(meta: pd.DataFrame) -> Profiles:
    return Profiles(np.zeros((len(meta), 1)), meta, pd.Index(["f"]))


def test_a_share_of_each_plates_control_wells_is_left_out() -> None:
    meta = wells({"a": 9, "b": 2, "c": 1})
    control = (meta["compound"] == "DMSO").to_numpy()
    fitted = rows_to_fit(labelled(meta), control, withhold=0.25, rng=np.random.default_rng(0))
    held = meta[control & ~fitted].groupby(["plate", "well"]).size()
    assert held.tolist() == [2, 2, 2]  # both sites of each well
    # and none of a plate with one
    assert held.groupby("plate").size().to_dict() == {"a": 2, "b": 1}
    assert not (fitted & ~control).any()
    again = rows_to_fit(labelled(meta), control, withhold=0.25, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(fitted, again)
    np.testing.assert_array_equal(
        rows_to_fit(labelled(meta), control, withhold=0, rng=np.random.default_rng(0)), control
    )
    unnamed = meta[["compound"]]  # no plates, no wells: each row is one
    fitted = rows_to_fit(labelled(unnamed), control, withhold=0.25, rng=np.random.default_rng(0))
    assert (control & ~fitted).sum() == 6


def test_wells_stay_marked_through_sites_and_later_corrections() -> None:
    meta = wells({"a": 3})
    profiles = labelled(meta)
    first = profiles.marked(((meta["well"] == "W0") & (meta["site"] == 1)).to_numpy())
    assert set(first.meta.loc[first.fitted(), "well"]) == {"W0"}
    assert first.fitted().sum() == 2
    both = first.marked((meta["well"] == "W2").to_numpy())
    assert both.averaged(["plate", "well"]).fitted().tolist() == [True, False, True, False]
    assert not profiles.fitted().any()
    with pytest.raises(SchemaError, match="label 'fitted' is"):
        labelled(meta.assign(fitted="yes")).fitted()


def test_too_few_controls_for_magnitude_leave_the_other_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meta = pd.DataFrame({"drug": ["DMSO"] * 4 + list("abcd") * 3})
    profiles = Profiles(np.random.default_rng(0).normal(size=(16, 5)), meta, pd.Index(range(5)))
    rows = measures(
        profiles, same="drug", control="drug=DMSO", draws=99, rng=np.random.default_rng(0)
    )
    assert rows[-1]["measure"] == "active (q < .05)"
    assert "magnitude not measured: 4 controls" in caplog.text
