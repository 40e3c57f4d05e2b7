"""The L1000 experiments on a tiny screen: what is in which table; nothing tested is trained on."""

import sys

import pandas as pd
import pytest

from perturbgen.data import write_h5ad
from perturbgen.simulation.screen import screen_anndata, screen_settings

SHORT = {
    "training": {"epochs": 2, "batch_size": 32},
    "model": {"size": 8, "encoder": {"depth": 2, "growth": 8}},
}


@pytest.fixture
def screen(tmp_path, monkeypatch):
    monkeypatch.setattr("perturbgen.l1000.embedder.probe._EPOCHS", 1)
    overrides = ["design.compounds=40", "design.genetic=12", "biology.mechanisms=4"]
    write_h5ad(
        screen_anndata(screen_settings("tiny", overrides=overrides), seed=0),
        tmp_path / "screen.h5ad",
    )
    return tmp_path / "screen.h5ad"


def test_screen_ranks_every_method_and_probes_mechanisms(screen, experiment, tmp_path):
    run = experiment("l1000")
    sys.modules["l1000_run"].SCREEN = SHORT
    assert run("screen", "--data", screen, "--seeds", 1, "--out", tmp_path) == 0
    table = pd.read_csv(tmp_path / "screen.csv").set_index("method")
    probed = table["moa: logistic"].notna()
    methods = {
        "embedding",
        "z-scores, cosine",
        "PCA-64",
        "WCCN, PCA-64",
        "replicate metric (PeML-like)",
    }
    assert methods == set(table.index[probed & table["map"].notna()])
    assert set(table.index[table["map"].isna()]) == {
        "most frequent class",
        "embedding, shuffled mechanisms",
    }
    assert table.loc["random", "map"] < table.loc["WCCN, PCA-64", "map"]


def test_transfer_compares_both_starts_on_the_same_compounds(
    screen, experiment, tmp_path, monkeypatch
):
    run = experiment("l1000")
    sys.modules["l1000_run"].SCREEN = SHORT
    monkeypatch.setattr(sys.modules["transfer"], "SIZES", (6, 20))
    monkeypatch.setattr(sys.modules["transfer"], "STEPS", 2)
    assert run("transfer", "--data", screen, "--seeds", 1, "--out", tmp_path) == 0
    table = pd.read_csv(tmp_path / "transfer.csv").set_index("method")
    methods = ("WCCN, PCA-64", "from scratch", "fine-tuned")
    assert list(table.index) == [
        "hairpins only",
        *(f"{n} compounds, {name}" for n in (6, 20) for name in methods),
    ]
    assert table["queries"].nunique() == 1
    assert (
        table.loc["6 compounds, from scratch", "map"] != table.loc["6 compounds, fine-tuned", "map"]
    )


def test_few_compounds_are_trained_on_for_as_many_steps_as_many(
    screen, experiment, tmp_path, monkeypatch
):
    experiment("l1000")
    transfer = sys.modules["transfer"]
    monkeypatch.setattr(transfer, "STEPS", 20)
    monkeypatch.setattr(transfer, "BATCH", 50)
    steps = []
    for compounds in (3, 10, 20):
        settings = transfer.few_compounds(screen, tmp_path / f"{compounds}", SHORT, compounds, 0)
        steps.append(transfer.learn(settings, tmp_path / f"{compounds}", which="last")[1].step)
    assert steps == [20, 20, 20]


def test_a_screen_too_small_to_transfer_to_is_refused(screen, experiment, capsys, monkeypatch):
    run = experiment("l1000")
    sys.modules["l1000_run"].SCREEN = SHORT
    monkeypatch.setattr(sys.modules["transfer"], "STEPS", 2)
    assert run("transfer", "--data", screen, "--seeds", 1) == 2
    assert "40 compounds are too few to train on 100" in " ".join(capsys.readouterr().err.split())
