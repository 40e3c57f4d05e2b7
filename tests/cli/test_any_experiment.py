"""A stranger's h5ad from ``init`` to a report, in layouts that nobody here would have chosen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata import read_h5ad as read_raw
from scipy import sparse

from perturbgen.cli import _run
from perturbgen.core.tables import read_frame
from perturbgen.data import read_h5ad
from perturbgen.data.guess import Guesses
from perturbgen.data.survey import Survey
from perturbgen.de import read_de_table
from tests.conftest import without_pictures

GENES = [f"G{i:02d}" for i in range(40)]
QUICK = ["training.epochs=2", "annealing.warmup=0", "training.threads=1", "model.latent=2"]


def draw(labels: pd.DataFrame, effect: pd.Series, seed: int = 0) -> np.ndarray:
    """Counts (cells, genes): a level for each gene, a factor for the perturbation's own genes."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(2, 2, len(GENES)) + 0.5
    factors = {name: np.ones(len(GENES)) for name in effect.unique()}
    for name in sorted(factors):
        for part in name.split("+"):
            if "safe" not in part and part != "zeta":
                chosen = np.random.default_rng(sum(map(ord, part))).integers(len(GENES), size=6)
                factors[name][chosen] *= 4
    return rng.poisson(level * np.stack([factors[name] for name in effect]))


def pool(path: Path) -> Path:
    """A pooled screen: no plates, lanes as numbers, counts in a layer, unused categories, pairs."""
    targets = ["safe_targeting"] * 3 + ["MYC", "JUN", "FOS", "MYC+JUN"]
    rows = [(name, lane) for lane in (11, 12, 13) for name in targets for _ in range(8)]
    obs = pd.DataFrame(rows, columns=["Gene.Target", "lane"])
    obs.index = pd.Index([f"c{i}" for i in range(len(obs))])
    counts = draw(obs, obs["Gene.Target"])
    names = sorted({*targets, "NEVER_SEEN"})
    obs["Gene.Target"] = pd.Categorical(obs["Gene.Target"], categories=names)
    obs["lane"] = pd.Categorical(obs["lane"])
    obs["n_counts"] = counts.sum(axis=1)
    adata = AnnData(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4), obs=obs)
    adata.var_names = GENES
    adata.layers["umis"] = sparse.csc_matrix(counts.astype(np.float64))
    adata.write_h5ad(path)
    return path


def tubes(path: Path) -> Path:
    """Lines with numbers for names, doses, tubes as samples, counts in raw, no control's name."""
    rows = [
        (line, agent, dose, f"tube {line}-{agent}-{dose}-{k}")
        for line in (1, 2)
        for agent, dose in [("zeta", 0.0)] * 2 + [(a, d) for a in "pqr" for d in (0.5, 5.0)]
        for k in range(3)
        for _ in range(6)
    ]
    obs = pd.DataFrame(rows, columns=["CellLine", "agent", "conc", "Sample ID"])
    obs.index = pd.Index([f"c{i}" for i in range(len(obs))])
    counts = sparse.csr_matrix(draw(obs, obs["agent"]).astype(np.float32))
    whole = AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))
    adata = AnnData(sparse.csr_matrix(counts[:, :10].log1p()), obs=obs)
    adata.var_names, adata.raw = GENES[:10], whole
    adata.write_h5ad(path)
    return path


def guide_pairs(path: Path) -> Path:
    """Combinations that name the control, in both orders; counts in raw, ids in var, symbols
    beside them, one of which is missing and one shared.
    """
    names = ["NT"] * 4 + ["NT+KLF1", "KLF1+NT", "SPI1+NT", "BAK1", "SPI1+KLF1", "BAK1+KLF1"]
    rows = [(name, batch) for batch in (1, 2, 3) for name in names for _ in range(8)]
    obs = pd.DataFrame(rows, columns=["Perturbed Genes", "GEM group"])
    obs.index = pd.Index([f"c{i}" for i in range(len(obs))])
    counts = draw(obs, obs["Perturbed Genes"].str.replace("NT+", "").str.replace("+NT", ""))
    symbols = pd.Series([f"SYM{i}" for i in range(len(GENES))], dtype=object)
    symbols[3], symbols[5] = None, "SYM6"
    var = pd.DataFrame({"gene_symbol": symbols.to_numpy()}, [f"ENSG{i:011d}" for i in range(40)])
    adata = AnnData(np.log1p(counts.astype(float)), obs=obs, var=var)
    adata.raw = AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
    adata.write_h5ad(path)
    return path


