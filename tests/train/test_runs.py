"""What a run leaves behind, how it is read again, and what is refused."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from perturbgen.core.errors import ConfigError, CountsError, InputError, SchemaError, StorageError
from perturbgen.core.files import only_writer
from perturbgen.data import Split
from perturbgen.train import CELLS, load_run, resume, train
from perturbgen.train.beginnings import gene_shares
from perturbgen.train.board import _hyper_parameters, _in_few_colours
from perturbgen.train.gauges import LatentSpace, active_dimensions
from perturbgen.train.heldout import CellJudge, probe_rows


@pytest.fixture
def run(finished):
    return finished / "runs" / "0001-tiny-s0"


@pytest.fixture
def copy(run, tmp_path):
    """A run that may be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_directory_holds_what_is_needed(run):
    names = {path.name for path in run.iterdir()}
    assert {
        "config.toml",
        "env.json",
        "model.json",
        "cells.parquet",
        "metrics.jsonl",
        "checkpoint",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    env = json.loads((run / "env.json").read_text())
    assert all(value.startswith("sha256:") for value in env["data"].values())


def test_tensorboard_has_curves_pictures_projector_and_hyper_parameters(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    tags = events.Tags()
    for name in (
        "train/objective",
        "validation/kl",
        "schedule/KL weight",
        "gauges/active latent dimensions",
    ):
        assert name in tags["scalars"]
    assert set(tags["images"]) == {"latent/principal components", "predictive/real and generated"}
    assert len(events.Scalars("train/objective")) == 3
    # a gauge that is read at the end alone says nothing of when the collapse happened
    assert len(events.Scalars("gauges/active latent dimensions")) == 3
    assert len(events.Scalars("gauges/between-condition variance ratio")) == 3
    metadata = next(run.glob("*/latent/metadata.tsv")).read_text().splitlines()
    assert metadata[0].split("\t") == ["cell_type", "compound", "split"]
    assert len(metadata) == 91
    assert any("_hparams_" in tag for tag in events.summary_metadata)


def test_an_empty_latent_space_is_a_sentence_and_a_number_of_the_runs_table(
    settings, tmp_path, caplog
):
    options, rarely = {"runs": tmp_path / "runs", "accelerator": "cpu"}, ["board.every=20"]
    with caplog.at_level(logging.WARNING):
        empty = train(settings("annealing.weight=1000.0", "training.epochs=8", *rarely), **options)
    assert "none of the 2 latent dimensions is active" in caplog.text
    caplog.clear()
    ending = CELLS.ending(empty)
    assert 0 <= ending["kl"] < 0.1
    assert ending["active_dimensions"] == "0 of 2"
    assert ending["latent"].startswith("none of the 2 latent dimensions is active (KL ")
    # a weak penalty leaves a latent that says something of a cell, and nothing is said of it
    with caplog.at_level(logging.WARNING):
        full = train(settings("annealing.weight=0.01", "training.epochs=12", *rarely), **options)
    assert "latent dimensions" not in caplog.text
    ending = CELLS.ending(full)
    assert ending["kl"] > 0.5
    assert ending["active_dimensions"] in ("1 of 2", "2 of 2")
    assert "latent" not in ending


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (LatentSpace(0, 10, 0.01), "none of the 10 latent dimensions is active (KL 0.01 nats"),
        (LatentSpace(0, 10), "none of the 10 latent dimensions is active: "),
        (LatentSpace(2, 10, 3.0), "2 of 10 latent dimensions are active"),
        (LatentSpace(3, 10, 3.0), ""),
        (LatentSpace(10, 10, 0.02), "10 of 10 latent dimensions are active (KL 0.02"),
        (LatentSpace(1, 2), ""),
    ],
)
def test_what_is_said_of_a_latent_space(space, told, tmp_path):
    assert space.sentence().startswith(told)
    assert bool(space.sentence()) == bool(told)
    # no advice that a model without a KL cannot follow
    assert ("annealing" in space.sentence()) == (bool(told) and space.kl is not None)
    space.write(tmp_path)
    assert LatentSpace.read(tmp_path) == space
    (tmp_path / "latent.json").write_text("[]")
    assert LatentSpace.read(tmp_path) is None


def test_labels_of_many_values_get_a_column_in_few_colours():
    compounds = [f"c{i}" for i in range(60) for _ in range(60 - i)]
    labels = pd.DataFrame({"cell_type": "B", "compound": compounds})
    found = _in_few_colours(labels)
    assert list(found) == ["cell_type", "compound", "compound (top 49)"]
    few = found["compound (top 49)"]
    assert few.nunique() == 50
    assert set(labels["compound"][few == "other"]) == {f"c{i}" for i in range(49, 60)}
    assert (few[few != "other"] == labels["compound"][few != "other"]).all()


