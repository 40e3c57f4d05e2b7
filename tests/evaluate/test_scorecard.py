from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.stats import interval, means, resample
from perturbgen.evaluate import (
    Scorecard,
    ScorecardText,
    join_scores,
    markdown_table,
    score,
    score_points,
    scorecard,
    strata,
)
from perturbgen.evaluate.labels import _in_ranges
from perturbgen.evaluate.markdown import _span
from tests.evaluate.tables import experiment, frame


def card_of(scores: dict[str, dict[str, list[float]]], **options: object) -> Scorecard:
    """A scorecard of given scores: method -> metric -> one value a condition."""
    tables = {name: pd.DataFrame(values).T for name, values in scores.items()}
    settings: dict[str, object] = {
        "negatives": ("low",),
        "positive": "high",
        "resamples": 200,
    } | options
    return Scorecard(join_scores(tables), **settings)  # type: ignore[arg-type]


def by_hand(**options: object) -> Scorecard:
    """RMSE from 2 (negative) to 1 (positive), Pearson from 0 to .8, of four conditions."""
    return card_of(
        {
            "low": {"mean_rowwise_rmse": [2, 2, 2, 2], "mean_rowwise_pearson": [0, 0, 0, 0]},
            "high": {
                "mean_rowwise_rmse": [1, 1, 1, 1],
                "mean_rowwise_pearson": [0.8, 0.8, 0.8, 0.8],
            },
            "mine": {
                "mean_rowwise_rmse": [1, 2, 1, 1],
                "mean_rowwise_pearson": [0.2, 0.2, 0.6, 0.6],
            },
            "base": {
                "mean_rowwise_rmse": [1.5, 2, 1.5, 2],
                "mean_rowwise_pearson": [-0.4, 0, 0, 0],
            },
        },
        baselines=("base",),
        **options,
    )


def test_shares_and_differences_by_hand() -> None:
    table = by_hand().table.set_index(["method", "metric"])
    mine = table.loc["mine"]
    assert mine.loc["mean_rowwise_rmse", "value"] == 1.25
    assert mine.loc["mean_rowwise_rmse", "share"] == pytest.approx(0.75)
    assert mine.loc["mean_rowwise_pearson", "share"] == pytest.approx(0.5)
    assert mine.loc["mean_rowwise_rmse", "baseline"] == "base"  # 1.75 beats 2
    assert mine.loc["mean_rowwise_rmse", "difference"] == pytest.approx(-0.5)
    assert mine.loc["mean_rowwise_pearson", "baseline"] == "low"  # 0 beats -.1
    assert mine.loc["mean_rowwise_pearson", "difference"] == pytest.approx(0.4)
    # Pearson is the one metric of the headline here
    assert mine.loc["headline", "value"] == pytest.approx(0.5)
    assert table.loc[("base", "mean_rowwise_pearson"), "share"] == pytest.approx(-0.125)
    assert table.loc[("low", "headline"), "value"] == 0
    assert table.loc[("high", "headline"), "value"] == 1
    both = by_hand(headline=("mean_rowwise_rmse", "mean_rowwise_pearson")).table.set_index(
        ["method", "metric"]
    )
    assert both.loc[("mine", "headline"), "value"] == pytest.approx((0.75 + 0.5) / 2)


@pytest.mark.parametrize(
    ("headline", "words"),
    [
        (
            ("mean_rowwise_pearson",),
            "over Correlation (Pearson): what no rescaling of a prediction can move.",
        ),
        (("mean_rowwise_rmse",), "over Error (RMSE)."),
        (
            ("mean_rowwise_pearson", "mean_rowwise_rmse"),
            "over Correlation (Pearson), Error (RMSE).",
        ),
    ],
)
def test_only_a_headline_free_of_scale_is_said_to_be_so(
    headline: tuple[str, ...], words: str
) -> None:
    assert (
        ScorecardText(by_hand(headline=headline)).headline_note()
        == f"Mean share of the dynamic range {words}"
    )


def test_the_ranking_is_by_headline() -> None:
    card = by_hand()
    assert card.ranking["method"].tolist() == ["high", "mine", "low", "base"]
    assert card.ranking["role"].tolist() == [
        "positive control",
        "method",
        "negative control",
        "baseline",
    ]


def test_the_best_of_several_negatives_is_each_metrics_zero() -> None:
    card = by_hand(negatives=("low", "base"))
    table = card.table.set_index(["method", "metric"])
    assert table.loc[("mine", "mean_rowwise_rmse"), "negative"] == "base"
    assert table.loc[("mine", "mean_rowwise_rmse"), "share"] == pytest.approx((1.75 - 1.25) / 0.75)
    assert table.loc[("mine", "mean_rowwise_pearson"), "negative"] == "low"


