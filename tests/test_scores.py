"""Predictions scored from Python: whatever form a table has, joined by label; baselines by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import perturbgen as pg
from perturbgen.baselines import make
from perturbgen.cli import _run
from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.evaluate import scorecard


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = [["A", "B", "C"], [f"drug {i}" for i in range(6)]]
    index = pd.MultiIndex.from_product(labels, names=["cell_type", "compound"])
    genes = pd.Index([f"g{i}" for i in range(120)], name="gene")
    both = rng.normal(size=(3, 120))[index.codes[0]] + 2 * rng.normal(size=(6, 120))[index.codes[1]]
    return pd.DataFrame(3 * both + rng.normal(size=both.shape), index, genes)


@pytest.fixture(scope="module")
def mine(measured: pd.DataFrame) -> pd.DataFrame:
    asked = measured.loc[["C"]].iloc[2:]
    return asked + np.random.default_rng(1).normal(size=asked.shape)


def test_a_baseline_learns_from_the_rows_that_are_not_predicted(
    measured: pd.DataFrame, mine: pd.DataFrame
) -> None:
    found = pg.score(measured, {"mine": mine, "additive": ..., "plain": "zeros"}, resamples=20)
    asked = measured.index.isin(mine.index)
    model = make("additive").fit(measured[~asked], rng=np.random.default_rng(0))
    expected = model.predict(measured.index[asked])
    pd.testing.assert_frame_equal(found.predictions["additive"], expected, check_names=False)
    assert found.card.role("additive") == "baseline"
    assert found.card.role("mine") == "method"
    assert found.card.scores.shape[1] == 4
    assert list(found.truth.index) == list(measured.index[asked])
    assert found.table.columns[0] == "mine"
    assert "pearson_delta_perturbed_mean" in found.table.index, "the mean of what is learnt from"
    # The same as the function of the room gives of the same tables.
    same = scorecard(
        measured[asked],
        {"mine": mine, "additive": expected, "plain": 0 * mine},
        baselines=["additive", "plain"],
        reference=measured[~asked].mean(),
        clusters="compound",
        resamples=20,
    )
    pd.testing.assert_frame_equal(found.card.scores, same.scores, check_names=False)


def test_the_rows_to_learn_from_can_be_given(measured: pd.DataFrame, mine: pd.DataFrame) -> None:
    asked = measured.index.isin(mine.index)
    truth, train = measured[asked], measured[~asked]
    one = pg.score(truth, {"mine": mine, "additive": ...}, train=train, resamples=5)
    other = pg.score(measured, {"mine": mine, "additive": ...}, resamples=5)
    pd.testing.assert_frame_equal(one.table, other.table)
    alone = pg.score(truth, {"additive": ...}, train=train, resamples=5)
    pd.testing.assert_series_equal(alone.table["additive"], one.table["additive"])
    with pytest.raises(SchemaError, match=r"train holds 4 of the 4 conditions.*\n.*\n.*drop"):
        pg.score(truth, {"mine": mine}, train=measured)
    with pytest.raises(SchemaError, match="lacks 1 genes of the truth: 'g0'"):
        pg.score(truth, {"mine": mine}, train=train.drop(columns="g0"))


def test_what_is_needed_is_said(measured: pd.DataFrame, mine: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match=r"nothing to learn from(.|\n)*train="):
        pg.score(measured.loc[mine.index], {"mine": mine, "additive": ...})
    with pytest.raises(SchemaError, match=r"nothing says which conditions 'additive'(.|\n)*train="):
        pg.score(measured, {"additive": ...})
    with pytest.raises(ConfigError, match="did you mean 'additive'"):
        pg.score(measured, {"mine": mine, "best": "aditive"})
    with pytest.raises(ConfigError, match="no baseline 'mine'"):
        pg.score(measured, {"mine": ...}, train=measured)
    with pytest.raises(InputError, match=r"absent\.parquet"):
        pg.score(measured, {"mine": "absent.parquet"})
    with pytest.raises(SchemaError, match="mine is of type int"):
        pg.score(measured, {"mine": 3})
    with pytest.raises(SchemaError, match="conditions"):
        pg.score(measured, {"mine": mine})  # rows that are missing are no matter of taste


def test_every_form_of_a_table_is_the_same_table(
    measured: pd.DataFrame, mine: pd.DataFrame, tmp_path: Path
) -> None:
    flat = mine.reset_index()
    flat.rename(columns={"compound": "sm_name"}).to_parquet(tmp_path / "mine.parquet")
    flat.to_csv(tmp_path / "mine.csv", index=False)
    obs = flat[["cell_type", "compound"]].set_axis([f"row {i}" for i in range(4)])
    var = pd.DataFrame(index=mine.columns)
    adata = AnnData(np.zeros(mine.shape), obs=obs, var=var, layers={"t": mine.to_numpy()})
    forms = {
        "frame": mine,
        "flat": flat,
        "shuffled": mine.iloc[::-1, ::-1],
        "levels": mine.reorder_levels(["compound", "cell_type"]),
        "parquet": tmp_path / "mine.parquet",
        "text": str(tmp_path / "mine.csv"),
        "adata": adata,
        "estimators": {"mean_t": mine, "shrunk": mine},
    }
    found = pg.score(measured, {**forms, "zeros": ...}, layer="t", resamples=5)
    means = found.table.drop(columns="zeros")
    assert {"estimators: mean_t", "estimators: shrunk", "adata"} <= set(means)
    for name in means:
        np.testing.assert_allclose(means[name], means["frame"], rtol=1e-9)


def test_what_predict_returns_and_de_tables_are_read(
    measured: pd.DataFrame, mine: pd.DataFrame
) -> None:
    from perturbgen.predict import Prediction

    nothing = pd.DataFrame()
    made = Prediction({"shrunk": mine}, pd.Series(dtype=float), {}, nothing, {}, nothing, {})
    found = pg.score(measured, {"mine": made, "zeros": ...}, resamples=5)
    assert "mine" in found.table


def test_the_report_and_what_is_shown(
    measured: pd.DataFrame, mine: pd.DataFrame, tmp_path: Path
) -> None:
    found = pg.score(measured, {"mine": mine, "additive": ...}, resamples=20)
    page = found.report(tmp_path / "report.html", title="Mine")
    assert page == tmp_path / "report.html"
    text = page.read_text()
    assert "additive" in text
    assert "<title>Mine" in text
    lines = repr(found).splitlines()
    assert lines[0] == "Scores of 3 methods on 4 conditions x 120 genes"
    assert lines[1].split()[:2] == ["1", "mine"]


OWN = """
import numpy as np
import pandas as pd
from perturbgen.evaluate import Metric

