"""Images that are not what they should be, from the command line: exit code 2 and a sentence, never
a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from perturbgen.cli import _run
from perturbgen.simulation.images import ImageLayout, write_bbbc021

pytestmark = pytest.mark.usefixtures("no_pictures")

FAST = (
    "model.widths=[4]",
    "model.embedding=4",
    "training.epochs=1",
    "training.batch_size=16",
    "board.every=9",
)


@pytest.fixture(scope="module")
def bbbc021(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bbbc021(
        tmp_path_factory.mktemp("bad") / "bbbc021", layout=ImageLayout(shape=(16, 20))
    )


def train(data: Path, runs: Path, *settings: str) -> int:
    given = [word for value in (*FAST, *settings) for word in ("--set", value)]
    return _run(
        ["images", "train", "--data", str(data), "--runs", str(runs), "--device", "cpu", *given]
    )


def first(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def grey(path: Path, kind: type, size: int = 16) -> None:
    Image.fromarray(np.full((size, size), 99, kind)).save(path)


def truncated(root: Path) -> None:
    path = first(root, "HUVEC-01/**/*.png")
    path.write_bytes(path.read_bytes()[:80])


def mixed_depth_of_a_field(root: Path) -> None:
    grey(first(root, "HUVEC-01/**/*_w2.png"), np.uint16)


def smaller_validation(root: Path) -> None:
    for path in root.rglob("HUVEC-02/**/*.png"):
        grey(path, np.uint8, 8)


def deeper_validation(root: Path) -> None:
    for path in root.rglob("HUVEC-02/**/*.png"):
        grey(path, np.uint16)


def other_plates(root: Path) -> None:
    table = pd.read_csv(root / "metadata.csv")
    for column in ("experiment", "well_id", "site_id"):
        table[column] = table[column].str.replace("HUVEC", "HEPG2").str.replace("RPE", "U2OS")
    table.to_csv(root / "metadata.csv", index=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "cannot be read"),
        (mixed_depth_of_a_field, "channels of one field differ"),
        (smaller_validation, "is 8 x 8, uint8"),
        (deeper_validation, "is 16 x 16, uint16"),
        (other_plates, "belongs to a row of its metadata"),
    ],
)
def test_spoilt_images_end_training_with_a_sentence(
    spoil: Callable[[Path], None],
    message: str,
    plates: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(plates, tmp_path / "images")
    spoil(root)
    assert train(root, tmp_path / "runs") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.widths=[4,4,4,4,4]", "are too small for this backbone"),
        ("data.shrink=32", "images of 0 x 0 pixels are too small"),
        ("training.batch_size=1", "holds a single image"),
        ("data.validation=['HUVEC-01','HUVEC-02','RPE-01']", "is left to train on"),
        ("model.weights='nowhere.pt'", "no file of weights at nowhere.pt"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    setting: str, message: str, plates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(plates, tmp_path / "runs", setting) == 2
    assert message in capsys.readouterr().err


def test_images_of_another_size_are_not_embedded_by_a_run(
    trained: Path, plates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(plates, tmp_path / "images")
    smaller_validation(root)
    ask = [
        "images",
        "embed",
        str(trained),
        "--out",
        str(tmp_path / "e"),
        str(root),
        "--part",
        "validation",
    ]
    assert _run(ask) == 2
    assert "expected     16 x 16, uint8" in capsys.readouterr().err
    assert _run(["images", "evaluate", str(trained), str(tmp_path / "nowhere")]) == 2
    assert "no folder of images at" in capsys.readouterr().err


def test_a_single_image_has_no_statistics_of_its_own(
    trained: Path, plates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(plates, tmp_path / "images")
    for path in sorted(root.rglob("HUVEC-03/**/*.png"))[6:]:
        path.unlink()
    ask = ["images", "evaluate", str(trained), str(root)]
    assert _run(ask) == 2
    assert "'HUVEC-03' have a single image" in capsys.readouterr().err
    assert _run([*ask, "--norm", "running"]) == 0


def test_a_list_of_fields_that_broke_off_is_explained(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(trained, tmp_path / "run")
    path = copy / "fields.parquet"
    path.write_bytes(path.read_bytes()[:50])
    for arguments in (
        ["evaluate", str(copy)],
        ["train", "--resume", str(copy), "--set", "training.epochs=3"],
    ):
        assert _run(["images", *arguments]) == 2
        assert "is not a readable parquet file" in capsys.readouterr().err


def test_a_channel_that_is_gone_everywhere_is_said(
    plates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(plates, tmp_path / "images")
    for path in root.rglob("*_w3.png"):
        path.unlink()
    assert train(root, tmp_path / "runs") == 0
    assert "no image of channels 3 at all" in caplog.text


def test_mechanisms_that_do_not_join_cannot_be_withheld_nor_asked_about(
    bbbc021: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = shutil.copytree(bbbc021, tmp_path / "images")
    path = root / "BBBC021_v1_moa.csv"
    table = pd.read_csv(path)
    table.assign(compound=table["compound"] + "!").to_csv(path, index=False)
    assert train(root, tmp_path / "runs", "data.compounds.fold=0") == 2
    assert "no compound of the images has a mechanism" in capsys.readouterr().err
    assert train(root, tmp_path / "runs") == 0
    made = str(next((tmp_path / "runs").iterdir()))
    assert _run(["images", "evaluate", made, "--part", "validation"]) == 0
    assert "no neighbours: no treatment has a mechanism" in caplog.text
    assert _run(["images", "evaluate", made]) == 2
    assert "fix          --part train,validation" in capsys.readouterr().err
