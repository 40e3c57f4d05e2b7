"""Leak-proof splits, and the AUROC that counts a query as its own positive."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.l1000 import read_leakproof, without_self

SPLIT = {
    "name": "cellidsplit1_moasplit1",
    "train": [{"cell_lines": ["A"], "moas": ["m1", "m2"]}, {"cell_lines": ["B"], "moas": ["m3"]}],
    "val": [{"cell_lines": ["B"], "moas": ["m3"]}, {"cell_lines": ["A"], "moas": ["m1", "m2"]}],
    "test": [{"cell_lines": ["C"], "moas": ["m4"]}],
}


def write(tmp_path: Path, **changed: object) -> Path:
    """A split's file."""
    (tmp_path / "s.json").write_text(json.dumps(SPLIT | changed))
    return tmp_path / "s.json"


def test_a_sample_belongs_by_both_its_line_and_its_mechanism(tmp_path: Path) -> None:
    split = read_leakproof(write(tmp_path))
    samples = pd.DataFrame(
        {"cell_line": list("AABBCCA"), "moa": ["m1", "m3", "m3", "m4", "m4", None, "m1|m2"]},
        index=list("tuvwxyz"),
    )
    assert split.split(samples).parts.to_dict() == {
        "t": "train",
        "u": "unused",
        "v": "val",
        "w": "unused",
        "x": "test",
        "y": "unused",
        "z": "train",
    }
    assert split.split(samples, fold=1).parts[["t", "v", "x"]].tolist() == ["val", "train", "test"]
    with pytest.raises(SchemaError, match="has no fold 2"):
        split.split(samples, fold=2)
    with pytest.raises(SchemaError, match="no column 'moa'"):
        split.split(samples.drop(columns="moa"))
    with pytest.raises(SchemaError, match="no sample is in"):
        split.split(samples.assign(cell_line="x"))


@pytest.mark.parametrize(
    ("part", "line", "where"),
    [("val", "A", "train and val"), ("test", "A", "train and test"), ("val", "C", "val and test")],
)
def test_a_leak_is_found(tmp_path: Path, part: str, line: str, where: str) -> None:
    leaking = {"cell_lines": [line], "moas": ["m9"]}
    with pytest.raises(InputError, match=f"fold 0 has '{line}' in {where}"):
        read_leakproof(write(tmp_path, **{part: [leaking] * len(SPLIT[part])}))


@pytest.mark.parametrize("change", [{"train": [{}]}, {"test": []}, {"val": []}, {"train": 3}])
def test_other_json_is_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(InputError, match="no leak-proof split"):
        read_leakproof(write(tmp_path, **change))


def test_the_correction_undoes_the_count_of_oneself() -> None:
    rng = np.random.default_rng(0)
    positives, negatives = rng.normal(1, 1, 6), rng.normal(0, 1, 300)
    honest = (positives[:, None] > negatives).mean()
    published = (np.append(positives, 99)[:, None] > negatives).mean()
    assert published > honest
    assert without_self(published, 7) == pytest.approx(honest)
    assert np.isnan(without_self(1.0, 1))
    np.testing.assert_allclose(without_self(np.array([1.0, 0.75]), np.array([5, 2])), [1.0, 0.5])
