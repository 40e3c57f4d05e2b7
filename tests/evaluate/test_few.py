"""Few compounds, few conditions, metrics that say nothing of many: what is said of chance then."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import perturbgen as pg
from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.evaluate import METRICS, Scorecard, ScorecardText, report_page, scorecard
from perturbgen.evaluate.labels import strata
from perturbgen.evaluate.verdict import Verdict, range_of
from tests.evaluate.tables import experiment


def table_of(cell_types: int, compounds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A truth and a prediction of cell types x compounds."""
    truth, prediction, _ = experiment(conditions=cell_types * compounds, genes=60)
    labels = [[f"T{i}" for i in range(cell_types)], [f"c{i}" for i in range(compounds)]]
    index = pd.MultiIndex.from_product(labels, names=["cell_type", "compound"])
    return truth.set_axis(index, axis=0), prediction.set_axis(index, axis=0)


def card_of(cell_types: int, compounds: int, **options: object) -> Scorecard:
    truth, prediction = table_of(cell_types, compounds)
    return scorecard(truth, {"mine": prediction}, resamples=50, **options)  # type: ignore[arg-type]


def mine(card: Scorecard) -> pd.Series:
    return card.ranking.set_index("method").loc["mine"]


@pytest.mark.parametrize(
    ("compounds", "said"),
    [
        (1, "Resampled: conditions, since there is one compound: intervals say nothing of another"),
        (3, "Resampled: conditions, since there are only 3 compounds: intervals"),
    ],
)
def test_few_compounds_are_not_resampled_and_it_is_said(compounds: int, said: str) -> None:
    """One compound in every resample gave intervals of no width, and certainty."""
    card = card_of(8, compounds, clusters="compound")
    assert mine(card)["low"] < mine(card)["value"] < mine(card)["high"]
    alone = card_of(8, compounds, clusters=None)
    assert mine(card)["low"] == mine(alone)["low"]
    text = ScorecardText(card)
    assert said in text.markdown()
    assert any(note.startswith(said) for note in text.notes())
    assert ScorecardText(alone).notes() == []


def test_the_page_and_the_object_say_what_was_resampled(tmp_path: Path) -> None:
    truth, prediction = table_of(8, 1)
    found = pg.score(truth, {"mine": prediction}, resamples=50)
    assert "since there is one compound" in repr(found)
    page = report_page(found.card, truth, {"mine": prediction}).write(tmp_path / "page.html")
    assert "since there is one compound" in page.read_text(encoding="utf-8")


def test_enough_compounds_are_resampled_together() -> None:
    card = card_of(4, 5, clusters="compound")
    assert mine(card)["low"] != mine(card_of(4, 5, clusters=None))["low"]
    assert ScorecardText(card).notes() == []
    assert "resamples of groups of conditions of equal compound" in ScorecardText(card).describe()


def test_by_default_conditions_of_a_compound_are_drawn_together() -> None:
    """``perturbgen score`` and ``pg.score`` gave the same file other intervals."""
    assert mine(card_of(4, 5)).equals(mine(card_of(4, 5, clusters="compound")))
    truth, prediction = (table.droplevel("compound") for table in table_of(7, 1))
    assert scorecard(truth, {"mine": prediction}, resamples=20).clusters is None


def test_four_conditions_have_no_interval_and_no_certainty() -> None:
    card = card_of(4, 1)
    assert np.isnan(mine(card)[["low", "high", "difference_low", "share_low"]].astype(float)).all()
    text = ScorecardText(card)
    assert "No intervals: 4 conditions say nothing of chance; at least 5" in text.markdown()
    assert "bootstrap resamples" not in text.describe()
    said = " ".join(Verdict(card).sentences())
    assert "too few conditions to speak of chance" in said
    assert "more than chance" not in said
    assert "beyond chance" not in said


def test_a_stratum_of_one_compound_draws_its_conditions() -> None:
    table = card_of(6, 6, clusters="compound").stratum_table
    rows = table[(table["stratum"] == "compound") & (table["method"] == "mine")]
    rows = rows[rows["metric"] == "mean_rowwise_pearson"]
    assert len(rows) == 6
    assert (rows["high"] > rows["low"]).all()


def few_values(values: int) -> Scorecard:
    """A card whose discrimination has a value of so many of 12 conditions."""
    card = card_of(2, 6)
    scores = card.scores.copy()
    scores.loc[(slice(None), "perturbation_discrimination"), scores.columns[values:]] = np.nan
    return Scorecard(scores, ("zeros",), headline=card.headline, resamples=50)