def test_hyper_parameters_are_what_runs_differ_in(settings):
    found = _hyper_parameters(settings("training.learning_rate=0.01", "model.encoder_dropout=0.2"))
    assert found["training.learning_rate"] == 0.01
    assert found["model.encoder_dropout"] == 0.2
    assert found["model.kind"] == "nbvae"
    # defaults that no run changed fill a table with constants
    assert not {"training.clip_norm", "annealing.cycles", "model.radius"} & set(found)


def test_active_dimensions_are_counted_in_the_priors_own_measure(settings, tmp_path, run):
    dgd = train(settings("model.kind=dgd", "training.epochs=1"), runs=tmp_path, accelerator="cpu")
    for trained, scale in ((load_run(run), 1.0), (load_run(dgd), 0.03)):
        model, generator = trained.model, torch.Generator().manual_seed(1)
        if scale < 1:
            # a DGD's mixture may shrink to a thousandth of a standard normal's variance
            model.mixture.log_precision.data.fill_(-2 * np.log(scale))
        points = model.prior_sample(1000, generator).detach().numpy()
        assert points.var(axis=0) == pytest.approx(scale**2, rel=0.2)
        assert active_dimensions(model, points) == 2
        assert active_dimensions(model, points * [1, 0.05]) == 1


def test_the_loaded_model_gives_the_same_numbers_as_the_trained_one(run, cells_file):
    trained = load_run(run)
    store = trained.open_cells(cells_file)
    latents = CellJudge(trained, store).latents()
    assert latents.shape == (90, 2)
    again = load_run(run)
    np.testing.assert_array_equal(latents, CellJudge(again, again.open_cells(cells_file)).latents())
    assert not trained.model.training


def test_genes_in_another_order_are_put_in_order_and_others_refused(run, cells, tmp_path):
    trained = load_run(run)
    cells.write_h5ad(tmp_path / "a.h5ad")
    cells[:, ::-1].copy().write_h5ad(tmp_path / "b.h5ad")
    one, other = (
        CellJudge(trained, trained.open_cells(tmp_path / f)).log_likelihoods(samples=4, seed=0)
        for f in ("a.h5ad", "b.h5ad")
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)
    cells[:, 1:].copy().write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(SchemaError, match="missing 'g0'"):
        trained.open_cells(tmp_path / "c.h5ad")


def test_an_unseen_category_is_refused_with_its_name(run, cells, tmp_path):
    cells.obs["compound"] = cells.obs["compound"].astype(str).replace("X", "Y")
    cells.write_h5ad(tmp_path / "new.h5ad")
    with pytest.raises(
        SchemaError, match=r"'compound' has values that the run's file does not have: 'Y'"
    ):
        load_run(run).open_cells(tmp_path / "new.h5ad")


def test_normalised_data_and_empty_cells_are_refused(settings, cells, cells_file):
    cells.X = sparse.csr_matrix(cells.X.multiply((np.arange(90) != 3)[:, None]))
    cells.write_h5ad(cells_file)
    with pytest.raises(CountsError, match=r"1 cells have no counts at all: 'c3'"):
        CELLS.read(settings())
    cells.X = cells.X.astype(float) * 0.5
    cells.write_h5ad(cells_file)
    with pytest.raises(CountsError, match=r"raw UMI counts|non-integers"):
        CELLS.read(settings())


def test_a_checkpoint_of_another_model_or_version_is_refused(copy):
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(text.replace("latent = 2", "latent = 3"))
    with pytest.raises(InputError, match=r"not of the model in its config\.toml"):
        load_run(copy)
    (copy / "config.toml").write_text(text)
    card = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(InputError, match="format 99"):
        load_run(copy)
    (copy / "model.json").write_text(json.dumps({**card, "kind": "dgd"}))
    with pytest.raises(InputError, match=r"describes a dgd, config\.toml a nbvae"):
        load_run(copy)


def test_a_truncated_checkpoint_is_said_to_be_one(copy):
    path = copy / "checkpoint" / "best.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_run(copy)


def test_a_checkpoint_that_runs_code_is_refused(copy):
    class Evil:
        def __reduce__(self):
            return (print, ("hello",))

    torch.save({"model": Evil()}, copy / "checkpoint" / "best.pt")
    with pytest.raises(InputError, match="cannot be read"):
        load_run(copy)