def test_without_positive_control_perfection_is_1() -> None:
    table = by_hand(positive=None).table.set_index(["method", "metric"])
    assert table.loc[("mine", "mean_rowwise_rmse"), "share"] == pytest.approx((2 - 1.25) / 2)
    assert table.loc[("mine", "mean_rowwise_pearson"), "share"] == pytest.approx(0.4)


def test_a_metric_without_range_is_shown_but_ranks_nobody() -> None:
    scores = {
        "low": {"mean_rowwise_pearson": [0.5, 0.4], "mean_rowwise_spearman": [0, 0]},
        "high": {"mean_rowwise_pearson": [0.4, 0.5], "mean_rowwise_spearman": [0.5, 0.5]},
        "mine": {"mean_rowwise_pearson": [0.9, 0.9], "mean_rowwise_spearman": [0.1, 0.1]},
    }
    scores = {name: {m: v * 3 for m, v in both.items()} for name, both in scores.items()}
    card = card_of(scores)
    table = card.table.set_index(["method", "metric"])
    assert not table.loc[("mine", "mean_rowwise_pearson"), "ranks"]
    assert np.isnan(table.loc[("mine", "mean_rowwise_pearson"), "share"])
    assert table.loc[("mine", "mean_rowwise_pearson"), "value"] == pytest.approx(0.9)
    assert table.loc[("mine", "headline"), "value"] == pytest.approx(0.2)  # Spearman alone
    assert "0.900 [0.900, 0.900] (no range)" in ScorecardText(card).markdown()
    nothing = card_of(
        {name: {"mean_rowwise_pearson": s["mean_rowwise_pearson"]} for name, s in scores.items()}
    )
    assert nothing.ranking["value"].isna().all()
    assert "nobody is ranked" in ScorecardText(nothing).markdown()


def test_means_leave_out_what_is_undefined() -> None:
    counts = np.array([[1.0, 1, 1], [0, 2, 1], [3, 0, 0]])
    scores = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(means(scores, counts), [[2, 2], [3, 7 / 3], [1, 1]])
    assert np.isnan(means(scores[:1], np.array([[0.0, 3, 0]]))[0, 0])


