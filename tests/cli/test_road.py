"""The road of README on a small world: simulate, ingest, split, train, predict."""

from pathlib import Path

import pandas as pd
import pytest

from perturbgen import cli
from perturbgen.data import Split

CONFIG = """name = "road"
[data]
path = "counts.h5ad"
[conditions.cell_type]
[conditions.compound]
[model]
kind = "nbvae"
encoder = [16]
latent = 3
[model.decoder]
hidden = [16]
[training]
epochs = 2
"""
IDS = "sim/id_map.csv"
SETUP = (
    "simulate sim --preset tiny",
    "ingest sim --out counts.h5ad",
    # small forests: how well they foretell is no matter here
    "samplers counts.h5ad --set trees=5 --folds 2 --out samplers",
)
TOLD = "factors fitted on them are too large"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("road")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in SETUP:
            assert cli._run(words.split()) == 0
        (folder / "config.toml").write_text(CONFIG)
    return folder


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], road: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a verb in the folder, and returns what it logged."""
    monkeypatch.chdir(road)

    def run(words: str) -> str:
        assert cli._run(words.split()) == 0
        return capfd.readouterr().err

    return run


def test_a_calibration_split_keeps_the_road_free_of_its_warning(said, road: Path) -> None:
    said(f"split counts.h5ad --kind calibration --conditions {IDS} --out split.csv")
    split = Split.read(road / "split.csv")
    assert set(split.parts) == {"train", "validation", "calibration"}
    said("train config.toml --split split.csv")
    wanted = f"--cells counts.h5ad --conditions {IDS} --samplers samplers --replicates 2"
    assert TOLD not in said(f"predict runs/latest-road {wanted} --out one.parquet")
    assert len(pd.read_parquet(road / "one.parquet")) == 40
    # the same model of all cells is warned of, and is not when another one calibrates it
    said("train config.toml --set name=all")
    assert TOLD in said(f"predict runs/latest-all {wanted} --out all.parquet")
    both = "runs/latest-all --calibration-run runs/latest-road"
    assert TOLD not in said(f"predict {both} {wanted} --out two.parquet")


def test_the_share_of_a_calibration_split_can_be_said(said, road: Path) -> None:
    verb = f"split counts.h5ad --kind calibration --conditions {IDS}"
    sizes = {}
    for share in ("0.3", "1"):
        said(f"{verb} --fraction {share} --out {share}.csv")
        sizes[share] = (Split.read(road / f"{share}.csv").parts == "calibration").sum()
    assert 0 < sizes["0.3"] < sizes["1"]


def test_a_split_that_is_no_calibration_is_told_by_its_options(
    road: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(road)
    verb = "split counts.h5ad --out x.csv --kind"
    for rest, words in (
        ("calibration", "--kind calibration needs --conditions"),
        (f"calibration --conditions {IDS} --fraction 2", "fraction of 2.0"),
        (f"random --conditions {IDS}", "--kind random does not use --conditions"),
    ):
        assert cli._run(f"{verb} {rest}".split()) == 2
        assert words in capsys.readouterr().err
    assert not (road / "x.csv").exists()