def test_parts_of_the_run_can_be_chosen(run, cells_file):
    trained = load_run(run)
    held = trained.open_cells(cells_file, part="validation")
    assert len(held) == 9
    with pytest.raises(ConfigError, match="no cells in part 'test'"):
        trained.open_cells(cells_file, part="test")


def test_a_split_file_decides_who_is_trained_on(settings, cells, tmp_path):
    from perturbgen.data.splits import Split

    parts = pd.Series(
        ["train"] * 50 + ["validation"] * 20 + ["test"] * 20, pd.Index(cells.obs_names, name="cell")
    )
    Split(parts, "mine").write(tmp_path / "split.csv")
    found = CELLS.read(settings(f"data.split='{tmp_path / 'split.csv'}'"))
    assert (len(found.train), len(found.validation)) == (50, 20)
    conditions = pd.MultiIndex.from_product(
        [["B", "NK", "T"], ["DMSO", "X"]], names=["cell_type", "compound"]
    )
    Split(pd.Series(["train", "test"] * 3, conditions), "conditions").write(tmp_path / "split.csv")
    found = CELLS.read(settings(f"data.split='{tmp_path / 'split.csv'}'"))
    assert set(found.train.obs["compound"]) == {"DMSO"}


def test_a_run_from_when_a_split_file_alone_decided_is_gone_on_with(settings, cells, tmp_path):
    parts = pd.Series(["train"] * 70 + ["test"] * 20, pd.Index(cells.obs_names, name="cell"))
    Split(parts, "mine").write(tmp_path / "split.csv")
    begun = train(settings(f"data.split='{tmp_path / 'split.csv'}'"), runs=tmp_path / "runs")
    config = (begun / "config.toml").read_text()
    assert "validation" not in config
    # what older versions stored of every run
    (begun / "config.toml").write_text(config.replace("[data]", "[data]\nvalidation = 0.1"))
    resume(begun, ["training.epochs=4"])
    assert load_run(begun).parts().value_counts().to_dict() == {"train": 70}


def test_descriptors_make_unseen_categories_known(settings, tmp_path, cells, cells_file):
    table = pd.DataFrame(
        {"compound": ["DMSO", "X", "New"], "a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 5.0]}
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    options = (
        "conditions.compound.encoding=descriptors",
        f"conditions.compound.descriptors='{tmp_path}/table.csv'",
    )
    run = train(settings(*options), runs=tmp_path / "runs", accelerator="cpu")
    cells.obs["compound"] = "New"
    cells.write_h5ad(cells_file)
    trained = load_run(run)
    assert len(CellJudge(trained, trained.open_cells(cells_file)).latents()) == 90
    table[:1].to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(SchemaError, match="no descriptors for"):
        CELLS.read(settings(*options))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.components=4", "'components' is no setting of a nbvae"),
        (
            "model={kind='gaussian_vae',encoder_input='raw'}",
            "'encoder_input' is no setting of a gaussian_vae",
        ),
        ("model={kind='dgd'}", "a dgd has none"),
        ("training.mixture_rate=0.1", "'training.mixture_rate' is of a dgd"),
        ("model.decoder.dispersion=gene-category", "go together"),
        (
            "model.decoder={dispersion='gene-category',dispersion_by='plate'}",
            "none of the conditions",
        ),
        ("conditions.compound.encoding=descriptors", "go together"),
        ("training.lr=1", "unknown key 'training.lr'"),
        ("training.epochs=0", "greater than or equal to 1"),
    ],
)
def test_settings_that_would_be_ignored_or_cannot_work_are_refused(settings, override, words):
    with pytest.raises(ConfigError, match=words):
        settings(override)


def test_shares_are_those_of_the_counts(settings, cells):
    found = CELLS.read(settings("data.validation=0"))
    column = np.asarray(cells.X.sum(0)).ravel() + 0.5
    np.testing.assert_allclose(gene_shares(found.train).numpy(), column / column.sum())


def test_the_likelihood_is_a_mean_and_its_error(run, cells_file, monkeypatch):
    trained = load_run(run)
    store = trained.open_cells(cells_file)
    found = np.array([-1.0, -2.0, -3.0]) * store.n_genes
    monkeypatch.setattr(CellJudge, "log_likelihoods", lambda *_, **__: found)
    row = CellJudge(trained, store).likelihood(samples=1, seed=0)
    assert row == {"cells": 3, "nll_per_gene": 2.0, "standard_error": pytest.approx(1 / np.sqrt(3))}


