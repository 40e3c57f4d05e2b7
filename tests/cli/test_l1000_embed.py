"""``l1000 train, embed, evaluate, neighbours``: from a file to a page, and what they say to
mistakes."""

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest

from perturbgen.cli import _run
from perturbgen.data import write_h5ad
from perturbgen.simulation.screen import screen_anndata, screen_settings
from tests.conftest import without_pictures

TINY = (
    "model.size=8",
    "model.encoder.depth=2",
    "model.encoder.growth=8",
    "training.epochs=2",
    "training.batch_size=64",
    "data.test=0.3",
    "data.validation=0.2",
)
RUN = "runs/0001-embedder-s0"


def command(*words: str) -> int:
    return _run([str(word) for word in words])


@pytest.fixture(scope="module", autouse=True)
def trained(tmp_path_factory):
    with without_pictures(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("l1000"))
        write_h5ad(screen_anndata(screen_settings("tiny"), seed=0), "screen.h5ad")
        sets = [word for value in TINY for word in ("--set", value)]
        assert command("l1000", "train", "--data", "screen.h5ad", *sets, "--device", "cpu") == 0
        yield


def test_embedding_goes_into_an_h5ad_with_controls(capsys):
    assert command("l1000", "embed", RUN, "--out", "e.h5ad") == 0
    adata = anndata.read_h5ad("e.h5ad")
    assert adata.obsm["X_embedding"].shape == (len(anndata.read_h5ad("screen.h5ad")), 8)
    assert adata.obs["control"].any()
    assert np.allclose(np.linalg.norm(adata.obsm["X_embedding"], axis=1), 1, atol=1e-5)


def test_evaluate_writes_a_page_with_every_method(capsys):
    assert command("l1000", "evaluate", RUN, "--out", "evaluation", "--json") == 0
    found = json.loads(capsys.readouterr().out)[0]
    methods = {row["method"] for row in found["methods"]}
    assert {
        "trained embedding",
        "the network, untrained",
        "WCCN, PCA-64",
        "z-scores, Spearman",
        "random",
    } <= methods
    assert {row["variant"] for row in found["controls"]} >= {
        "other plate",
        "shuffled labels",
        "the plate itself",
    }
    page = Path("evaluation/report.html").read_text()
    for words in ("Retrieval curves", "Neighbours", "Leaks of the plate", "replicate metric"):
        assert words in page


def test_evaluate_probes_mechanisms_from_the_samples_or_from_a_table(capsys, monkeypatch):
    monkeypatch.setattr("perturbgen.l1000.embedder.probe._EPOCHS", 2)
    monkeypatch.setattr("perturbgen.l1000.embedder.probe._FOLDS", 2)
    obs = anndata.read_h5ad("screen.h5ad").obs
    told = obs[~obs["control"]].drop_duplicates("perturbagen")[["perturbagen", "moa"]]
    told.rename(columns={"perturbagen": "pert_id", "moa": "mechanism"}).to_csv(
        "drugs.txt", sep="\t", index=False
    )
    words = ("l1000", "evaluate", RUN, "--part", "all", "--json")
    assert command(*words, "--probe", "moa", "--out", "probed") == 0
    found = json.loads(capsys.readouterr().out)[0]["probes"]["moa"]
    assert {"trained embedding", "trained embedding, shuffled", "z-scores", "WCCN, PCA-64"} <= {
        row["input"] for row in found
    }
    assert {row["classifier"] for row in found} == {
        "logistic",
        "DNN",
        "1D-CNN",
        "most frequent class",
    }
    assert "Probe: moa" in Path("probed/report.html").read_text()
    assert Path("probed/probe_moa.parquet").is_file()
    assert command(*words, "--probe", "mechanism", "--perturbagens", "drugs.txt") == 0
    assert json.loads(capsys.readouterr().out)[0]["probes"]["mechanism"] == found


def test_damaged_runs_and_empty_files_are_said_to_be(capsys):
    shutil.copytree(RUN, "damaged")
    Path("damaged/parts.parquet").write_text("xx")
    for words in (["evaluate", "damaged"], ["train", "--resume", "damaged"]):
        assert command("l1000", *words) == 2
        assert "damaged/parts.parquet is not a readable parquet file" in " ".join(
            capsys.readouterr().err.split()
        )
    adata = anndata.read_h5ad("screen.h5ad")
    write_h5ad(adata[:0].copy(), "none_left.h5ad")
    assert command("l1000", "embed", RUN, "none_left.h5ad") == 2
    assert "no profile to embed" in capsys.readouterr().err


def test_neighbours_are_found_by_id_and_by_name(capsys):
    assert command("l1000", "neighbours", RUN, "--of", "compound-3", "--json") == 0
    by_name = json.loads(capsys.readouterr().out)
    obs = anndata.read_h5ad("screen.h5ad").obs
    own = obs.loc[obs["name"] == "compound-3", "perturbagen"].astype(str).iloc[0]
    assert command("l1000", "neighbours", RUN, "--of", own, "--json") == 0
    assert json.loads(capsys.readouterr().out) == by_name
    assert 0 < sum(row["share"] for row in by_name) <= 1.0001
    assert not any(own in row["neighbour"] for row in by_name)


def test_resume_goes_on(capsys):
    shutil.copytree(RUN, "again")
    assert (
        command(
            "l1000", "train", "--resume", "again", "--set", "training.epochs=3", "--device", "cpu"
        )
        == 0
    )
    assert len(Path("again/metrics.jsonl").read_text().splitlines()) == 3


def test_a_dry_run_prints_a_configuration_that_can_be_read_again(capsys):
    assert command("l1000", "train", "--data", "screen.h5ad", "--dry-run") == 0
    Path("config.toml").write_text(capsys.readouterr().out)
    assert command("l1000", "train", "config.toml", "--dry-run") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "CONFIG.toml, --data FILE or --resume RUN"),
        (["train", "--data", "none.h5ad"], "none.h5ad"),
        (["train", "--data", "screen.h5ad", "--set", "data.label=drug"], "no column 'drug'"),
        (
            ["train", "--data", "screen.h5ad", "--set", "model.encoder.kind=cnn"],
            "model.encoder.kind",
        ),
        (["train", "--data", "screen.h5ad", "--resume", RUN], "--resume goes with"),
        (["train", "--resume", RUN, "--set", "model.size=3"], "changes what was trained"),
        (["train", "--data", "screen.h5ad", "--start", "nowhere"], "nowhere"),
        (["embed", RUN, "--out", "e.csv"], "e.csv"),
        (["embed", "nowhere"], "nowhere"),
        (["embed", RUN, "--device", "abacus"], "--device abacus"),
        (["evaluate", RUN, "e_none.h5ad"], "e_none.h5ad"),
        (["evaluate", RUN, "--plate", "plat"], "did you mean 'plate'"),
        (["evaluate", RUN, "--well", "wel"], "did you mean 'well'"),
        (["evaluate", RUN, "--probe", "mao"], "did you mean 'moa'"),
        (["evaluate", RUN, "--probe", "name"], "occur in two perturbagens or more"),
        (["evaluate", RUN, "--perturbagens", "config.toml"], "--perturbagens without --probe"),
        (["evaluate", RUN, "--probe", "moa", "--perturbagens", "none.txt"], "none.txt"),
        (["neighbours", RUN, "--of", "compound-x"], "no profile of 'compound-x'"),
    ],
)
def test_mistakes_are_explained(capsys, words, said):
    assert command("l1000", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
