from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbgen.cli import _run
from perturbgen.compare import read_effects as compared_table
from perturbgen.core.errors import SchemaError
from perturbgen.de import read_de_table
from perturbgen.evaluate import score
from tests.de.cases import case
from tests.evaluate.tables import experiment

OPTIONS = {"id_map": None, "statistic": "signed_log10_p", "layer": None}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A truth and two predictions in the files that people have, all of the same tables."""
    monkeypatch.chdir(tmp_path)
    truth, prediction, _ = experiment(conditions=12, genes=30)
    kaggle = truth.rename_axis(index=["cell_type", "sm_name"]).reset_index()
    kaggle.insert(2, "SMILES", "C")
    kaggle.to_parquet("de_train.parquet", index=False)
    prediction.to_parquet("prediction.parquet")
    prediction.reset_index().to_csv("flat.csv", index=False)
    ids = (
        pd.DataFrame(list(prediction.index), columns=["cell_type", "sm_name"])
        .rename_axis("id")
        .reset_index()
    )
    ids.to_csv("id_map.csv", index=False)
    numbered = prediction.reset_index(drop=True).rename_axis("id").reset_index()
    numbered.sample(frac=1, random_state=0).to_csv("submission.csv", index=False)
    obs = truth.rename_axis(index=["cell_type", "sm_name"]).index.to_frame(index=False)
    obs.index = obs.index.astype(str)
    adata = anndata.AnnData(obs=obs, var=pd.DataFrame(index=list(truth.columns)))
    adata.layers["clipped_sign_log10_pval"] = truth.to_numpy()
    adata.write_h5ad("de_test.h5ad")
    outcome = anndata.AnnData(obs=obs[[]], var=adata.var)
    outcome.layers["prediction"] = prediction.to_numpy()
    outcome.write_h5ad("outcome.h5ad")
    return tmp_path


def test_every_kind_of_file_gives_the_same_table(folder: Path) -> None:
    truth, prediction, _ = experiment(conditions=12, genes=30)
    ids = OPTIONS | {"id_map": Path("id_map.csv")}
    for name in ("de_train.parquet", "de_test.h5ad"):
        pd.testing.assert_frame_equal(
            read_de_table(Path(name), **OPTIONS), truth, check_names=False
        )
    for name in ("prediction.parquet", "flat.csv", "submission.csv", "outcome.h5ad"):
        table = read_de_table(Path(name), **ids).loc[prediction.index]
        pd.testing.assert_frame_equal(table, prediction, check_names=False)


def test_compare_reads_what_score_reads(folder: Path) -> None:
    for name in ("de_train.parquet", "de_test.h5ad", "prediction.parquet", "flat.csv"):
        pd.testing.assert_frame_equal(compared_table(Path(name)), read_de_table(Path(name)))
    with pytest.raises(SchemaError, match=r"the rows of submission\.csv are ids"):
        compared_table(Path("submission.csv"))
    table = pd.read_csv("flat.csv")
    table.loc[3, "compound"] = None
    table.to_csv("unnamed.csv", index=False)
    for read in (read_de_table, compared_table):
        with pytest.raises(
            SchemaError, match="1 rows without a cell type or compound, the first is row 3"
        ):
            read(Path("unnamed.csv"))


def test_de_tables_of_this_package_are_read(tmp_path: Path) -> None:
    from perturbgen.de import limma_table

    example = case("balanced")
    adata = anndata.AnnData(example.counts, example.obs)
    table = limma_table(adata, design=example.template, group="compound", control="vehicle")
    for name in ("de.parquet", "de.h5ad"):
        found = read_de_table(table.write(tmp_path / name), **OPTIONS)
        pd.testing.assert_frame_equal(
            found, table.signed_log10_p, check_names=False, check_index_type=False
        )
        logfc = read_de_table(tmp_path / name, **OPTIONS | {"statistic": "logfc"})
        np.testing.assert_array_equal(logfc, table.logfc)


def test_genes_that_were_filtered_out_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from perturbgen.de import limma_table

    example = case("balanced")
    adata = anndata.AnnData(example.counts, example.obs)
    options = {"design": example.template, "group": "compound", "control": "vehicle"}
    table = limma_table(adata, gene_filter="filterByExpr", **options)
    tested = table.t.notna().any()
    assert 0 < tested.sum() < len(tested)
    found = read_de_table(table.write(tmp_path / "de.parquet"), **OPTIONS)
    assert list(found.columns) == tested.index[tested].tolist()
    assert f"{(~tested).sum()} genes that were filtered out" in caplog.text


def test_the_command_writes_a_scorecard_and_a_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "score",
        "de_train.parquet",
        "mine=prediction.parquet",
        "submission.csv",
        "--id-map",
        "id_map.csv",
    ]
    assert _run([*arguments, "--out", "scores", "--resamples", "20"]) == 0
    shown = capsys.readouterr().out
    assert "mine" in shown
    assert "RMSE" in shown
    names = ["report.html", "scorecard.json", "scorecard.md", "scorecard.parquet", "scores.parquet"]
    assert sorted(path.name for path in Path("scores").iterdir()) == names
    assert _run([*arguments, "--json", "--resamples", "20"]) == 0
    [record] = json.loads(capsys.readouterr().out)
    assert _run(["-q", *arguments, "--out", "plain", "--resamples", "20", "--no-report"]) == 0
    assert sorted(path.name for path in Path("plain").iterdir()) == names[1:]
    truth, prediction, _ = experiment(conditions=12, genes=30)
    expected = score(truth, prediction).mean(axis=1)
    for row in record["rows"]:
        if (
            row["method"] in ("mine", "submission")
            and row["metric"] != "headline"
            and not row["stratum"]
        ):
            assert row["value"] == pytest.approx(expected[row["metric"]])


def test_options_reach_the_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame(
        {
            "cell_type": ["B cells", "T cells"] * 6,
            "sm_name": [f"c{i // 2}" for i in range(12)],
            "n_cells": range(12),
        }
    ).to_csv("conditions.csv", index=False)
    command = (
        "score de_train.parquet prediction.parquet flat=flat.csv --metrics "
        "mean_rowwise_pearson,de_recall --level 0.2 --raw-p --strata conditions.csv "
        "--clusters compound --baseline flat --seed 3 --resamples 11 --json --train "
        "de_train.parquet --duplicate prediction.parquet"
    )
    assert _run(command.split()) == 0
    [record] = json.loads(capsys.readouterr().out)
    assert (record["resamples"], record["seed"], record["baselines"]) == (11, 3, ["flat"])
    assert record["info"]["adjusted_p"] is False
    assert record["positive"] == "interpolated_duplicate"
    assert {row["stratum"] for row in record["rows"]} >= {"", "n_cells", "cell_type"}
    truth, prediction, _ = experiment(conditions=12, genes=30)
    recall = (
        score(truth, prediction, metrics=["de_recall"], level=0.2, adjust=False)
        .mean(axis=1)
        .iloc[0]
    )
    [row] = [
        r
        for r in record["rows"]
        if (r["method"], r["metric"], r["stratum"]) == ("flat", "de_recall", "")
    ]
    assert row["value"] == pytest.approx(recall)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("de_train.parquet nothing.csv", "no DE table at nothing.csv"),
        ("de_train.parquet submission.csv", "the rows of submission.csv are ids"),
        ("de_train.parquet flat.csv flat.csv", "two predictions are called 'flat'"),
        ("de_train.parquet flat.csv --metrics rmse", "no metric 'rmse'"),
        (
            "de_train.parquet flat.csv --metrics mmd_squared",
            "needs cells, and DE tables were given",
        ),
        ("de_train.parquet flat.csv --positive oracle", "the control 'oracle' has no scores"),
        ("de_train.parquet flat.csv --genes some", "genes='some' is no policy"),
        ("de_train.parquet conditions.txt", "conditions.txt is no table"),
        ("de_train.parquet flat.csv --clusters donor", "is called 'donor'"),
        ("de_train.parquet outcome.h5ad --layer x --id-map id_map.csv", "has no layer 'x'"),
        ("de_train.parquet flat.csv --duplicate nothing.csv", "no DE table at nothing.csv"),
        ("de_train.parquet id_map.csv", "id_map has no gene"),
    ],
)
def test_a_mistake_is_explained_and_costs_nothing(
    folder: Path, arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("conditions.txt").write_text("x")
    before = sorted(Path().rglob("*"))
    assert _run(["-q", "score", *arguments.split(), "--out", "scores"]) == 2
    assert words in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before