def run(*words: str | Path) -> None:
    assert _run([str(word) for word in words]) == 0


def walk(file: Path, folder: Path) -> pd.DataFrame:
    """Everything that init says to type next; what is predicted."""
    run("data", "check", file, "--columns", folder / "columns.toml")
    sets = [word for text in QUICK for word in ("--set", text)]
    with without_pictures():
        run("train", folder / "config.toml", "--runs", folder / "runs", *sets)
    [made] = (folder / "runs").glob("0001-*")
    wanted, predicted = folder / "conditions.csv", folder / "predictions.parquet"
    run("predict", made, "--cells", file, "--conditions", wanted, "--out", predicted)
    sums, table = folder / "samples.h5ad", folder / "de.parquet"
    run("pseudobulk", file, "--columns", folder / "columns.toml", "--out", sums)
    run("de", sums, "--by", "cell_type", "--out", table)
    both = ["--rows", "intersection", "--genes", "intersection"]
    run("score", table, predicted, *both, "--out", folder / "scores")
    assert (folder / "scores" / "report.html").stat().st_size > 10_000
    if (folder / "compare.toml").exists():
        compared = ["--out", folder / "comparison", "--workers", "1"]
        run("compare", folder / "compare.toml", *compared)
        assert (folder / "comparison" / "report.html").stat().st_size > 10_000
    return read_frame(predicted)


def test_a_pool_without_plates_is_walked_to_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = pool(tmp_path / "my pool.h5ad"), tmp_path / "mine"
    run("init", file, "--out", folder)
    config = (folder / "config.toml").read_text()
    assert 'encoding = "combination"' in config
    assert "control = 'safe_targeting'" in config
    monkeypatch.chdir(tmp_path)  # paths are those beside the config, wherever one stands
    found = walk(file, folder)
    assert found["sm_name"].tolist() == ["MYC+JUN"]  # from what MYC and JUN do alone
    assert np.isfinite(found[GENES].to_numpy()).all()
    cells = read_h5ad(file, folder / "columns.toml")
    assert cells.uns["vehicle"] == "safe_targeting"
    assert sorted(cells.obs["plate"].unique()) == ["11", "12", "13"]
    assert cells.obs[["plate", "well"]].drop_duplicates().shape[0] == 3 * 5
    assert cells.X.max() == cells.layers["umis"].max() if "umis" in cells.layers else cells.X.max()


