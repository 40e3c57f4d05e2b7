"""The page of a prediction, and how often predictions are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.predict import prediction_page, reliability

GENES = [f"ENSG{k:03d}" for k in range(200)]


def table(values: np.ndarray, *names: str) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples([("T", name) for name in names])
    return pd.DataFrame(values, index, GENES)


@pytest.fixture
def judged() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fifty genes respond; of them forty are predicted, thirty the right way; ten are invented."""
    measured, predicted = np.full((2, 1, 200), 0.1)
    measured[0, :50] = 8
    predicted[0, :30], predicted[0, 30:40], predicted[0, 190:] = 4, -4, 4
    return table(measured, "a"), table(predicted, "a")


def test_shares_are_counted_by_strength(judged: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found = reliability(*judged)
    assert found.loc[3, "genes"] == 50
    assert found.loc[3, "responds"] == 30 / 50
    assert found.loc[3, "right_way"] == 40 / 50  # the invented ones go a way, too
    assert found.loc[5].isna().sum() == 2  # nothing is predicted as strongly


def test_the_page_says_which_genes_and_how_sure(
    judged: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    measured, predicted = judged
    values = table(np.linspace(-4, 4, 200)[None], "b")
    given = {"measured": measured, "calibrated": predicted}
    names = {gene: f"SYMBOL{k}" for k, gene in enumerate(GENES)}
    page = prediction_page(values, **given, remembered=0, symbols=names)
    text = page.write(tmp_path / "page.html").read_text()
    assert "Of genes predicted beyond ±3, 60% did respond in one measured condition" in text
    assert "no p-value" in text
    assert "SYMBOL199" in text
    assert "trained on" not in text
    page = prediction_page(values, **given, remembered=1)
    text = page.write(tmp_path / "page.html").read_text()
    assert "trained on 1 of the 1 conditions that it is judged by" in text


def test_without_anything_to_judge_by_the_page_says_so(tmp_path: Path) -> None:
    values = table(np.zeros((1, 200)), "b")
    none = pd.DataFrame()
    page = prediction_page(values, measured=none, calibrated=none, remembered=0)
    assert "Nothing says how often" in page.write(tmp_path / "page.html").read_text()
