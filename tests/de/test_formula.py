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
from perturbgen.de.terms import Reader

OBS = pd.DataFrame(
    {
        "a": ["x", "y", "z", "x", "y", "z", "x", "y"],
        "b": ["q", "q", "p", "p", "p", "q", "p", "q"],
        "depth": [1.0, 2.5, 3.0, 2.0, 5.0, 8.0, 1.5, 0.5],
        "batch": [1, 1, 2, 2, 3, 3, 1, 2],
        "one": ["same"] * 8,
        "cell type": list("uvuvuvvu"),
        "de pth": [3.0, 1.0, 2.0, 7.0, 5.0, 2.0, 4.0, 9.0],
    },
    index=[f"s{i}" for i in range(8)],
)


def test_first_factor_full_later_ones_without_their_first_level() -> None:
    design = Design.from_formula("~0 + a + b", OBS)
    assert design.columns == ("ax", "ay", "az", "bq")
    np.testing.assert_array_equal(design.matrix[2], [0, 0, 1, 0])
    np.testing.assert_array_equal(design.matrix[1], [0, 1, 0, 1])


def test_terms_are_ordered_by_degree() -> None:
    assert Reader("~ a:b + b + a").terms() == [(), ("b",), ("a",), ("a", "b")]


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
        ("~0 + fctor(batch)", DesignError, r"fctor\(\.\.\.\) is unknown \(did you mean 'factor'"),
        (
            "~0 + logg(depth)",
            DesignError,
            r"logg\(\.\.\.\) is unknown \(did you mean 'log'.*poly, ns",
        ),
        ("~0 + a + __import__('os').system('x')", DesignError, r"__import__\(\.\.\.\) is unknown"),
        ("~0 + a + system(depth)", DesignError, r"function system\(\.\.\.\) is unknown"),
        ("~0 + I('x')", DesignError, "means nothing in it"),
        ("~0 + I(eval(depth))", DesignError, r"eval\(\.\.\.\) is unknown"),
        ("~0 + log(a)", SchemaError, "needs numbers, and 'a' is text"),
        ("~0 + log(depth - 1)", SchemaError, "not finite in 3 samples: s0, s6, s7|not finite in"),
        ("~0 + log(dpth)", SchemaError, "did you mean 'depth'"),
        ("~0 + log(depth, 2)", DesignError, "has no place for"),
        ("~0 + log(2)", DesignError, "holds no column"),
        ("~0 + log(depth", DesignError, "not closed"),
        ("~0 + I(depth +)", DesignError, "in no place for it"),
        ("~0 + I(" + "(" * 60 + "depth" + ")" * 60 + ")", DesignError, "more than 50 brackets"),
        ("~0 + I(" + "-" * 60 + "depth)", DesignError, "more than 50 brackets"),
        ("~0 + I(depth" + "^2" * 60 + ")", DesignError, "more than 50 brackets"),
        ("~0 + I(depth^99999)", SchemaError, "not finite"),
        ("~0 + poly(depth, 50)", DesignError, "more than 8 different values"),
        ("~0 + poly(depth, a)", DesignError, "takes no second column"),
        ("~0 + poly(depth, 1.5)", DesignError, "no whole number"),
        ("~0 + poly(depth, degree = 2, degree = 3)", DesignError, "has no place for 'degree'"),
        ("~0 + ns(depth, df = 9999999)", DesignError, "no whole number from 1 to 100"),
        ("~0 + ns(batch, df = 5)", DesignError, "knots coincide"),
        ("~0 + scale(one)", SchemaError, "needs numbers"),
        ("~0 + factor(log(depth))", DesignError, "takes a column, alone"),
        ("~a:offset(depth)", DesignError, "offset is in an interaction"),
        ("~log(depth) + `log(depth)`", DesignError, "a function and a column"),
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
    "~log(depth)+a",
    "~0+a*log2(depth+1)",
    "~log10(depth):b+sqrt(depth)+exp(-depth)",
    "~I(depth^2)+depth+a",
    "~I(1-(2-depth)/3*depth)+I(depth**2+1e5*depth)",
    "~I((depth+1)^-2):b+I(-depth^2)",
    "~poly(depth,2)+b",
    "~poly(depth,degree=3):b",
    "~poly(depth,1)*a",
    "~poly(depth,2,raw=TRUE)",
    "~ns(depth,df=3)+b",
    "~0+b+ns(depth,4)",
    "~ns(depth,df=1):b",
    "~b*ns(log(depth),df=2)",
    "~scale(depth)*a",
    "~scale(depth,center=FALSE)+scale(depth,TRUE,FALSE)",
    "~scale(log1p(`de pth`))+a",
    "~a+offset(log(depth))",
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
        "library(splines); for (i in seq_along(formulas)) "
        "{ m <- model.matrix(as.formula(formulas[i]), d); "
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
    assert [name.replace("`", "") for name in design.columns] == list(expected.columns)
    if "(" not in formula.replace("factor(", "").replace("~(", "").replace("+(", ""):
        np.testing.assert_array_equal(design.matrix, expected.to_numpy())
    size = np.abs(expected.to_numpy()).max(axis=0)
    assert (np.abs(design.matrix - expected.to_numpy()) <= 1e-12 * size).all()
