"""BBBC021's network beside simple features, on a fixture of a few fields and one epoch: every
table, and its parts.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from matched import by_chance, pooled

from perturbgen import cli
from perturbgen.images.network.evaluate import matchings
from perturbgen.profiles import Profiles
from perturbgen.simulation.images import ImageLayout, write_bbbc021
from tests.images.network.test_compounds import planted

SCRIPT = Path(__file__).parents[2] / "experiments" / "bbbc021" / "network.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bbbc021_network", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vehicle(week_apart: float, plate_apart: float) -> Profiles:
    """DMSO wells of three weeks of two plates, which differ by so much."""
    rng = np.random.default_rng(0)
    rows = [
        (f"Week{w}", f"Week{w}_{p}", "DMSO") for w in range(3) for p in range(2) for _ in range(20)
    ]
    meta = pd.DataFrame(rows, columns=["week", "plate", "compound"])
    week, plate = pd.factorize(meta["week"])[0], pd.factorize(meta["plate"])[0]
    values = rng.normal(size=(len(meta), 5)) + week_apart * np.eye(5)[week]
    return Profiles(
        values + plate_apart * rng.normal(size=(6, 5))[plate],
        meta,
        pd.Index([f"f{i}" for i in range(5)]),
    )


def test_weeks_are_told_from_plates_that_were_left_out(script: ModuleType) -> None:
    assert script.week_told(vehicle(8.0, 0.0)) == pytest.approx(1, abs=0.02)
    assert script.week_told(vehicle(0.0, 0.0)) == pytest.approx(1 / 3, abs=0.15)
    # what only plates share is no knowledge of weeks
    assert script.week_told(vehicle(0.0, 9.0)) < 0.9


def test_weeks_are_told_from_wells_that_the_correction_has_not_seen(script: ModuleType) -> None:
    apart, alike = vehicle(8.0, 0.0), vehicle(0.0, 0.0)
    fitted = np.arange(len(apart)) % 2 == 0  # these lie together, the others apart
    values = np.where(fitted[:, None], alike.values, apart.values)
    meta = apart.meta.assign(fitted=fitted)
    assert script.week_told(Profiles(values, meta, apart.features)) == pytest.approx(1, abs=0.02)
    assert script.week_told(Profiles(values, meta.assign(fitted=~fitted), apart.features)) < 0.6


def test_seeds_are_averaged_line_by_line(script: ModuleType) -> None:
    rows = [
        {"features": "a", "correction": "raw", "NSC": 0.5},
        {"features": "a", "correction": "raw", "NSC": 0.7},
        {"features": "b", "correction": "raw", "wells": 0.25},
    ]
    assert script.average(rows) == [
        {"features": "a", "correction": "raw", "NSC": "0.60 (0.50 to 0.70)", "wells": "not asked"},
        {"features": "b", "correction": "raw", "NSC": "not asked", "wells": "0.25"},
    ]
    assert script.average([]) == []


def test_spoilt_fields_are_outliers_of_simple_features(script: ModuleType, tmp_path: Path) -> None:
    from handmade import measured

    from perturbgen.images.network.fields import Fields
    from perturbgen.images.network.settings import ImageData

    root = write_bbbc021(tmp_path / "images", layout=ImageLayout(artefacts=12))
    fields = Fields.read(ImageData(path=root))
    row = script.outlier_rows(
        root, {"simple": measured(fields.files, fields.table, fields.channels)}
    )[0]
    assert min(row["knn"], row["mahalanobis"]) > 0.85
    noise = Profiles(
        np.random.default_rng(0).normal(size=(len(fields), 6)),
        fields.table,
        pd.Index(list("abcdef")),
    )
    assert script.outlier_rows(root, {"noise": noise})[0]["knn"] == pytest.approx(0.5, abs=0.25)


@pytest.mark.slow
def test_every_table_from_images_to_page(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slow for its nine networks of an epoch each."""
    import typer

    root = write_bbbc021(tmp_path / "images", layout=ImageLayout(shape=(16, 16), artefacts=5))
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(script.main)
    quick = ["--seeds", "1", "--set", "training.epochs=1", "--set", "model.widths=[4]"]
    assert cli._run([str(root), "--out", str(tmp_path / "out"), *quick], program=program) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    for words in (
        "All treatments seen in training",
        "Compounds never seen",
        "Spoilt fields",
        "network, mechanisms",
    ):
        assert words in page
    assert "These images are drawn" not in page  # a folder was named
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 9


def test_answers_of_several_networks_are_one_table_and_chance_is_low() -> None:
    found = matchings(planted(0.01), withheld=["a0", "c1"])
    assert str(pooled([found, found])["NSC of new compounds"]) == "4/4"
    chance = by_chance(planted(0.01), draws=50, rng=np.random.default_rng(0))
    assert 0.2 < chance["NSC"] < 0.7
