"""Contrasts written as formulas: what they mean, and what is refused with which reason."""

from __future__ import annotations

import logging
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import DesignError
from perturbgen.de.contrast import contrast_weights
from perturbgen.de.design import Design

OBS = pd.DataFrame(
    {
        "treat": list("ABC") * 6,
        "donor": ["d1"] * 6 + ["d2"] * 6 + ["d3"] * 6,
        "dose": np.arange(18.0),
        "cell": [f"{a}.{b}" for a, b in zip(list("TTTNNN") * 3, list("ABC") * 6, strict=True)],
        "odd name": ["x y", "x-y", "x(y)"] * 6,
    }
)
FULL, CODED, CROSSED = "~0 + treat + donor", "~ treat + donor", "~ treat*dose + donor"


def weights(formula: str, contrast: str) -> dict[str, float]:
    design = Design.from_formula(formula, OBS)
    [row] = contrast_weights(design, {"it": contrast})
    return {name: v for name, v in zip(design.columns, row, strict=True) if v}


@pytest.mark.parametrize(
    ("formula", "contrast", "expected"),
    [
        (FULL, "A - B", {"treatA": 1, "treatB": -1}),
        (CODED, "A - B", {"treatB": -1}),
        (CODED, "treatC - treatA", {"treatC": 1}),
        (CODED, "treatB", {"treatB": 1}),
        (FULL, "(A + B)/2 - C", {"treatA": 0.5, "treatB": 0.5, "treatC": -1}),
        (FULL, "--A - -B - 2*C", {"treatA": 1, "treatB": 1, "treatC": -2}),
        (FULL, "1e-1*A*10 - .5*(C*2)", {"treatA": 1, "treatC": -1}),
        (CODED, "(C - A) - (B - A)", {"treatB": -1, "treatC": 1}),
        (CODED, "(Intercept) + treatB", {"(Intercept)": 1, "treatB": 1}),
        (CROSSED, "dose", {"dose": 1}),
        (CROSSED, "B:dose - C:dose", {"treatB:dose": 1, "treatC:dose": -1}),
        (CROSSED, "`treatB:dose`", {"treatB:dose": 1}),
        ("~ dose:treat + dose", "B:dose", {"dose:treatB": 1}),
        (
            "~0 + cell",
            "(T.A - T.B) - (N.A - N.B)",
            {"cellT.A": 1, "cellT.B": -1, "cellN.A": -1, "cellN.B": 1},
        ),
        ("~0 + `odd name`", "`x y` - `x(y)`", {"odd namex y": 1, "odd namex(y)": -1}),
    ],
)
def test_what_a_contrast_means(formula: str, contrast: str, expected: dict[str, float]) -> None:
    assert weights(formula, contrast) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("formula", "contrast", "words"),
    [
        (FULL, "A -", "ends early"),
        (FULL, "A B", "'B' is in no place"),
        (FULL, "(A - B", "a bracket is not closed"),
        (FULL, "A - 1", "the number -1 is added to no name"),
        (FULL, "A*B", "names are multiplied with names"),
        (FULL, "A/B", "names are divided by names"),
        (FULL, "A/0", "divides by zero"),
        (FULL, "A - A", "compares nothing"),
        (FULL, "log(A) - B", "there are no functions"),
        (FULL, "__import__('os').system('x')", "means nothing in it"),
        (FULL, "A - B; B", "means nothing in it"),
        (FULL, "1e308*10*A - B", "infinite"),
        (FULL, "(" * 60 + "A" + ")" * 60, "more than 50 brackets"),
        (FULL, "A - B" + " + A - A" * 3000, "longer than 10,000 characters"),
        (FULL, "A - Bb", "did you mean 'B'"),
        (FULL, "treatA - treatD", "did you mean 'treat"),
        (CODED, "B", "add up to 1, but they are coded as differences from 'A'"),
        (CODED, "A - A + A", "add up to 1"),
        (CROSSED, "A:dose", "an interaction with a reference level is coded as zero"),
    ],
)
def test_what_is_refused(formula: str, contrast: str, words: str) -> None:
    with pytest.raises(DesignError, match=words):
        weights(formula, contrast)


def test_whatever_is_written_is_read_or_refused() -> None:
    rng = np.random.default_rng(0)
    pieces = ["A", "B", "C", "treatA", "x", "1", "2.5", ".", "e", "`", "'", ",", ":", " ", "\n"]
    pieces += list("+-*/()") * 2
    design, read = Design.from_formula(FULL, OBS), 0
    for _ in range(3000):
        text = "".join(rng.choice(pieces, rng.integers(1, 9)))
        with suppress(DesignError):
            assert np.isfinite(contrast_weights(design, {"it": text})).all()
            read += 1
    assert 20 < read < 2000


def test_a_level_of_two_factors_is_asked_about_or_that_of_the_compared_one() -> None:
    obs = OBS.assign(donor=OBS["donor"].str.replace("d", "A").replace("A1", "A"))
    design = Design.from_formula("~0 + treat + donor", obs)
    with pytest.raises(DesignError, match="'A' is a level of 'treat', 'donor'"):
        contrast_weights(design, {"it": "A - B"})
    [row] = contrast_weights(design, {"it": "A - B"}, prefer="treat")
    assert row.tolist() == [1, -1, 0, 0, 0]
    [row] = contrast_weights(design, {"it": "A2 - donorA"})
    assert row.tolist() == [0, 0, 0, 1, 0]


def test_a_level_in_an_interaction_is_said_to_be_an_effect_at_the_reference(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "perturbgen"):
        assert weights(CROSSED, "B - A") == {"treatB": 1}
    assert "its effect is that at the reference of the other variable" in caplog.text


def test_what_is_not_estimable_is_named_with_what_it_is_confounded_with() -> None:
    obs = OBS.assign(plate=OBS["treat"].map({"A": "p1", "B": "p1", "C": "p2"}))
    design = Design.from_formula("~0 + treat + plate", obs)
    assert contrast_weights(design, {"fine": "A - B"}).tolist() == [[1, -1, 0, 0]]
    with pytest.raises(DesignError) as raised:
        contrast_weights(design, {"fine": "A - B", "lost": "C - A"})
    assert "'lost' is not estimable: in these samples platep2 is treatC" in str(raised.value)
