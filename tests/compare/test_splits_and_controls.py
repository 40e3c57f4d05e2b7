"""Which conditions are withheld, what the scores stand between, and what is refused before anything
is fitted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perturbgen.compare import CompareSettings, write_outputs
from perturbgen.compare.folds import Fold
from perturbgen.compare.settings import SplitSettings
from perturbgen.compare.tables import Book
from perturbgen.core.errors import ConfigError, InputError, SchemaError, UserError
from perturbgen.data import Split
from perturbgen.evaluate import ScorecardText

from .conftest import CELLS, CLOSED_FORM, COMPOUNDS, TARGETS, Build, Run, states, write_flat


def folds_of(build: Build, **split: Any) -> tuple[Book, list[tuple[pd.MultiIndex, pd.MultiIndex]]]:
    settings = build(splits={"mine": split})
    book = Book.of(settings.data)
    index = book.table.index
    return book, [
        (index[f.train], index[f.test]) for f in Fold.all(settings.splits, book, settings.data)
    ]


def test_kaggle_trains_on_all_but_the_unknown_compounds_of_the_targets(build: Build) -> None:
    book, [(train, test)] = folds_of(build, kind="kaggle")
    assert sorted(test) == sorted(
        (cell, compound) for cell in TARGETS for compound in COMPOUNDS[3:]
    )
    assert len(train) + len(test) == len(book.table)
    _, [(fewer, private)] = folds_of(build, kind="kaggle", test=["private"], public=2)
    assert len(private) == 2 * (len(COMPOUNDS) - 3 - 2)
    assert fewer.equals(train), "public conditions are not learnt from"


def test_compound_folds_withhold_known_compounds_in_all_targets_at_once(build: Build) -> None:
    book, folds = folds_of(build, kind="compounds", folds=3)
    withheld = [set(test.get_level_values("compound")) for _, test in folds]
    assert sorted(name for part in withheld for name in part) == list(COMPOUNDS[:3])
    for (train, test), compounds in zip(folds, withheld, strict=True):
        assert sorted(test) == sorted(
            (cell, compound) for cell in TARGETS for compound in compounds
        )
        assert not test.isin(train).any()
        assert len(train) + len(test) == book.released.sum(), (
            "withheld rows of the truth are never learnt from"
        )


def test_cell_types_are_left_out_one_at_a_time(build: Build) -> None:
    _, folds = folds_of(build, kind="cell_types", rows="all")
    assert [set(test.get_level_values("cell_type")) for _, test in folds] == [
        {cell} for cell in CELLS
    ]
    assert all(
        len(test) == len(COMPOUNDS) and len(train) == 3 * len(COMPOUNDS) for train, test in folds
    )


def test_a_split_file_is_joined_by_label(build: Build, folder: Path, full: pd.DataFrame) -> None:
    shuffled = full.sample(frac=1, random_state=0).index.to_frame(index=False)
    split = Split.kfold(shuffled, 4, rng=np.random.default_rng(0), by="compound")
    parts = split.parts.set_axis(pd.MultiIndex.from_frame(shuffled[["cell_type", "compound"]]))
    type(split)(parts, split.kind).write(folder / "folds.csv")
    _, folds = folds_of(build, kind="file", file="folds.csv")
    assert len(folds) == 4
    for name, (train, test) in zip(sorted(parts.unique()), folds, strict=True):
        assert set(test) == set(parts.index[parts == name])
        assert not test.isin(train).any()


def test_a_split_file_with_other_conditions_is_refused(
    build: Build, folder: Path, full: pd.DataFrame
) -> None:
    parts = pd.Series("train", full.index).rename("part")
    parts.iloc[:3] = "test"
    more = pd.concat([parts, pd.Series({("B cells", "drug 99"): "test"})]).rename("part")
    more.index.names = full.index.names
    for found, words in (
        (more, "in the split but not in the data.*drug 99"),
        (parts.iloc[1:], "have no part"),
    ):
        text = '# {"kind": "mine", "apart": []}\n' + found.to_csv()
        (folder / "split.csv").write_text(text)
        with pytest.raises(SchemaError, match=words):
            folds_of(build, kind="file", file="split.csv")
    (folder / "split.csv").write_text('# {"kind": "mine", "apart": []}\n' + parts.to_csv())
    _, [(train, test)] = folds_of(build, kind="file", file="split.csv")
    assert (len(train), len(test)) == (len(full) - 3, 3)


def test_several_splits_share_one_scorecard_and_are_strata_of_it(run: Run) -> None:
    found = run(
        splits={
            "kaggle": {},
            "leave": {"kind": "cell_types", "cell_types": [CELLS[0]], "rows": "all"},
        }
    )
    assert list(found.card.scores.columns.names) == ["split", "cell_type", "compound"]
    assert found.card.scores.shape[1] == 10 + 8
    levels = found.card.stratum_table
    assert set(levels.loc[levels["stratum"] == "split", "level"]) == {"kaggle", "leave"}
    assert found.predictions()["zeros"].index.equals(found.card.scores.columns)


def test_the_truth_as_positive_control_scores_one_and_a_duplicate_is_blended(
    run: Run, folder: Path, full: pd.DataFrame
) -> None:
    noisy = full + np.random.default_rng(0).normal(scale=0.3, size=full.shape)
    write_flat(
        noisy.sample(frac=1, axis=0, random_state=1).sample(frac=1, axis=1, random_state=1),
        folder / "dup.parquet",
    )
    write_flat(full, folder / "oracle.parquet")
    methods = CLOSED_FORM | {
        "oracle": {"predictions": "oracle.parquet"},
        "replicate": {"predictions": "dup.parquet"},
        "duplicate": {"predictions": "dup.parquet", "interpolate": True},
    }
    card = run(methods=methods, controls={"positive": "oracle"}).card
    values = card.ranking.set_index("method")["value"]
    assert values["oracle"] == pytest.approx(1)
    assert values["zeros"] == 0
    assert values["oracle"] > values["replicate"] > values["additive"] > 0
    assert card.role("oracle") == "positive control"
    assert not np.allclose(
        card.scores.loc["replicate"], card.scores.loc["duplicate"], equal_nan=True
    )


def test_one_condition_is_scored_without_an_interval(
    run: Run, folder: Path, full: pd.DataFrame
) -> None:
    parts = pd.Series("train", full.index, name="part")
    parts.iloc[5] = "test"
    (folder / "one.csv").write_text('# {"kind": "one", "apart": []}\n' + parts.to_csv())
    found = run(splits={"one": {"kind": "file", "file": "one.csv"}})
    assert states(found) == {"done": 3}
    rows = found.card.table.set_index(["metric", "method"])
    assert rows.loc[("mean_rowwise_rmse", "additive"), "low"] is not None
    assert np.isnan(rows.loc[("mean_rowwise_rmse", "additive"), "low"])
    assert np.isfinite(rows.loc[("mean_rowwise_rmse", "additive"), "value"])
    assert np.isnan(rows.loc[("perturbation_discrimination", "additive"), "value"]), (
        "nobody to be told apart from"
    )


def test_a_table_of_one_condition_cannot_be_split(
    build: Build, folder: Path, full: pd.DataFrame
) -> None:
    write_flat(full.iloc[[0]], folder / "single.parquet")
    settings = build(data={"folder": str(folder), "train": "single.parquet"})
    book = Book.of(settings.data)
    for split in (
        SplitSettings(kind="compounds"),
        SplitSettings(kind="cell_types"),
        SplitSettings(kind="kaggle"),
    ):
        with pytest.raises(UserError):
            Fold.all({"mine": split}, book, settings.data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"additve": {}}}, "no baseline 'additve': did you mean 'additive'"),
        ({"methods": {"xgboost": {"settings": {"tres": 3}}}}, "did you mean 'trees'"),
        (
            {"methods": {"a": {"predictions": "p.parquet", "baseline": "zeros"}}},
            "a baseline or a file",
        ),
        ({"methods": {"pseudobulk_forest": {}}}, "needs pseudobulk"),
        ({"splits": {"kagle": {}}}, "no split 'kagle': did you mean 'kaggle'"),
        ({"splits": {"kaggle": {"folds": 4}}}, "kind 'kaggle' makes no use of folds"),
        ({"splits": {"mine": {"kind": "file"}}}, "needs its file"),
        ({"splits": {}}, "splits"),
        ({"seeds": [1, 1]}, "seeds repeat"),
        (
            {"controls": {"positive": "oracel"}, "methods": {"oracle": {"baseline": "zeros"}}},
            "did you mean 'oracle'",
        ),
        ({"controls": {"positive": "zeros"}}, "both a positive control"),
        ({"score": {"metrics": ["mean_rowwise_rmes"]}}, "did you mean 'mean_rowwise_rmse'"),
        ({"score": {"headline": ["energy_distance"]}}, "needs cells"),
        ({"score": {"metrics": ["mean_rowwise_rmse"]}}, "none of the headline"),
        ({"scores": {}}, "unknown key 'scores': did you mean 'score'"),
        ({"score": {"metrics": []}}, "at least 1 item"),
        ({"score": {"headline": []}}, "at least 1 item"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_fitted(
    run: Run, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(**changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"folder": "nowhere"}}, "no data folder at nowhere"),
        ({"data": {"train": "no.parquet"}}, "no table at no.parquet"),
        ({"methods": {"mine": {"predictions": "no.parquet"}}}, "no file of predictions at"),
        ({"splits": {"mine": {"kind": "file", "file": "no.csv"}}}, "no split at"),
    ],
)
def test_a_missing_file_is_told_before_anything_is_fitted(
    run: Run, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        run(**changes)
    assert not (tmp_path / "out").exists()


def test_unknown_targets_and_schedulers_are_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no compound 'drug9'"):
        run(tmp_path / "never", splits={"kaggle": {"known": ["drug 0", "drug9"]}})
    with pytest.raises(SchemaError, match="nothing about conditions is called 'plate'"):
        run(tmp_path / "never", score={"clusters": "plate"})
    assert not (tmp_path / "never").exists()
    with pytest.raises(SchemaError, match="no cell type 'B-cells'"):
        run(splits={"kaggle": {"targets": ["B-cells"]}})
    with pytest.raises(ConfigError, match="no scheduler 'dask'"):
        run(scheduler="dask")


def test_the_default_comparison_has_twelve_methods_and_three_folds() -> None:
    settings = CompareSettings.load(base={})
    assert len(settings.all_methods) == 12
    assert settings.splits["compounds"].folds == 3
    assert CompareSettings.load(base={"methods": {"additive": {}}}).all_methods.keys() == {
        "zeros",
        "additive",
    }


def test_values_are_limited_as_open_problems_does(
    run: Run, folder: Path, full: pd.DataFrame
) -> None:
    data = {"folder": str(folder), "truth": "de_truth.parquet"}
    found = run(data=data | {"clip": 1.5})
    whole = full.loc[found.book.table.index]
    np.testing.assert_array_equal(found.book.table, whole)
    np.testing.assert_array_equal(found.book.rows(np.arange(len(whole))), whole.clip(-1.5, 1.5))
    np.testing.assert_array_equal(
        found.truth(), whole.loc[found.predictions()["zeros"].index].clip(-1.5, 1.5)
    )
    assert max(table.abs().max().max() for table in found.predictions().values()) <= 1.5
    wide = run(data=data | {"clip": 1000})
    assert states(wide) == {"done": 3}, "the limit is part of what a cell depends on"
    np.testing.assert_allclose(wide.card.scores, run().card.scores)


def test_a_few_very_strong_genes_respond_whatever_the_limit(
    run: Run, folder: Path, full: pd.DataFrame
) -> None:
    strong = full.clip(-1, 1)
    # three of 30 genes: p = 1e-30
    strong.iloc[:, :3] = np.where(strong.iloc[:, :3] < 0, -30.0, 30.0)
    names = ("de_train", "de_truth")
    paths = [folder / f"{name}.parquet" for name in names]
    for path in paths:
        table = pd.read_parquet(path).set_index(["cell_type", "sm_name"])
        write_flat(strong.loc[list(table.index)], path)
    write_flat(strong, folder / "oracle.parquet")
    data = {"folder": str(folder), "truth": "de_truth.parquet"}
    methods = CLOSED_FORM | {"oracle": {"predictions": "oracle.parquet"}}
    free, limited = (
        run(data=data | {"clip": clip}, methods=methods).card.scores for clip in (None, 2)
    )
    for path in paths:  # as the benchmark publishes it
        table = pd.read_parquet(path).set_index(["cell_type", "sm_name"])
        write_flat(table.clip(-2, 2), path)
    published = run(data=data | {"clip": 2}, methods=methods).card.scores
    errors = [
        "mean_rowwise_rmse",
        "mean_rowwise_pearson",
        "perturbation_discrimination",
        "weighted_mse",
    ]
    of_rows = limited.index.get_level_values("metric").isin(errors)
    np.testing.assert_array_equal(limited[of_rows], published[of_rows])
    for metric in ("sign_accuracy_de", "de_precision", "de_recall", "de_overlap"):
        np.testing.assert_array_equal(limited.loc[("oracle", metric)], 1.0)
        np.testing.assert_array_equal(free.loc[("oracle", metric)], 1.0)
        assert published.loc[("oracle", metric)].isna().all(), (
            "three genes at ±2 are too few to tell"
        )


def test_public_conditions_are_learnt_from_where_asked(build: Build) -> None:
    book, [(train, test)] = folds_of(build, kind="kaggle", public=2, learn=["public"])
    _, [(_, public)] = folds_of(build, kind="kaggle", public=2, test=["public"])
    assert public.isin(train).all()
    assert not test.isin(train).any()
    assert len(train) + len(test) == len(book.table)
    with pytest.raises(SchemaError, match="no part 'public' to predict"):
        folds_of(build, kind="kaggle", public=2, learn=["public"], test=["public"])
    with pytest.raises(SchemaError, match="no part 'pubic' to learn from"):
        folds_of(build, kind="kaggle", learn=["pubic"])


def test_the_ladder_is_read_before_anything_is_fitted_and_shown(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    rungs = pd.DataFrame(
        {"prediction": ["zeros", "one draw"], "seed 0": [1.2, 1.0], "ratio": [1, 0.8379]}
    )
    rungs.to_csv(folder / "ladder.csv", index=False)
    (folder / "ladder.json").write_text(rungs.to_json(orient="records"))
    for name in ("ladder.csv", "ladder.json"):
        found = run(report={"ladder": name})
        write_outputs(found, tmp_path / "out", title="ladder")
        text = (tmp_path / "out" / "report.html").read_text()
        assert "Oracle ladder" in text
        assert "0.8379" in text
    for name, content, words in (
        ("no-ratio.csv", "prediction\none draw\n", "ratio"),
        ("text.csv", "prediction,ratio\none draw,much\n", "no ratio for 'one draw'"),
        ("none.csv", "prediction,ratio\n", "has a header but no rows"),
        ("none.json", "[]", "prediction"),
        ("list.json", "[1, 2]", "prediction"),
        ("broken.json", "{", "no table in JSON"),
    ):
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=words):
            run(tmp_path / "never", report={"ladder": name})
    with pytest.raises(InputError, match="no ladder at"):
        run(tmp_path / "never", report={"ladder": "nowhere.csv"})
    assert not (tmp_path / "never").exists()


def test_a_reference_is_shown_without_a_place(run: Run, folder: Path, full: pd.DataFrame) -> None:
    write_flat(full, folder / "oracle.parquet")
    write_flat(
        full + np.random.default_rng(0).normal(scale=0.3, size=full.shape), folder / "dup.parquet"
    )
    files = {
        "oracle": {"predictions": "oracle.parquet"},
        "dup": {"predictions": "dup.parquet", "interpolate": True},
    }
    card = run(
        methods=CLOSED_FORM | files, controls={"positive": "oracle", "references": ["dup"]}
    ).card
    assert [card.role(name) for name in ("oracle", "dup", "additive")] == [
        "positive control",
        "reference",
        "baseline",
    ]
    places = {row["method"]: row["place"] for row in ScorecardText(card).headline_records()}
    assert places["dup"] is None
    assert places["additive"] == 1
    with pytest.raises(ConfigError, match="'additive' is both a reference"):
        run(methods=CLOSED_FORM, controls={"references": ["additive"], "baselines": ["additive"]})
    with pytest.raises(ConfigError, match="did you mean 'additive'"):
        run(methods=CLOSED_FORM, controls={"references": ["additiv"]})


def test_tables_without_numbers_or_labels_are_refused(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    table = pd.read_parquet(folder / "de_train.parquet")
    for changed, words in (
        (table.assign(g3="a"), "not numbers: 'g3'"),
        (table[["cell_type", "sm_name"]], "no column of a gene"),
        (
            table.assign(sm_name=[None, *table["sm_name"][1:]]),
            "1 rows without a cell type or compound, .* row 0",
        ),
    ):
        changed.to_parquet(folder / "wrong.parquet", index=False)
        with pytest.raises(SchemaError, match=words):
            run(
                tmp_path / "never",
                data={"folder": str(folder), "train": "wrong.parquet"},
                splits={"compounds": {}},
            )
    assert not (tmp_path / "never").exists()