def test_pairs_that_name_the_control_are_one_perturbation_and_one_is_withheld(
    tmp_path: Path,
) -> None:
    file, folder = guide_pairs(tmp_path / "pairs.h5ad"), tmp_path / "mine"
    run("init", file, "--out", folder)
    text = (folder / "columns.toml").read_text()
    assert 'combine = "+"' in text
    assert 'genes = "gene_symbol"' in text
    wanted = pd.read_csv(folder / "conditions.csv")
    assert wanted["compound"].tolist() == ["BAK1+KLF1"]  # a quarter of two pairs, one of them
    cells = read_h5ad(file, folder / "columns.toml")
    found = set(cells.obs["compound"])
    assert found == {"NT", "KLF1", "SPI1", "BAK1", "KLF1+SPI1", "BAK1+KLF1"}
    assert cells.var_names[[0, 3, 5, 6]].tolist() == [
        "SYM0",
        "ENSG00000000003",
        "SYM6 (ENSG00000000005)",
        "SYM6 (ENSG00000000006)",
    ]
    predicted = walk(file, folder)
    assert {"SYM0", "ENSG00000000003"} <= set(predicted.columns)
    assert predicted["sm_name"].tolist() == ["BAK1+KLF1"]
    seen = pd.read_parquet(next((folder / "runs").glob("0001-*")) / "cells.parquet")
    assert len(seen) == 24 * 9  # what is withheld is in no part


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        (["Healthy / unstimulated", "IFNG 10 ng/mL"], "Healthy / unstimulated"),
        (["PBS, 24 h", "LPS, 24 h"], "PBS, 24 h"),
        (["DMSO 24 h", "DMSO 48 h", "drug"], None),
        (["A", "B"], None),
    ],
)
def test_a_control_may_be_named_among_other_words(levels: list[str], found: str | None) -> None:
    from perturbgen.data.column_names import named_control

    assert named_control(levels) == found


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Annotated Cell Type", "cell_type"),
        ("Cell Type (fine)", "cell_type"),
        ("predicted.celltype.l2", "cell_type"),
        ("drug_treatment", "compound"),
        ("Perturbed Genes", "compound"),
        ("Patient_Sex", None),
        ("donor_age", None),
        ("n_genes_by_counts", None),
    ],
)
def test_longer_names_of_columns_are_what_they_end_with(name: str, role: str | None) -> None:
    from perturbgen.data.column_names import ROLES, name_rank

    ranks = {key: name_rank(name, key) for key in ROLES}
    known = {key: rank for key, rank in ranks.items() if rank is not None}
    assert (min(known, key=lambda key: known[key]) if known else None) == role