def test_resamples_draw_conditions_or_whole_clusters() -> None:
    rng = np.random.default_rng(0)
    counts = resample(7, 500, rng)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)
    clustered = resample(5, 500, rng, ["a", "b", "a", "c", "c"])
    np.testing.assert_array_equal(clustered[:, 0], clustered[:, 2])
    np.testing.assert_array_equal(clustered[:, 3], clustered[:, 4])
    assert (clustered[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        sample = rng.normal(1, 1, size=(1, 60))
        low, high = interval(means(sample, resample(60, 300, rng)))
        covered.append(low[0] <= 1 <= high[0])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(size=50)  # conditions differ far more than methods do
    scores = {
        "low": {"mean_rowwise_rmse": (9 + hard).tolist()},
        "mine": {"mean_rowwise_rmse": (8.9 + hard + 0.01 * rng.normal(size=50)).tolist()},
    }
    row = (
        card_of(scores, positive=None)
        .table.set_index(["method", "metric"])
        .loc[("mine", "mean_rowwise_rmse")]
    )
    assert row["high"] - row["low"] > 0.3
    assert row["difference_high"] - row["difference_low"] < 0.02
    assert row["difference_high"] < 0


def test_the_same_seed_gives_the_same_numbers_and_another_others() -> None:
    truth, prediction, _ = experiment()
    one, same = (scorecard(truth, {"p": prediction}, resamples=100).table for _ in range(2))
    pd.testing.assert_frame_equal(one, same)
    other = scorecard(truth, {"p": prediction}, resamples=100, seed=1).table
    assert not other["low"].equals(one["low"])
    pd.testing.assert_series_equal(other["value"], one["value"])


def test_scores_are_those_of_score_and_zeros_are_added() -> None:
    truth, prediction, signal = experiment()
    card = scorecard(
        truth, {"p": prediction, "s": signal}, positive="s", reference=truth.mean(), resamples=10
    )
    assert card.methods == ["zeros", "p", "s"]
    expected = score(truth, prediction, reference=truth.mean())
    pd.testing.assert_frame_equal(card.scores.loc["p"], expected)
    means_of = card.table[card.table["method"] == "p"].set_index("metric")["value"].drop("headline")
    pd.testing.assert_series_equal(means_of, expected.mean(axis=1), check_names=False)


def test_intersection_scores_all_on_what_all_have() -> None:
    truth, prediction, signal = experiment(conditions=12)
    tables = {"p": prediction.drop(columns="g1").iloc[1:], "s": signal.drop(columns="g2")}
    card = scorecard(truth, tables, genes="intersection", rows="intersection", resamples=10)
    kept = truth.drop(columns=["g1", "g2"]).iloc[1:]
    expected = score(kept, signal, genes="truth", rows="truth")
    pd.testing.assert_frame_equal(card.scores.loc["s"], expected)


def test_strata_by_level_effect_and_given_columns() -> None:
    truth, prediction, _ = experiment(conditions=30)
    given = pd.DataFrame(
        {
            "n_cells": np.arange(30.0),
            "seen": [True, False] * 15,
            "note": [str(i) for i in range(30)],
        }
    )
    given.index = truth.index
    card = scorecard(
        truth, {"p": prediction}, conditions=given.sample(frac=1, random_state=0), resamples=20
    )
    assert card.strata is not None
    # 30 notes, 15 compounds: none
    assert list(card.strata) == ["responding genes", "cell_type", "n_cells", "seen"]
    table = card.stratum_table
    part = table[
        (table["stratum"] == "seen") & (table["level"] == "True") & (table["method"] == "p")
    ]
    chosen = given["seen"].to_numpy()
    expected = card.scores.loc[("p", "mean_rowwise_rmse")].to_numpy()[chosen].mean()
    assert part.set_index("metric").loc["mean_rowwise_rmse", "value"] == pytest.approx(expected)
    assert (part["conditions"] == 15).all()
    with pytest.raises(SchemaError, match="lacks 1 of 30"):
        scorecard(truth, {"p": prediction}, conditions=given.iloc[1:])


def test_numbers_are_cut_into_thirds() -> None:
    column = pd.Series(np.arange(9.0))
    labels = _in_ranges(column)
    assert labels.value_counts().tolist() == [3, 3, 3]
    assert labels.iloc[0] == "1: 0 to below 3"
    assert labels.iloc[8] == "3: 6 to 8"
    assert _in_ranges(column / 10).iloc[0] == "1: 0 to below 0.266667"
    assert _in_ranges(pd.Series([1.0, 1.0, 2.0])).tolist() == ["1", "1", "2"]
    assert strata(pd.Index(["a", "b"]), pd.DataFrame({"x": [1, 1]}, ["a", "b"])).empty


def test_clusters_widen_intervals_of_conditions_that_say_the_same() -> None:
    rng = np.random.default_rng(0)
    level = np.repeat(rng.normal(size=12), 5)
    index = pd.MultiIndex.from_product(
        [[f"c{i}" for i in range(12)], range(5)], names=["compound", "cell_type"]
    )
    tables = {
        n: pd.DataFrame([5 + s * level], ["mean_rowwise_rmse"], index)
        for n, s in (("low", 1), ("mine", 0.5))
    }
    scores = join_scores(tables)
    compounds = pd.Series(index.get_level_values("compound"), index)
    apart = Scorecard(scores, ("low",)).table.iloc[-1]
    together = Scorecard(scores, ("low",), clusters=compounds).table.iloc[-1]
    assert together["high"] - together["low"] > 1.6 * (apart["high"] - apart["low"])


def test_cells_have_a_scorecard_too() -> None:
    rng = np.random.default_rng(0)
    truth = {f"c{i}": rng.normal(size=(80, 4)) + i for i in range(6)}
    draws = {
        "control": {name: rng.normal(size=(80, 4)) for name in truth},
        "model": {name: rng.normal(size=(80, 4)) + i + 0.3 for i, name in enumerate(truth)},
        "replicate": {name: rng.normal(size=(80, 4)) + i for i, name in enumerate(truth)},
    }
    scores = join_scores({name: score_points(truth, cells) for name, cells in draws.items()})
    headline = ("energy_distance", "mmd_squared")
    card = Scorecard(scores, ("control",), "replicate", headline=headline, resamples=100)
    assert card.ranking["method"].tolist() == ["replicate", "model", "control"]
    assert 0.5 < card.ranking["value"].iloc[1] < 1


def test_one_condition_has_values_but_no_intervals() -> None:
    truth = frame([[3.0, -2.0, 0.5, 9.0]])
    card = scorecard(truth, {"p": truth * 0.5 + 0.1})
    row = card.table.set_index(["method", "metric"]).loc[("p", "mean_rowwise_pearson")]
    assert row["value"] == pytest.approx(1)
    assert np.isnan(row[["low", "high", "difference_low"]].to_numpy(float)).all()
    assert "1 conditions" in ScorecardText(card).markdown()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negatives": ()}, "needs a negative control"),
        ({"negatives": ("lo",)}, "did you mean 'low'"),
        ({"positive": "low"}, "both a positive control"),
        ({"resamples": 0}, "resamples=0"),
    ],
)
def test_a_mistake_is_explained(options: dict[str, object], words: str) -> None:
    scores = {"low": {"mean_rowwise_rmse": [1.0]}, "high": {"mean_rowwise_rmse": [0.0]}}
    with pytest.raises(ConfigError, match=words):
        card_of(scores, **options)


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no metric 'rmse'"):
        card_of({"low": {"rmse": [1.0]}, "high": {"rmse": [0.0]}})
    with pytest.raises(ConfigError, match="there is no metric 'pearson'"):
        by_hand(headline=("pearson",))