def test_probes_read_what_is_there_and_only_that():
    rng = np.random.default_rng(0)
    labels = pd.DataFrame(
        {"seen": rng.choice(["a", "b"], 300), "unseen": rng.choice(["a", "b"], 300), "one": "x"}
    )
    latents = rng.normal(size=(300, 3)) + 4 * (labels[["seen"]] == "a").to_numpy()
    rows = {row["label"]: row["accuracy"] for row in probe_rows(latents, labels, seed=0)}
    assert rows["seen"] > 0.95
    assert abs(rows["unseen"] - 0.5) < 0.12
    assert "one" not in rows


def test_predictive_checks_have_no_missing_numbers(run, cells_file):
    trained = load_run(run)
    judge = CellJudge(trained, trained.open_cells(cells_file))
    row = judge.numbers(samples=1, seed=0)["predictive"]
    assert all(np.isfinite(value) for value in row.values())
    assert 0.7 < row["ratio_of_median_library_sizes"] < 1.4


def test_a_category_that_only_withheld_cells_have_is_named(
    settings, cells, tmp_path, caplog, monkeypatch
):
    Split.leave_out(cells.obs, "compound", ["X"]).write(tmp_path / "split.csv")
    monkeypatch.setattr(logging.getLogger("perturbgen"), "propagate", True)
    CELLS.read(settings(f"data.split='{tmp_path / 'split.csv'}'"))
    assert "no training cell has compound 'X': its weights stay as they were drawn" in caplog.text


@pytest.mark.parametrize("name", ["best", "last"])
@pytest.mark.parametrize("size", [0, 1, 100, 1000, -20])
def test_a_cut_checkpoint_names_the_one_that_is_whole(copy, name, size):
    path = copy / "checkpoint" / f"{name}.pt"
    path.write_bytes(path.read_bytes()[:size])
    other = {"best": "last.pt", "last": "best.pt"}[name]
    words = "0 bytes" if size == 0 else rf"{name}\.pt cannot be read as a checkpoint[\s\S]*{other}"
    with pytest.raises(InputError, match=words):
        load_run(copy, which=name)


def test_parameters_that_are_no_numbers_are_refused(copy):
    path = copy / "checkpoint" / "best.pt"
    state = torch.load(path, weights_only=True)
    name = next(iter(state["model"]))
    state["model"][name] = torch.full_like(state["model"][name], float("nan"))
    torch.save(state, path)
    with pytest.raises(InputError, match=f"not finite: '{name}'"):
        load_run(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda last: last["state"].update(colour="red"),
        lambda last: last["state"].pop("epoch") and last.update(state=[1]),
        lambda last: last["optimisers"].append({}),
        lambda last: last["optimisers"][0].pop("param_groups"),
        lambda last: last.update(optimisers=3),
    ],
)
def test_a_resumed_run_that_cannot_go_on_is_left_as_it_was(copy, change):
    path = copy / "checkpoint" / "last.pt"
    last = torch.load(path, weights_only=True)
    change(last)
    torch.save(last, path)
    before = (copy / "config.toml").read_text()
    with pytest.raises(InputError, match="cannot be gone on with"):
        resume(copy, ["training.epochs=9"])
    assert (copy / "config.toml").read_text() == before


def test_a_run_that_is_being_trained_is_not_resumed(copy):
    with only_writer(copy), pytest.raises(StorageError, match=r"is being written by process \d+"):
        resume(copy)


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory: 9 TB"), KeyboardInterrupt])
def test_a_run_that_never_began_leaves_no_directory(settings, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("perturbgen.train.generative.gene_shares", fail)
    with pytest.raises(StorageError if isinstance(error, RuntimeError) else KeyboardInterrupt):
        train(settings(), runs=tmp_path / "runs", accelerator="cpu")
    assert not (tmp_path / "runs").exists()


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(settings, tmp_path):
    huge = settings("model.encoder=[10_000_000, 10_000_000]")
    with pytest.raises(StorageError, match=r"100,\d{3},\d{3},\d{3},\d{3} parameters needs"):
        train(huge, runs=tmp_path / "runs", accelerator="cpu")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow  # numba compiles UMAP
def test_a_map_leaves_torch_its_threads():
    code = (
        "import numpy as np, torch\n"
        "from perturbgen.train.board import _umap_of\n"
        "points = np.random.default_rng(0).normal(size=(300, 5))\n"
        "assert torch.get_num_threads() == 1\n"
        "assert _umap_of(points, seed=0).shape == (300, 2)\n"
        "assert torch.get_num_threads() == 1\n"
    )
    # in a process of its own, in which numba has not begun
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert ended.returncode == 0, ended.stderr
