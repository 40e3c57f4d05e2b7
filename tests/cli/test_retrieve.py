import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from perturbgen import cli


@pytest.fixture
def latent(tmp_path: Path) -> str:
    """60 wells of 10 compounds and 12 of DMSO on 3 plates; the embedding is in obsm, the labels are
    in obs."""
    rng = np.random.default_rng(0)
    compound = np.array([f"drug{i}" for i in np.repeat(np.arange(10), 6)] + ["DMSO"] * 12)
    _, code = np.unique(compound, return_inverse=True)
    x = 2 * rng.normal(size=(11, 8))[code] + rng.normal(size=(72, 8))
    x[compound == "DMSO"] = rng.normal(size=(12, 8))
    obs = pd.DataFrame({"compound": compound, "plate": [f"p{i % 3}" for i in range(72)]})
    obs["well"], obs["control"] = [f"A{i % 24:02d}" for i in range(72)], compound == "DMSO"
    adata = ad.AnnData(np.ones((72, 2), np.float32), obs=obs.set_axis([f"w{i}" for i in range(72)]))
    adata.obsm["X_latent"] = x.astype(np.float32)
    adata.write_h5ad(tmp_path / "latent.h5ad")
    features = pd.DataFrame(x, columns=[f"feature_{i}" for i in range(8)], index=adata.obs_names)
    pd.concat([obs.set_axis(adata.obs_names), features], axis=1).to_parquet(
        tmp_path / "latent.parquet"
    )
    return str(tmp_path / "latent.h5ad")


def run(*arguments: str) -> int:
    return cli._run(["-q", *arguments])


def test_retrieve_prints_and_writes_everything(
    latent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--key", "X_latent", "--same", "compound", "--plate", "plate", "--well", "well"]
    assert run("retrieve", latent, *options, "--out", str(out), "--json") == 0
    printed = json.loads(capsys.readouterr().out)[0]
    per_group = next(row for row in printed["summary"] if row["mean"] == "per group")
    controls = {row["variant"]: row for row in printed["controls"]}
    assert per_group["n"] == 10  # DMSO is no class
    assert per_group["auc"] > 0.9 > 0.65 > controls["shuffled labels"]["auc"]
    assert controls["as given"]["auc"] == pytest.approx(
        next(row for row in printed["summary"] if row["mean"] == "per query")["auc"]
    )
    queries = pd.read_parquet(out / "queries.parquet")
    assert len(queries) == 60
    assert queries["ap"].mean() == pytest.approx(controls["as given"]["ap"])
    groups = pd.read_parquet(out / "groups.parquet")
    assert set(groups["compound"]) == {f"drug{i}" for i in range(10)}
    page = (out / "report.html").read_text()
    assert all(
        text in page for text in ("Retrieval of compound", "Controls", "shuffled labels", "drug3")
    )


def test_the_table_without_json(latent: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            "retrieve",
            latent,
            "--key",
            "X_latent",
            "--same",
            "compound",
            "--similarity",
            "spearman",
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "per group" in printed
    assert "shuffled labels" in printed


def test_a_parquet_gives_the_same_and_controls_may_be_negatives(
    latent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = latent.replace(".h5ad", ".parquet")
    summaries = []
    for arguments in (
        [latent, "--key", "X_latent"],
        [parquet, "--key", "feature_"],
        [parquet],
        [
            parquet,
            "--controls",
            "compound=DMSO",
            "--negatives",
            "controls",
            "--negatives-same",
            "plate",
        ],
    ):
        assert run("retrieve", *arguments, "--same", "compound", "--json") == 0
        summaries.append(json.loads(capsys.readouterr().out)[0]["summary"])
    assert summaries[0] == summaries[1] == summaries[2]
    assert summaries[3] != summaries[0]


def test_neighbours(latent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--key", "X_latent", "--same", "compound", "-k", "4", "--json"]
    assert run("neighbours", latent, *options, "--out", str(tmp_path / "near")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 10
    assert np.mean([row["own"] for row in rows]) > 0.7
    table = pd.read_parquet(tmp_path / "near" / "neighbours.parquet")
    assert len(table) == 60 * 4
    assert run("neighbours", latent, *options, "--differ", "plate", "--of", "drug3") == 0
    assert {row["neighbour"] for row in json.loads(capsys.readouterr().out)} <= {
        f"drug{i}" for i in range(10)
    } - {"drug3"}
    near = pd.read_parquet(tmp_path / "near" / "groups.parquet")
    assert (near["compound"] != near["neighbour compound"]).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["retrieve", "FILE", "--key", "X_pca", "--same", "compound"], "no embedding 'X_pca'"),
        (["retrieve", "FILE", "--same", "compound"], "which embedding of"),
        (["retrieve", "FILE", "--key", "X_latent", "--same", "drug"], "no column 'drug'"),
        (["retrieve", "FILE", "--key", "X_latent", "--same", "well,plate"], "nothing to retrieve"),
        (
            [
                "retrieve",
                "FILE",
                "--key",
                "X_latent",
                "--same",
                "compound",
                "--controls",
                "compound",
            ],
            "has no value",
        ),
        (
            [
                "retrieve",
                "FILE",
                "--key",
                "X_latent",
                "--same",
                "compound",
                "--controls",
                "compound=dmso",
            ],
            "= 'dmso'",
        ),
        (["retrieve", "absent.h5ad", "--same", "compound"], "no profiles at absent.h5ad"),
        (
            ["neighbours", "FILE", "--key", "X_latent", "--same", "compound", "--of", "drug33"],
            "did you mean 'drug3'",
        ),
        (
            ["neighbours", "FILE", "--key", "X_latent", "--same", "compound", "-k", "60"],
            "60 neighbours of 60 rows",
        ),
    ],
)
def test_mistakes_are_explained(
    latent: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if said == "nothing to retrieve":  # each plate has each well once
        adata = ad.read_h5ad(latent)
        adata.obs["well"] = [f"B{i}" for i in range(72)]
        adata.write_h5ad(latent)
    assert run(*[latent if part == "FILE" else part for part in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_broken_files_are_explained(
    latent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(Path(latent).read_bytes()[:4000])
    text = tmp_path / "table.txt"
    text.write_text("a,b\n1,2\n")
    words = tmp_path / "words.parquet"
    pd.DataFrame({"compound": ["a", "b"], "f_1": ["x", "y"]}).to_parquet(words)
    said_of = {
        broken: "not a readable h5ad",
        text: "neither .h5ad nor .parquet",
        words: "no feature column",
    }
    for path, said in said_of.items():
        assert (
            run(
                "retrieve",
                str(path),
                "--same",
                "compound",
                *(["--key", "X"] if path is broken else []),
            )
            == 2
        )
        assert said in capsys.readouterr().err
    assert run("retrieve", str(words), "--same", "compound", "--key", "f_") == 2
    assert "is not a number" in capsys.readouterr().err