def test_methods_need_the_same_metrics_and_conditions() -> None:
    with pytest.raises(SchemaError, match="other metrics"):
        card_of(
            {
                "low": {"mean_rowwise_rmse": [1.0]},
                "high": {"mean_rowwise_rmse": [0.0], "mean_rowwise_mae": [0.0]},
            }
        )
    with pytest.raises(SchemaError, match="other conditions"):
        card_of({"low": {"mean_rowwise_rmse": [1.0]}, "high": {"mean_rowwise_rmse": [0.0, 1.0]}})
    truth, prediction, _ = experiment(conditions=4)
    with pytest.raises(ConfigError, match="no prediction to score"):
        scorecard(truth, {})
    with pytest.raises(SchemaError, match="nothing about conditions is called 'plate'"):
        scorecard(truth, {"p": prediction}, clusters="plate")


def test_a_rounded_zero_has_no_sign() -> None:
    assert _span(-1e-9, -0.2, np.nan) == "0.000 [-0.200, nan]"
    assert _span(np.nan, 0, 0) == "-"


def test_files_say_the_same(tmp_path: Path) -> None:
    truth, prediction, signal = experiment(conditions=30)
    card = scorecard(truth, {"p|q": prediction, "signal": signal}, positive="signal", resamples=50)
    paths = ScorecardText(card).write(tmp_path)
    assert [path.name for path in paths] == [
        "scorecard.md",
        "scorecard.parquet",
        "scores.parquet",
        "scorecard.json",
    ]
    text = paths[0].read_text()
    assert "| 1 | p\\|q | method |" in text
    table = pd.read_parquet(paths[1])
    overall = table[table["stratum"] == ""].drop(columns=["stratum", "level"])
    pd.testing.assert_frame_equal(overall, card.table, check_dtype=False)
    scores = pd.read_parquet(paths[2]).set_index(["method", "cell_type", "compound"])
    assert scores.loc[("p|q", "B cells", "c3"), "mean_rowwise_mae"] == pytest.approx(
        card.scores.loc[("p|q", "mean_rowwise_mae"), ("B cells", "c3")]
    )
    record = json.loads(paths[3].read_text(), parse_constant=pytest.fail)
    assert record["positive"] == "signal"
    assert len(record["rows"]) == len(table)
    assert record == json.loads(json.dumps(ScorecardText(card).record()))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("[x](javascript:alert(1))", r"[x\](javascript:alert(1))"),
        ("<img src=x>", r"\<img src=x\>"),
        ("ridge (0.1) [0.2, 0.3]", "ridge (0.1) [0.2, 0.3]"),
    ],
)
def test_a_name_in_a_markdown_table_is_only_a_name(name: str, shown: str) -> None:
    assert markdown_table([{"method": name}]).splitlines()[-1] == f"| {shown} |"


def test_what_tells_places_apart_alone_tells_no_compound_of_a_place_apart() -> None:
    truth, _, _ = experiment(conditions=40)
    rng = np.random.default_rng(0)
    places = pd.Series(np.resize(list("abcde"), len(truth)), truth.index, name="layout")
    of_place = dict(zip("abcde", rng.normal(size=(5, truth.shape[1])), strict=True))
    shared = np.array([of_place[place] for place in places])
    truth = truth + 3 * shared
    prediction = truth * 0 + shared
    card = scorecard(
        truth, {"p": prediction}, conditions=places.to_frame(), layout="layout", resamples=20
    )
    value = card.table.set_index(["method", "metric"])["value"]
    assert value["p", "perturbation_discrimination"] > 0.8
    assert value["p", "discrimination_same_layout"] == pytest.approx(0.5, abs=0.08)
    assert value["zeros", "discrimination_same_layout"] == 0.5
    assert "discrimination_same_layout" not in scorecard(truth, {"p": truth}).metrics
    with pytest.raises(ConfigError, match="where each condition was measured"):
        score(truth, prediction, metrics=["discrimination_same_layout"])