def test_names_of_genes_are_those_of_a_store_on_disk(tmp_path: Path) -> None:
    from perturbgen.train.settings import CellData

    file = pool(tmp_path / "pool.h5ad")
    (tmp_path / "columns.toml").write_text(
        'vehicle = "safe_targeting"\nlayer = "umis"\ngenes = "symbol"\n'
        '[columns]\ncompound = "Gene.Target"\n[constants]\ncell_type = "x"\n'
    )
    import anndata

    adata = anndata.read_h5ad(file)
    adata.var["symbol"] = [f"S{i}" for i in range(40)]
    adata.layers["umis"] = sparse.csr_matrix(adata.layers["umis"])
    adata.write_h5ad(file)
    kept = {
        on_disk: CellData(path=file, columns=tmp_path / "columns.toml", on_disk=on_disk).open()
        for on_disk in (True, False)
    }
    assert kept[True].var_names.tolist() == kept[False].var_names.tolist()
    assert kept[True].var_names[0] == "S0"
    assert (kept[True].counts() != kept[False].counts()).nnz == 0


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lines in tubes, walked to the report: a folder with tubes.h5ad and mine/."""
    folder = tmp_path_factory.mktemp("walked")
    file = tubes(folder / "tubes.h5ad")
    run("init", file, "--out", folder / "mine")
    walk(file, folder / "mine")
    return folder


def test_lines_and_doses_in_tubes_are_walked_to_their_report(walked: Path) -> None:
    mine = walked / "mine"
    text = (mine / "columns.toml").read_text()
    assert 'vehicle = "zeta"  # the only value whose dose is 0 everywhere' in text
    assert 'compound = ["agent", "conc"]' in text
    assert 'layer = "raw"' in text
    found = read_frame(mine / "predictions.parquet")
    assert set(found["cell_type"].astype(str)) <= {"1", "2"}
    assert found["cell_type"].nunique() == 1  # of the two lines, one is asked for
    cells = read_h5ad(walked / "tubes.h5ad", mine / "columns.toml")
    assert cells.n_vars == 40
    assert {"p 0.5", "p 5", "zeta"} <= set(cells.obs["compound"])
    samples = cells.obs.groupby(["cell_type", "compound"], observed=True)["well"].nunique()
    assert (samples[:, "p 5"] == 3).all()


def test_normalised_counts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import anndata

    adata = anndata.read_h5ad(pool(tmp_path / "a.h5ad"))
    del adata.layers["umis"]
    adata.write_h5ad(tmp_path / "b.h5ad")
    assert _run(["init", str(tmp_path / "b.h5ad"), "--out", str(tmp_path / "out")]) == 2
    assert "has no raw counts: X has fractions" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_control_that_no_cell_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["init", str(pool(tmp_path / "a.h5ad")), "--out", str(tmp_path / "o")]
    assert _run([*asked, "--vehicle", "DMSO"]) == 2
    assert "no cell has Gene.Target = 'DMSO'" in capsys.readouterr().err
    assert _run([*asked, "--compound", "drug"]) == 2
    assert "no column 'drug' (for compound)" in capsys.readouterr().err


def test_one_sample_a_condition_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pd.DataFrame({"drug": ["DMSO", "x"] * 20, "cell_type": "T"})
    rows.index = pd.Index([f"c{i}" for i in range(40)])
    counts = np.random.default_rng(0).poisson(2, (40, 5))
    AnnData(counts, obs=rows).write_h5ad(tmp_path / "few.h5ad")
    run("init", tmp_path / "few.h5ad", "--out", tmp_path / "o")
    said = " ".join(capsys.readouterr().out.split())
    assert "Each of the 2 conditions has one sample: no differential expression" in said
    run("data", "check", tmp_path / "few.h5ad", "--columns", tmp_path / "o" / "columns.toml")
    assert "each of the 2 conditions has one sample" in capsys.readouterr().out


def test_an_atlas_is_summed_without_an_invented_vehicle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    obs = pd.DataFrame({"cell_type": ["T", "B"] * 10, "donor": ["d1"] * 10 + ["d2"] * 10})
    obs.index = pd.Index([f"c{i}" for i in range(20)])
    AnnData(np.ones((20, 3)), obs=obs).write_h5ad(tmp_path / "atlas.h5ad")
    file, out = tmp_path / "atlas.h5ad", tmp_path / "sums.h5ad"
    run("pseudobulk", file, "--by", "donor,cell_type", "--out", out)
    run("init", file, "--out", tmp_path / "o")
    assert "this is an atlas" in capsys.readouterr().out
    run("data", "check", file, "--columns", tmp_path / "o" / "columns.toml")
    assert _run(["pseudobulk", str(file), "--by", "batch", "--out", str(out)]) == 2
    assert "--by batch: obs has no column 'batch'" in capsys.readouterr().err


def test_of_a_large_file_some_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perturbgen.data.survey._MOST", 80)
    survey = Survey.of(pool(tmp_path / "a.h5ad"))
    assert survey.n_cells == 168
    assert len(survey.obs) == 80
    assert not survey.whole
    assert Guesses.of(survey).columns["compound"].value == "Gene.Target"


def test_what_init_wrote_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["init", str(pool(tmp_path / "a.h5ad")), "--out", str(tmp_path / "o")]
    run(*asked, "--json")
    rows = {row["ours"]: row["theirs"] for row in json.loads(capsys.readouterr().out)}
    assert rows["vehicle"] == "safe_targeting"
    assert rows["plate"] == "lane"
    assert _run(asked) == 2
    assert "is there already" in capsys.readouterr().err
    run(*asked, "--force")


def test_the_comparison_that_init_writes_has_the_model_on_what_is_withheld(walked: Path) -> None:
    scores = pd.read_parquet(walked / "mine" / "comparison" / "scores.parquet")
    assert {"model", "shrunken_additive"} <= set(scores["method"])
    wanted = read_frame(walked / "mine" / "conditions.csv").astype(str)
    found = scores[["cell_type", "compound"]].drop_duplicates().astype(str)
    assert set(map(tuple, found.to_numpy())) == set(map(tuple, wanted.to_numpy()))


def test_what_was_not_measured_is_asked_for_and_shown_on_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = read_raw(tubes(Path("tubes.h5ad")))
    here = (whole.obs["CellLine"] == 2) & (whole.obs["agent"] == "q") & (whole.obs["conc"] == 5)
    kept = whole[~here.to_numpy()].copy()
    kept.write_h5ad("tubes.h5ad")
    run("init", "tubes.h5ad", "--out", "mine")
    said = capsys.readouterr().out
    assert "1 pairs of a cell type and a compound were not measured" in said
    [line] = [line for line in said.splitlines() if "perturbgen predict" in line]
    assert read_frame(Path("mine/unmeasured.csv")).astype(str).to_numpy().tolist() == [["2", "q 5"]]
    sets = [word for text in QUICK for word in ("--set", text)]
    with without_pictures():
        run("train", "mine/config.toml", "--runs", "mine/runs", *sets)
    run(*line.split()[1:], "--replicates", "2")
    page = Path("mine/unmeasured.html").read_text()
    assert "q 5" in page
    assert "to judge by" in page


def test_what_a_split_withholds_can_be_evaluated(walked: Path) -> None:
    """Refused before: the run keeps the names of its own cells alone."""
    [made] = (walked / "mine" / "runs").glob("0001-*")
    out = walked / "evaluation.json"
    run("evaluate", made, walked / "tubes.h5ad", "--part", "test", "--samples", "2", "--out", out)
    assert json.loads(out.read_text())["likelihood"]
    assert _run(["evaluate", str(made), str(walked / "tubes.h5ad"), "--part", "tset"]) == 2


def test_score_names_both_flags_at_once(walked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = walked / "mine"
    few = read_frame(mine / "predictions.parquet").drop(columns=GENES[0])
    few.to_parquet(walked / "few.parquet")
    capsys.readouterr()
    assert _run(["score", str(mine / "de.parquet"), str(walked / "few.parquet")]) == 2
    said = capsys.readouterr().err
    assert "other conditions than the truth" in said
    assert "other genes than the truth" in said
    assert "--rows intersection --genes intersection" in said


def test_a_baseline_learns_from_the_table_that_de_wrote(
    walked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = walked / "mine"
    out = walked / "additive.parquet"
    asked = ["--train", mine / "de.parquet", "--conditions", mine / "conditions.csv"]
    run("baseline", "shrunken_additive", *asked, "--out", out)
    wanted = read_frame(mine / "conditions.csv")
    assert len(read_frame(out)) == len(wanted)
    # the table holds what is asked for: a baseline that learnt from it would be remembering
    assert f"{len(wanted)} of the {len(wanted)} conditions to predict are measured" in caplog.text
    known = read_de_table(mine / "de.parquet").dropna(axis=1)
    kept = known.drop(index=list(map(tuple, wanted.astype(str).to_numpy())))
    kept.reset_index().to_parquet(walked / "kept.parquet")
    again = walked / "again.parquet"
    learnt = ["--train", walked / "kept.parquet", "--conditions", mine / "conditions.csv"]
    run("baseline", "shrunken_additive", *learnt, "--out", again)
    genes = [name for name in read_frame(again) if name in GENES]
    np.testing.assert_allclose(read_frame(out)[genes], read_frame(again)[genes], rtol=1e-9)


def test_a_misspelt_cell_type_is_told_with_the_one_that_was_meant(
    walked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [["kupffer cell", "a"], ["kupffer cell", "b"], ["hepatocyte", "a"]]
    table = pd.DataFrame(rows, columns=["cell_type", "compound"]).assign(G1=[1.0, 2, 3], G2=1.0)
    table.to_parquet(walked / "small.parquet")
    pd.DataFrame([["kupfer cell", "b"]], columns=["cell_type", "compound"]).to_csv(
        walked / "typo.csv", index=False
    )
    asked = ["--train", walked / "small.parquet", "--conditions", walked / "typo.csv"]
    run("baseline", "compound_mean", *asked, "--out", walked / "typo.parquet")
    run("baseline", "cell_type_mean", *asked, "--out", walked / "typo.parquet")
    assert "did you mean 'kupffer cell'?" in caplog.text


def test_other_names_of_the_columns_are_scored(walked: Path) -> None:
    """``de --by LINE --group DRUG``: what was compared is the compound, whatever it is called."""
    table = walked / "theirs.parquet"
    sums = walked / "mine" / "samples.h5ad"
    given = ["--by", "CellLine", "--group", "compound", "--control", "zeta"]
    run("de", sums, *given, "--out", table)
    both = ["--rows", "intersection", "--genes", "intersection"]
    run("score", table, walked / "mine" / "predictions.parquet", *both)
    config = walked / "compare.toml"
    config.write_text(
        f'[data]\nfolder = "{walked}"\ntrain = "theirs.parquet"\n'
        '[methods.mean]\nbaseline = "gene_mean"\n[methods.zeros]\nbaseline = "zeros"\n'
        '[splits.lines]\nkind = "cell_types"\n'
    )
    run("compare", config, "--out", walked / "compared", "--workers", "1", "--no-report")


def test_a_split_of_conditions_may_leave_its_validation_cells_to_chance(walked: Path) -> None:
    [made] = (walked / "mine" / "runs").glob("0001-*")
    parts = pd.read_parquet(made / "cells.parquet")["part"].value_counts()
    assert parts["validation"] == pytest.approx(0.1 * parts.sum(), abs=1)
    assert parts.sum() < 288  # what is withheld is in no part of the run


def test_pairs_add_up_and_those_nobody_measured_have_a_place() -> None:
    from perturbgen.train.cells import _combinations

    table = _combinations(["ctrl", "A", "B+ctrl", "C", "A+C"], "ctrl")
    assert list(table.columns) == ["A", "B", "C"]
    assert table.loc["ctrl"].tolist() == [0, 0, 0]
    assert table.loc["B+ctrl"].tolist() == [0, 1, 0]
    assert table.loc["A+C"].tolist() == (table.loc["A"] + table.loc["C"]).tolist()
    assert table.loc["A+B"].tolist() == [1, 1, 0]
    assert "C+A" not in table.index


def test_the_same_note_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from perturbgen.core.console import said_once

    log = logging.getLogger("perturbgen.de.limma")
    caplog.set_level(logging.INFO, "perturbgen")
    with said_once("perturbgen.de"):
        for k in range(24):
            log.info("these are not the plates")
            log.info("replicate %d", k)
    assert [r.getMessage() for r in caplog.records].count("these are not the plates") == 1
    assert len(caplog.records) == 25
    log.info("these are not the plates")
    assert len(caplog.records) == 26


def test_what_samplers_will_refuse_is_known_before_training() -> None:
    from perturbgen.data import sample_problem

    obs = pd.DataFrame({"cell_type": "T", "compound": ["v", "d", "v", "d"], "plate": "p"})
    assert sample_problem(obs) == ""  # no wells: a sample for each compound
    assert sample_problem(obs.assign(sample=["1", "1", "2", "2"])) == ""  # pools of both
    mixed = obs.assign(well=["A1", "A1", "A2", "A3"])
    assert sample_problem(mixed) == "cells of well 'A1' on plate 'p' differ in 'compound'"
    assert sample_problem(obs[:1]) == "all cells are of one sample, and of one type"
    assert sample_problem(obs.drop(columns="compound")) == ""


@pytest.mark.data
@pytest.mark.slow
def test_ignored_conditions_are_told_and_the_way_out_is_one(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On Kang's cells: a long warm-up fills the latent space with what the conditions say."""
    file = real_data / "counts" / "kang_ifnb.h5ad"
    run("init", file, "--out", tmp_path / "kang")
    config, runs = tmp_path / "kang" / "config.toml", tmp_path / "runs"
    said, ratio = {}, {}
    settings = {
        "ignoring": ["training.epochs=20", "annealing.warmup=5"],
        "helped": ["training.epochs=40", "training.learning_rate=5e-3"],
    }
    for name, own in settings.items():
        sets = [
            word
            for text in [*own, f"name={name}", "training.threads=1"]
            for word in ("--set", text)
        ]
        with without_pictures():
            run("train", config, "--runs", runs, *sets)
        out = tmp_path / f"{name}.json"
        capsys.readouterr()
        run("evaluate", runs / f"latest-{name}", file, "--samples", "2", "--out", out)
        said[name] = " ".join(capsys.readouterr().err.split())
        ratio[name] = json.loads(out.read_text())["predictive"][
            "between_conditions_generated_over_real"
        ]
    assert ratio["ignoring"] < 0.3 < 0.4 < ratio["helped"]
    assert "the model hardly uses its conditions" in said["ignoring"]
    assert "annealing.warmup = 0, training.learning_rate = 5e-3" in said["ignoring"]
    assert "hardly uses" not in said["helped"]
