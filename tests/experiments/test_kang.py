"""The Kang experiment on a few made-up cells: rows, honesty, and that nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

GENES = [f"g{i:02d}" for i in range(60)]
QUICK = (
    "--seeds",
    "1",
    "--set",
    "train.training.epochs=2",
    "--set",
    "models.nbvae.annealing.warmup=0",
    "--set",
    "replicates=2",
    "--set",
    "likelihood_samples=2",
    "--set",
    "top=10",
    "--json",
)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Three cell types of two patients; the stimulus moves the first genes of all of them."""
    rng = np.random.default_rng(0)
    rows = [
        (k, s, p)
        for k in ("B cells", "NK cells", "T cells")
        for s in ("ctrl", "stim")
        for p in "12"
    ]
    obs = pd.DataFrame(rows, columns=["cluster_id", "group_id", "patient"]).loc[
        lambda t: t.index.repeat(12)
    ]
    obs["sample_id"] = obs["group_id"] + obs["patient"]
    obs.index = pd.Index([f"c{i}" for i in range(len(obs))])
    level = rng.gamma(2, 3, len(GENES)) * np.exp(0.5 * rng.normal(size=(3, len(GENES))))
    mean = level[pd.factorize(obs["cluster_id"])[0]]
    mean[(obs["group_id"] == "stim").to_numpy(), :10] *= 4
    counts = sparse.csr_matrix(rng.poisson(mean))
    path = tmp_path / "kang.h5ad"
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    return path


def tables(text: str) -> list[list[dict[str, object]]]:
    """The JSON tables of an output."""
    decoder, found, at = json.JSONDecoder(), [], text.find("[")
    while at >= 0:
        table, end = decoder.raw_decode(text, at)
        found.append(table)
        at = text.find("[", end)
    return found


@pytest.mark.slow  # trains and fits for three hidden cell types and two models
def test_every_hidden_type_has_its_rows_and_nothing_is_computed_twice(
    experiment, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = experiment("kang")
    assert run("--data", cells, "--out", out, *QUICK) == 0
    rows, counts = tables(capsys.readouterr().out)
    table = pd.DataFrame(rows).set_index(["cell type", "prediction"])
    assert len(table) == 3 * (3 + 2 * 3)
    baseline = table.xs("mean of the other types: t", level="prediction")
    assert (baseline["top genes"] >= 0.7).all(), "all types respond alike: the others tell"
    assert table["Spearman"].between(-1, 1).all()
    ours = table[table["NLL"].notna()]
    assert len(ours) == 3 * 2 * 3
    assert {row["of"] for row in counts} == {3}
    assert (out / "kang.html").stat().st_size > 1_000_000
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert run("--data", cells, "--out", out, *QUICK) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == before
    assert tables(capsys.readouterr().out)[0] == rows
    for split in (out / "splits").iterdir():
        parts = pd.read_csv(split, comment="#").set_index("cell")["part"]
        obs = anndata.read_h5ad(cells).obs.loc[parts.index[parts == "hidden"]]
        assert len(obs) == 24
        assert set(obs["group_id"]) == {"stim"}
        assert obs["cluster_id"].nunique() == 1
