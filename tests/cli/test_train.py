"""The verbs of generative models, as they are typed."""

import json

import anndata as ad
import pytest

from perturbgen.cli import _run as command
from tests.train.conftest import make_cells

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "config.toml").write_text(
        'name = "tiny"\n[data]\npath = "cells.h5ad"\n[conditions.cell_type]\n[model]\nlatent = 2\n'
        "decoder.hidden = [8]\n[annealing]\nwarmup = 1\n[training]\nepochs = 2\nbatch_size = 16\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = ["train", "config.toml", "--device", "cpu"]


def test_from_a_config_to_latents_and_numbers(folder, capsys):
    assert command([*TRAIN, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["run"] == "runs/0001-tiny-s0"
    assert row["epochs"] == 2
    assert command(["encode", row["run"], "cells.h5ad", "--out", "latents.h5ad"]) == 0
    assert ad.read_h5ad("latents.h5ad").obsm["X_latent"].shape == (90, 2)
    capsys.readouterr()
    arguments = [
        "evaluate",
        row["run"],
        "cells.h5ad",
        "--part",
        "validation",
        "--samples",
        "4",
        "--out",
        "e.json",
    ]
    assert command([*arguments, "--json"]) == 0
    assert json.loads((folder / "e.json").read_text())["likelihood"]["cells"] == 9
    assert command(arguments) == 0
    assert "nats per gene and cell" in capsys.readouterr().out
    assert (
        command(["train", "--resume", row["run"], "--set", "training.epochs=3", "--device", "cpu"])
        == 0
    )


def test_a_dry_run_makes_nothing(folder, capsys):
    assert command([*TRAIN, "--dry-run"]) == 0
    assert "learning_rate = 0.001" in capsys.readouterr().out
    assert command([*TRAIN, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["latent"] == 2
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "either a CONFIG.toml or --resume"),
        (["train", "config.toml", "--resume", "runs"], "either a CONFIG.toml or --resume"),
        (["train", "nothing.toml"], "no configuration at nothing.toml"),
        (["train", "cells.h5ad"], "is not valid TOML"),
        (["train", "config.toml", "--data", "nothing.h5ad"], "nothing.h5ad"),
        (["train", "config.toml", "--set", "model.latnet=3"], "did you mean 'latent'"),
        (["train", "config.toml", "--set", "conditions.plate.width=3"], "obs has no such column"),
        (["train", "config.toml", "--device", "abacus"], "abacus"),
        (
            ["train", "config.toml", "--device", "cpu", "--devices", "3"],
            "cannot be shared by 3 devices",
        ),
        (["train", "--resume", "nowhere"], "no run directory at nowhere"),
        (["train", "--resume", "."], "has no checkpoint"),
        (["encode", "nowhere", "cells.h5ad", "--out", "x.h5ad"], "no run directory"),
        (["encode", "nowhere", "cells.h5ad", "--out", "x.csv"], ".h5ad"),
        (["evaluate", ".", "cells.h5ad"], "no description of a generative model of counts"),
        (["board", "nowhere"], "no folder of runs at nowhere"),
    ],
)
def test_mistakes_are_explained(folder, capsys, arguments, words):
    import re

    assert command(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error
