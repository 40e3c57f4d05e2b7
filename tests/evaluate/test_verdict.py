"""What a scorecard answers in sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.evaluate import Scorecard, ScorecardText, join_scores, scorecard
from perturbgen.evaluate.verdict import EFFECT, Verdict, range_of
from tests.evaluate.tables import experiment

CONDITIONS = 30


def card_of(means: dict[str, tuple[float, float]], **options: object) -> Scorecard:
    """Pearson and RMSE of methods around their means, with paired noise of conditions."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.02, CONDITIONS)
    tables = {
        name: pd.DataFrame(
            {
                "mean_rowwise_pearson": pearson + shared + rng.normal(0, 0.02, CONDITIONS),
                "mean_rowwise_rmse": error + shared + rng.normal(0, 0.02, CONDITIONS),
            }
        ).T
        for name, (pearson, error) in means.items()
    }
    settings = {"negatives": ("low",), "positive": "high", "baselines": ("base",), "resamples": 200}
    return Scorecard(join_scores(tables), **settings | options)  # type: ignore[arg-type]


ENDS = {"low": (0.0, 2.0), "high": (0.8, 1.0)}


def test_the_first_sentence_says_who_is_best_and_how_surely() -> None:
    card = card_of(ENDS | {"base": (0.2, 1.5), "mine": (0.4, 1.7)})
    first, metrics = Verdict(card).sentences()
    row = card.ranking.set_index("method").loc["mine"]
    assert first.startswith(f"mine is best: headline {row['value']:.3f} [")
    assert f"{row['difference']:.3f} above base, the best baseline [" in first
    assert first.endswith("which is more than chance.")
    assert "(0 is low, 1 high)" in first
    # on the error it is worse than the baseline, which the reader has to be told
    assert metrics.endswith("better beyond chance on 1 of 2 metrics, worse on Error (RMSE).")
    assert first in ScorecardText(card).markdown()


def test_a_baseline_that_is_not_beaten_is_said_first() -> None:
    first = Verdict(card_of(ENDS | {"base": (0.4, 1.5), "mine": (0.2, 1.7)})).sentences()[0]
    assert first.startswith("Nothing beats the best baseline, base: the best of the others, mine")
    assert "more than chance" in first
    near = Verdict(card_of(ENDS | {"base": (0.4, 1.5), "mine": (0.4, 1.5)})).sentences()[0]
    assert "which chance could explain" in near


def test_a_method_below_zeros_is_not_called_best() -> None:
    methods = ENDS | {"base": (-0.3, 2.5), "mine": (-0.1, 2.5)}
    first = Verdict(card_of(methods)).sentences()[0]
    assert first.startswith("Nothing beats the negative control, low: ")
    assert "is best" not in first


def test_the_second_is_named_with_its_distance() -> None:
    methods = ENDS | {"base": (0.1, 1.8), "mine": (0.5, 1.3), "other": (0.4, 1.4)}
    card = card_of(methods)
    value, low, high = card.difference("mine", "other")
    assert low < value < high
    second = Verdict(card).sentences()[1]
    assert second.startswith(f"The next, other, is {value:.3f} behind [{low:.3f}, {high:.3f}]")


def test_controls_that_do_not_differ_rank_nobody() -> None:
    methods = {"low": (0.3, 1.0), "high": (0.3, 1.0), "base": (0.1, 1.8), "mine": (0.5, 1.3)}
    assert Verdict(card_of(methods)).sentences() == [
        "Nobody can be ranked: on no metric of the headline do the controls differ by more than "
        "chance."
    ]


def test_strong_and_weak_conditions_are_apart() -> None:
    truth, prediction, signal = experiment(conditions=40, genes=200)
    weak = np.arange(40) % 2 == 0
    truth[weak] *= 0.3
    card = scorecard(truth, {"mine": prediction, "signal": signal}, positive="signal", resamples=50)
    rows = Verdict(card).effects()
    assert sum(row["conditions"] for row in rows) == 40
    most = [int(str(row[EFFECT]).split(" to ")[-1]) for row in rows]
    assert most == sorted(most, reverse=True), "the strongest first"
    # second, since who is best on average may be so for conditions where nothing happens
    second = Verdict(card).sentences()[1]
    assert second.startswith(f"Among the strong conditions ({rows[0][EFFECT]}")


def test_better_than_a_second_measurement_is_explained() -> None:
    methods = ENDS | {"base": (0.4, 1.5), "mine": (0.95, 0.1)}
    told = " ".join(Verdict(card_of(methods)).sentences())
    assert "To stand above 1 is not to know more than high does" in told
    below = " ".join(Verdict(card_of(methods | {"mine": (0.6, 1.2)})).sentences())
    assert "To stand above 1" not in below


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("1: 0 to below 1", "0"),
        ("2: 1 to below 21", "1 to 20"),
        ("3: 21 to 99", "21 to 99"),
        ("7", "7"),
    ],
)
def test_ranges_of_whole_numbers(level: str, shown: str) -> None:
    assert range_of(level) == shown


def test_levels_that_are_single_numbers_are_ordered_as_numbers() -> None:
    """As text, "4" came after "19"."""
    strata = pd.DataFrame({EFFECT: ["0", "4", "19"] * 10})
    card = card_of(ENDS | {"base": (0.2, 1.5), "mine": (0.4, 1.7)}, strata=strata)
    assert [row[EFFECT] for row in Verdict(card).effects()] == ["19", "4", "0"]
    assert "Among the strong conditions (19 responding genes)" in Verdict(card).sentences()[1]