def test_a_metric_that_knows_few_conditions_is_no_part_of_the_headline() -> None:
    """Of folds of one compound, 8 of 12 conditions were told apart from nothing."""
    card, text = few_values(4), ScorecardText(few_values(4))
    names = [name for name in card.headline if name != "perturbation_discrimination"]
    shares = card.table.pivot(index="metric", columns="method", values="share").loc[names, "mine"]
    assert mine(card)["value"] == pytest.approx(shares.mean())
    assert "Left out: Conditions told apart, on 4 of 12 conditions only" in text.headline_note()
    assert "Conditions told apart ↑, on 4 of 12 conditions" in text.markdown()
    row = card.table.set_index(["method", "metric"]).loc[("mine", "perturbation_discrimination")]
    assert row["conditions"] == 4
    assert np.isnan(row["low"]), "four values have no interval, among twelve conditions either"


def test_a_metric_of_half_of_the_conditions_counts_and_their_number_is_shown() -> None:
    text = ScorecardText(few_values(6))
    assert "Left out" not in text.headline_note()
    assert "Conditions told apart" in text.headline_note()
    assert "Conditions told apart ↑, on 6 of 12 conditions" in text.markdown()


def test_what_the_headline_asks_for_is_computed() -> None:
    """A headline that was not among the metrics left an empty line: nobody was ranked."""
    card = card_of(2, 6, metrics=["mean_rowwise_rmse"], headline=["mean_rowwise_cosine"])
    assert [metric.name for metric in card.metrics] == ["mean_rowwise_rmse", "mean_rowwise_cosine"]
    assert np.isfinite(mine(card)["value"])


def test_a_metric_may_be_one_of_ours_and_else_needs_a_name() -> None:
    rmse = METRICS["mean_rowwise_rmse"]
    card = card_of(2, 6, metrics=[rmse], headline=[rmse])
    assert card.headline == ("mean_rowwise_rmse",)
    with pytest.raises(ConfigError, match="is no name of a metric") as error:
        card_of(2, 6, metrics=[object()])
    assert "mine:OBJECT" in str(error.value)


def test_missing_predictions_are_refused_by_row_or_asked_to_be_zeros(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``score`` took them for zeros, ``compare`` refused them."""
    truth, prediction = table_of(2, 6)
    prediction.iloc[3] = np.nan
    with pytest.raises(
        SchemaError, match=r"60 missing values, in 1 of 12 rows: 'T0 \| c3'"
    ) as error:
        scorecard(truth, {"mine": prediction}, resamples=5)
    assert "--missing zeros" in str(error.value)
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        card = scorecard(truth, {"mine": prediction}, missing="zeros", resamples=5)
    assert "they count as 0, as in Open Problems" in caplog.text
    expected = scorecard(truth, {"mine": prediction.fillna(0)}, resamples=5)
    pd.testing.assert_frame_equal(card.scores, expected.scores)
    with pytest.raises(ConfigError, match="missing='drop' is not known"):
        scorecard(truth, {"mine": prediction}, missing="drop")  # type: ignore[arg-type]


def test_equals_are_level() -> None:
    truth, prediction = table_of(2, 6)
    card = scorecard(truth, {"a": prediction, "b": prediction}, resamples=20)
    assert "a and b are level." in Verdict(card).sentences()
    card = scorecard(truth, {"a": prediction, "b": prediction}, baselines=["b"], resamples=20)
    first, *rest = Verdict(card).sentences()
    assert first.startswith("a and b, the best baseline, are level: headline ")
    assert "a cannot be told apart on any of" in " ".join(rest)
    assert "a and b are level (" in " ".join(rest)


def test_numbers_of_genes_are_whole() -> None:
    """Thirds of the conditions ended at "57.6667 responding genes"."""
    index = pd.Index([f"c{i}" for i in range(11)])
    genes = pd.Series([0, 0, 1, 1, 2, 3, 5, 5, 6, 8, 9], index)
    labels = strata(index, genes.to_frame("n"))["n"]
    shown = [range_of(level) for level in sorted(labels.unique())]
    assert all(end.isdigit() for level in shown for end in level.split(" to ")), shown
    for level, part in genes.groupby(labels):
        least, _, most = range_of(str(level)).partition(" to ")
        assert part.between(int(least), int(most or least)).all()
