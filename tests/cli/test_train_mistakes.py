"""What an unlucky user brings to train, encode and evaluate: wrong or damaged files, devices that
are not there."""

import shutil

import pandas as pd
import pytest

from perturbgen.cli import _run as command
from tests.train.conftest import make_cells

pytestmark = pytest.mark.usefixtures("no_pictures")

CONFIG = """name = "tiny"
[data]
path = "cells.h5ad"
[conditions.cell_type]
[model]
latent = 2
decoder.hidden = [8]
[training]
epochs = 1
batch_size = 64
"""
SPLIT = '# {"kind": "by hand", "apart": []}\n'
FILES = {
    "again.csv": f"{SPLIT}obs_id,part\nc1,train\nc1,validation\n",
    "elsewhere.csv": f"{SPLIT}cell_type,donor,part\nB,d1,train\n",
    "other.csv": f"{SPLIT}obs_id,part\nzzz,train\n",
    "gap.csv": "name,value\nB,1\nNK,\nT,3\n",
}
BINARY = b"\x89PNG\r\n\x1a\n\xff\xfe"


def explained(capsys, arguments, words):
    """The command ends with 2 and says so."""
    capsys.readouterr()
    assert command(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_cells().write_h5ad("cells.h5ad")
    twice = make_cells()
    twice.obs_names = ["c0", *twice.obs_names[:-1]]
    twice.write_h5ad("twice.h5ad")
    genes = make_cells()
    genes.var_names = ["g0", *genes.var_names[:-1]]
    genes.write_h5ad("genes.h5ad")
    make_cells()[:0].copy().write_h5ad("none.h5ad")
    for name, text in {"config.toml": CONFIG, **FILES}.items():
        (tmp_path / name).write_text(text)
    for name in ("picture.csv", "picture.parquet"):
        (tmp_path / name).write_bytes(BINARY)
    return tmp_path


DESCRIBED = "conditions.cell_type.encoding=descriptors"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=twice.h5ad"], "twice.h5ad holds 1 duplicated cell: 'c0'"),
        (["data.path=genes.h5ad"], "genes.h5ad holds 1 duplicated gene: 'g0'"),
        (["data.path=none.h5ad"], "none.h5ad is empty: 0 cells x "),
        (["seed=-1"], "(in config.toml with --set)"),
        (["data.split=picture.csv"], "picture.csv is not a split file"),
        (["data.split=again.csv"], "again.csv holds 1 duplicated row: 'c1'"),
        (["data.split=elsewhere.csv"], "has no column 'donor'"),
        (["data.split=other.csv"], "the split was made for other data"),
        (["data.validation=0.999"], "data.validation = 0.999 puts none"),
        (
            [DESCRIBED, "conditions.cell_type.descriptors=picture.csv"],
            "picture.csv is not a readable CSV",
        ),
        (
            [DESCRIBED, "conditions.cell_type.descriptors=picture.parquet"],
            "not a readable parquet file",
        ),
        ([DESCRIBED, "conditions.cell_type.descriptors=gap.csv"], "expected     finite numbers"),
        (
            [
                DESCRIBED,
                "conditions.cell_type.descriptors=gap.csv",
                "conditions.cell_type.unknown=true",
            ],
            "add rows",
        ),
        (["seed=18446744073709551616"], "'seed'"),
    ],
)
def test_wrong_files_are_explained_before_a_run_is_made(folder, capsys, overrides, words):
    sets = [part for override in overrides for part in ("--set", override)]
    explained(capsys, ["train", "config.toml", "--device", "cpu", *sets], words)
    assert not (folder / "runs").exists()


def test_more_processes_than_cores_are_refused_before_any_is_started(folder, capsys, monkeypatch):
    monkeypatch.setattr("perturbgen.train.run.cores", lambda: 2)
    arguments = [
        "train",
        "config.toml",
        "--device",
        "cpu",
        "--devices",
        "4",
        "--set",
        "training.batch_size=8",
    ]
    explained(capsys, arguments, "--devices 4: this machine has 2 cores")


def test_a_file_in_place_of_the_runs_folder_is_told_before_processes_are_started(
    folder, capsys, monkeypatch
):
    monkeypatch.setattr("perturbgen.train.run.launch", None)
    explained(
        capsys, ["train", "config.toml", "--runs", "gap.csv", "--devices", "2"], "gap.csv is a file"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run for all the damage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        make_cells().write_h5ad("cells.h5ad")
        with open("config.toml", "w") as handle:
            handle.write(CONFIG)
        assert command(["train", "config.toml", "--device", "cpu"]) == 0
        yield


def test_a_damaged_run_directory_says_which_file_is_damaged(trained, capsys):
    from pathlib import Path

    run, copy = Path("runs/0001-tiny-s0"), Path("copy")
    encode, resume = (
        ["encode", "copy", "cells.h5ad", "--out", "l.h5ad"],
        ["train", "--resume", "copy"],
    )
    for name, verb in (
        ("model.json", encode),
        ("cells.parquet", resume),
        ("metrics.jsonl", resume),
        ("checkpoint/best.pt", encode),
        ("checkpoint/last.pt", resume),
        ("config.toml", resume),
    ):
        shutil.copytree(run, copy, dirs_exist_ok=True)
        (copy / name).write_bytes(BINARY)
        explained(capsys, verb, f"copy/{name}")
        (copy / name).unlink()
        assert command(verb) == 2
        assert str(copy) in capsys.readouterr().err


def test_conditions_edited_after_training_are_explained(trained, capsys):
    from pathlib import Path

    shutil.copytree("runs/0001-tiny-s0", "edited")
    text = Path("edited/config.toml").read_text()
    Path("edited/config.toml").write_text(
        text.replace("conditions.cell_type", "conditions.compound")
    )
    explained(
        capsys, ["encode", "edited", "cells.h5ad", "--out", "l.h5ad"], "edited after training"
    )


def test_a_file_without_cells_is_explained(trained, capsys):
    make_cells()[:0].copy().write_h5ad("none.h5ad")
    for verb in (["encode", "--out", "l.h5ad"], ["evaluate"]):
        explained(
            capsys, [verb[0], "runs/0001-tiny-s0", "none.h5ad", *verb[1:]], "none.h5ad has no cells"
        )


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_explained(trained, capsys, device):
    explained(
        capsys,
        ["evaluate", "runs/0001-tiny-s0", "cells.h5ad", "--device", device],
        f"--device {device}",
    )


def test_cells_with_one_name_have_no_part(trained, capsys):
    cells = make_cells()
    cells.obs_names = ["c0", *cells.obs_names[:-1]]
    cells.write_h5ad("twice.h5ad")
    explained(
        capsys,
        ["evaluate", "runs/0001-tiny-s0", "twice.h5ad", "--part", "validation"],
        "duplicated cell: 'c0'",
    )


def test_a_killed_runs_half_written_record_is_replaced(tmp_path):
    from perturbgen.train.loop import _append_record

    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "x": 1}\n{"epoch": 1, "x"')
    _append_record(tmp_path, {"epoch": 1, "x": 2})
    assert pd.read_json(tmp_path / "metrics.jsonl", lines=True)["x"].tolist() == [1, 2]