class Ridge:
    random = False
    def fit(self, train, *, rng):
        self.mean = train.mean()
        return self
    def predict(self, conditions):
        return pd.DataFrame([self.mean] * len(conditions), conditions)

SIGNS = Metric("signs", "Signs", "Share of genes that go the right way.",
               lambda t: (np.sign(t.truth.values) == np.sign(t.prediction.values)).mean(axis=1),
               "a half", higher_is_better=True, high=1, scale_free=True)
"""


def test_what_somebody_else_brings_is_a_method(
    measured: pd.DataFrame, mine: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An own method, named module:Class, had the role of a baseline."""
    monkeypatch.chdir(tmp_path)
    Path("brought_scores.py").write_text(OWN)
    asked = {"table": mine, "mine": "brought_scores:Ridge", "additive": ..., "top": "ground_truth"}
    card = pg.score(measured, asked, resamples=5).card
    roles = {name: card.role(name) for name in asked}
    assert roles == {"mine": "method", "additive": "baseline", "table": "method", "top": "method"}
    card = pg.score(measured, asked, baselines=["mine"], resamples=5).card
    assert [card.role(name) for name in ("mine", "additive")] == ["baseline", "method"]


def test_a_headline_of_an_own_metric_is_computed_and_one_outside_is_told(
    measured: pd.DataFrame, mine: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the default metrics the headline was an empty line."""
    monkeypatch.chdir(tmp_path)
    Path("brought_headline.py").write_text(OWN)
    own = "brought_headline:SIGNS"
    found = pg.score(measured, {"mine": mine, "a": "additive"}, headline=[own], resamples=5)
    assert np.isfinite(found.card.ranking["value"]).all()
    assert f"{own} is shown, and not" not in repr(found)
    names = ["mean_rowwise_pearson", own]
    other = pg.score(measured, {"mine": mine, "a": "additive"}, metrics=names, resamples=5)
    assert f'{own} is shown, and not in the headline: headline = ["mean_rowwise_pearson"' in repr(
        other
    )


def test_the_command_gives_the_intervals_of_the_function(
    measured: pd.DataFrame, tmp_path: Path
) -> None:
    """One resampled compounds, the other conditions: other intervals of the same file and seed."""
    truth, mine, out = tmp_path / "truth.parquet", tmp_path / "mine.parquet", tmp_path / "out"
    measured.reset_index().to_parquet(truth)
    noise = np.random.default_rng(1).normal(size=measured.shape)
    (measured + noise).reset_index().to_parquet(mine)
    assert _run(["score", str(truth), f"mine={mine}", "--out", str(out), "--no-report"]) == 0
    kept, found = pd.read_parquet(out / "scorecard.parquet"), pg.score(truth, {"mine": mine}).card
    overall = kept[kept["stratum"] == ""].reset_index(drop=True)[found.table.columns]
    pd.testing.assert_frame_equal(overall, found.table, check_dtype=False)
    assert found.clusters is not None


def test_a_bare_table_needs_a_name(measured: pd.DataFrame, mine: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match=r"are a DataFrame(.|\n)*\{'mine': table"):
        pg.score(measured, mine)  # type: ignore[arg-type]


def test_other_words_and_pandas_index_are_told(measured: pd.DataFrame, tmp_path: Path) -> None:
    """An index column was a gene that the truth does not know, ``drug`` too."""
    flat, path = measured.reset_index(), tmp_path / "mine.csv"
    flat.to_csv(path)
    with pytest.raises(SchemaError, match=r"Unnamed: 0(.|\n)*to_csv\(file, index=False\)"):
        pg.score(measured, {"mine": path})
    flat.rename(columns={"compound": "drug"}).to_csv(path, index=False)
    with pytest.raises(SchemaError, match="rename drug to compound"):
        pg.score(measured, {"mine": path})
    flat.rename(columns={"compound": "Drug", "cell_type": "line"}).to_csv(path, index=False)
    with pytest.raises(SchemaError, match="rename line to cell_type and rename Drug to compound"):
        pg.score(measured, {"mine": path})
