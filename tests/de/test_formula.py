"""Formulas make the columns that R's model.matrix makes."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import DesignError, SchemaError
from perturbgen.de.design import Design
from perturbgen.de.formula import _Reader

OBS = pd.DataFrame(
    {
        "a": ["x", "y", "z", "x", "y", "z", "x", "y"],
        "b": ["q", "q", "p", "p", "p", "q", "p", "q"],
        "depth": [1.0, 2.5, 3.0, 2.0, 5.0, 8.0, 1.5, 0.5],
        "batch": [1, 1, 2, 2, 3, 3, 1, 2],
        "one": ["same"] * 8,
        "cell type": list("uvuvuvvu"),
    },
    index=[f"s{i}" for i in range(8)],
)


def test_first_factor_full_later_ones_without_their_first_level() -> None:
    design = Design.from_formula("~0 + a + b", OBS)
    assert design.columns == ("ax", "ay", "az", "bq")
    np.testing.assert_array_equal(design.matrix[2], [0, 0, 1, 0])
    np.testing.assert_array_equal(design.matrix[1], [0, 1, 0, 1])


def test_terms_are_ordered_by_degree() -> None:
    assert _Reader("~ a:b + b + a").terms() == [(), ("b",), ("a",), ("a", "b")]


def test_numbers_are_slopes_and_factor_makes_them_levels() -> None:
    assert Design.from_formula("~ batch", OBS).columns == ("(Intercept)", "batch")
    assert Design.from_formula("~ factor(batch)", OBS).columns == (
        "(Intercept)",
        "factor(batch)2",
        "factor(batch)3",
    )


def test_levels_sort_by_code_point_and_categories_keep_their_order() -> None:
    obs = OBS.assign(a=pd.Categorical(OBS["a"], ["z", "x", "unused", "y"]))
    assert Design.from_formula("~0 + a", obs).columns == ("az", "ax", "ay")
    assert Design.from_formula("~0 + b", OBS.assign(b=list("aBaBaBaB"))).columns == ("bB", "ba")


def test_a_factor_of_one_level_is_left_out_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "perturbgen"):
        design = Design.from_formula("~0 + one + a + b", OBS)
    assert design.columns == ("ax", "ay", "az", "bq")
    assert "one has one level" in caplog.text


def test_names_that_r_would_mangle_stay_apart() -> None:
    obs = pd.DataFrame({"g": ["a b", "a.b", "a_b", "a-b"] * 3}, index=[f"s{i}" for i in range(12)])
    design = Design.from_formula("~0 + {group}", obs, obs["g"])
    assert design.rank == 4
    assert design.levels == ("a b", "a-b", "a.b", "a_b")


@pytest.mark.parametrize(
    ("formula", "error", "words"),
    [
        ("~0 + a +", DesignError, "cannot read the design"),
        ("y ~ a", DesignError, "left-hand side"),
        ("~0 + sqrtt(depth)", DesignError, "no function 'sqrtt' in formulas"),
        ("~0 + fctor(batch)", DesignError, r"no function 'fctor' .*did you mean 'factor'"),
        ("~0 + factor (batch) + system('rm x')", DesignError, "no function 'system'"),
        ("~0 + a + __import__('os').system('x')", DesignError, "no function '__import__'"),
        ("~0 + a + 'x'", DesignError, "means nothing in it"),
        ("~0 + a | b", DesignError, r"'\| b' means nothing in it"),
        ("~0 + a ** 99999", DesignError, "no number from 1 to 9"),
        ("~" + "*".join(f"x{i}" for i in range(30)), DesignError, "more than 1,000 terms"),
        ("~" + "(" * 60 + "a" + ")" * 60, DesignError, "more than 50 brackets"),
        ("~" + "a + " * 5000, DesignError, "longer than 10,000 characters"),
        ("~0 + (a + b", DesignError, "a bracket is not closed"),
        ("~0 + a b", DesignError, "'b' is in no place for it"),
        ("~0 + 2", DesignError, "the number 2 is no term"),
        ("~", DesignError, "it ends early"),
        ("~0 + aa", SchemaError, "did you mean 'a'"),
        ("~0 + .", DesignError, "cannot read the design"),
    ],
)
def test_what_cannot_be_read_is_explained(formula: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Design.from_formula(formula, OBS)


FORMULAS = (
    "~0+a+b",
    "~a+b",
    "~a*b",
    "~0+a:b",
    "~a+a:b",
    "~0+a+a:b",
    "~b:a",
    "~depth+a",
    "~0+depth+a+b",
    "~a*depth",
    "~0+a:depth",
    "~1",
    "~a-1",
    "~0+b+a+factor(batch)",
    "~0 + b + factor (batch)",
    "~(a+b+factor(batch))^2",
    "~0+`cell type`+a",
    "~a/b",
    "~(a+b/a+depth)^2",
    "~b%in%a+a",
    "~(a+b+depth)^3-a:b-1",
    "~a*b*depth-a:b:depth",
    "~0+(a+b):depth+1",
    "~(a+b):depth",
    "~0+(a+b):depth",
    "~b+a+a:b",
    "~depth:a+b:a",
    "~0+depth:a+depth:b+a:b",
    "~a:b:depth+b",
    "~0+a:b:depth",
    "~b:depth+a:b-1",
    "~(depth+b)/a",
    "~0+depth+a:b+b:depth",
)


@pytest.fixture(scope="module")
def model_matrices(rscript: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What R makes of every formula, ``m1.csv``, ``m2.csv`` and so on: R is started once."""
    folder = tmp_path_factory.mktemp("model_matrix")
    OBS.to_csv(folder / "obs.csv")
    (folder / "formulas.txt").write_text("\n".join(FORMULAS) + "\n")
    code = (
        f'd <- read.csv("{folder}/obs.csv", row.names = 1, check.names = FALSE, '
        f'stringsAsFactors = TRUE); formulas <- readLines("{folder}/formulas.txt"); '
        "for (i in seq_along(formulas)) { m <- model.matrix(as.formula(formulas[i]), d); "
        'colnames(m) <- gsub("`", "", colnames(m)); '
        f'write.csv(m, paste0("{folder}/m", i, ".csv")) }}'
    )
    subprocess.run([rscript, "-e", code], check=True, capture_output=True)
    return folder


@pytest.mark.r
@pytest.mark.parametrize("formula", FORMULAS)
def test_equals_model_matrix(formula: str, model_matrices: Path) -> None:
    number = FORMULAS.index(formula) + 1
    expected = pd.read_csv(model_matrices / f"m{number}.csv", index_col=0)
    design = Design.from_formula(formula, OBS)
    assert list(design.columns) == list(expected.columns)
    np.testing.assert_array_equal(design.matrix, expected.to_numpy())
