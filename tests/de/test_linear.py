"""A fit that is asked for contrasts: what holds without R, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from perturbgen.core.errors import ConfigError, DesignError, SchemaError
from perturbgen.de import LinearFit, Moderated, fit, limma_table
from perturbgen.de.adjust import adjust_p
from perturbgen.de.tails import inverse_log_p_t, log_p_t
from tests.de.cases import Case, case
from tests.de.compare import relative

CONTRASTS = {"one": "`B-12` - vehicle", "two": "`a b` - vehicle", "gap": "`B-12` - `a b`"}


@pytest.fixture(scope="module")
def experiment() -> Case:
    return case("balanced")


@pytest.fixture(scope="module")
def fitted(experiment: Case) -> LinearFit:
    return fit(experiment.counts, experiment.obs, design=experiment.formula)


@pytest.fixture(scope="module")
def tested(fitted: LinearFit) -> Moderated:
    return fitted.contrasts(CONTRASTS).ebayes()


@pytest.mark.parametrize("contrasts", ["exact", "limma"])
@pytest.mark.parametrize("options", [{}, {"robust": True, "trend": True}])
def test_a_comparison_with_the_control_is_that_of_limma_table(
    experiment: Case, contrasts: str, options: dict[str, bool]
) -> None:
    made = fit(experiment.counts, experiment.obs, design=experiment.formula, contrasts=contrasts)
    found = made.contrasts({"it": "Abc - vehicle"}).ebayes(**options)
    table = limma_table(
        experiment.counts,
        experiment.obs,
        design=experiment.template,
        group="compound",
        control="vehicle",
        contrasts=contrasts,
        **options,
    )
    assert relative(found.t["it"], table.t.loc["Abc"]) < 1e-10
    assert relative(found.log10_p["it"], table.log10_p.loc["Abc"]) < 1e-8
    assert relative(found.to_de_table().adj_p.loc["it"], table.adj_p.loc["Abc"]) < 1e-8


def test_exact_statistics_do_not_depend_on_the_coding(experiment: Case, tested: Moderated) -> None:
    coded = fit(
        experiment.counts,
        experiment.obs,
        design="~ {group} + plate + donor",
        group="compound",
        control="Abc",
    )
    assert coded.names[0] == "(Intercept)"
    assert "compoundAbc" not in coded.names
    other = coded.contrasts(CONTRASTS).ebayes()
    assert relative(other.t, tested.t) < 1e-8
    assert relative(other.b, tested.b) < 1e-7
    assert relative(other.f_test()["F"], tested.f_test()["F"]) < 1e-8


def test_slopes_and_interactions_are_coefficients() -> None:
    experiment = case("numeric covariate")
    made = fit(
        experiment.counts,
        experiment.obs,
        design="~ {group}*depth + donor",
        group="compound",
        control="vehicle",
    )
    found = made.contrasts(["depth", "`B-12`:depth", "`B-12`:depth - `a b`:depth"]).ebayes()
    separate = made.coefficients
    np.testing.assert_allclose(
        found.logfc["`B-12`:depth - `a b`:depth"],
        separate["compoundB-12:depth"] - separate["compounda b:depth"],
        rtol=1e-6,
        atol=1e-12,
    )
    assert relative(found.logfc["depth"], separate["depth"]) < 1e-8


def test_f_of_one_contrast_is_t_squared_and_of_two_that_of_any_two(tested: Moderated) -> None:
    np.testing.assert_allclose(tested.f_test(["one"])["F"], tested.t["one"] ** 2)
    all_three, two = tested.f_test(), tested.f_test(["two", "gap"])
    assert (all_three["df1"] == 2).all()
    assert relative(all_three["F"], two["F"]) < 1e-8
    expected = stats.f.sf(two["F"], 2, two["df2"])
    np.testing.assert_allclose(two["P.Value"], expected, rtol=1e-9)


def test_treat_without_a_fold_change_is_ebayes_and_otherwise_stricter(fitted: LinearFit) -> None:
    asked = fitted.contrasts(CONTRASTS)
    none, some, plain = asked.treat(0.0), asked.treat(0.5), asked.ebayes()
    assert relative(none.p, plain.p) < 1e-9
    assert (some.p >= plain.p - 1e-12).all(axis=None)
    # one-sided p on either side, by scipy
    t = stats.t(plain.df.to_numpy()[:, None])
    size, se = plain.logfc.abs(), plain.se
    expected = t.sf((size - 0.5) / se) + t.sf((size + 0.5) / se)
    np.testing.assert_allclose(some.p, expected, rtol=1e-8)
    assert some.b is None
    assert (some.t[plain.logfc.abs() <= 0.5].fillna(0) == 0).all(axis=None)


def test_tables_are_sorted_filtered_and_cut(tested: Moderated) -> None:
    assert len(tested.top_table("one")) == 10
    table = tested.top_table("one", number=None)
    assert list(table.columns) == ["logFC", "AveExpr", "t", "P.Value", "adj.P.Val", "B"]
    assert table["B"].is_monotonic_decreasing
    assert tested.top_table("one", number=None, sort="P")["P.Value"].is_monotonic_increasing
    assert tested.top_table("one", number=None, sort="logFC")["logFC"].abs().is_monotonic_decreasing
    unsorted = tested.top_table("one", number=None, sort="none")
    assert unsorted.index.equals(tested.t.index)
    few = tested.top_table("one", number=None, max_p=0.05, lfc=1.0)
    kept = (unsorted["adj.P.Val"] <= 0.05) & (unsorted["logFC"].abs() >= 1)
    assert set(few.index) == set(unsorted.index[kept])
    joint = tested.top_table(number=3)
    assert list(joint.columns) == ["one", "two", "gap", "AveExpr", "F", "P.Value", "adj.P.Val"]


def test_intervals_hold_the_share_asked_for(tested: Moderated) -> None:
    table = tested.top_table("one", number=None, sort="none", confint=True)
    at_limit = table["CI.L"] / tested.se["one"] - tested.t["one"]
    np.testing.assert_allclose(-at_limit, stats.t.ppf(0.975, tested.df), rtol=1e-9)
    assert ((table["CI.L"] > 0) | (table["CI.R"] < 0)).equals(tested.p["one"] < 0.05)
    # limma 3.54 takes other genes' variances for these
    few = tested.top_table("one", number=None, sort="none", confint=True, max_p=0.05)
    assert 0 < len(few) < len(table)
    pd.testing.assert_frame_equal(few, table.loc[few.index])
    wide = tested.top_table("one", number=None, sort="none", confint=0.99)
    assert (wide["CI.L"] < table["CI.L"]).all()


def test_decisions(tested: Moderated) -> None:
    separate, joint = tested.decide(), tested.decide("global")
    for name in CONTRASTS:
        expected = np.sign(tested.logfc[name]) * (adjust_p(tested.p[name].to_numpy()) < 0.05)
        np.testing.assert_array_equal(separate[name], expected)
    pooled = adjust_p(tested.p.to_numpy().ravel()) < 0.05
    np.testing.assert_array_equal(joint.to_numpy().ravel() != 0, pooled)
    nested = tested.decide("nestedF")
    significant = adjust_p(tested.f_test()["P.Value"].to_numpy()) < 0.05
    assert ((nested != 0).any(axis=1).to_numpy() == significant).all()
    assert ((tested.decide(lfc=2.0) != 0) <= (tested.logfc.abs() > 2)).all(axis=None)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("BH", [0.04, 0.04, 0.06, 0.5]),
        ("bonferroni", [0.04, 0.08, 0.18, 1.0]),
        ("holm", [0.04, 0.06, 0.09, 0.5]),
        ("BY", [0.04 * 25 / 12, 0.04 * 25 / 12, 0.06 * 25 / 12, 1.0]),
        ("none", [0.01, 0.02, 0.045, 0.5]),
    ],
)
def test_adjusted_p_of_four_tests_by_hand(method: str, expected: list[float]) -> None:
    np.testing.assert_allclose(adjust_p(np.array([0.01, 0.02, 0.045, 0.5]), method), expected)


@pytest.mark.parametrize("df", [1.0, 2.5, 10.0, 300.0, 1e5, np.inf])
def test_t_of_a_p_is_the_inverse_however_small_it_is(df: float) -> None:
    t = np.array([1e-3, 0.1, 1.0, 3.0, 8.0, 20.0, 37.0, 200.0])
    np.testing.assert_allclose(inverse_log_p_t(log_p_t(t, df), df), t, rtol=1e-9)


def test_filters_and_matrices_in_place_of_formulas(experiment: Case, fitted: LinearFit) -> None:
    design = fitted.design
    frame = pd.DataFrame(design.matrix, experiment.obs.index, list(design.columns))
    shuffled = frame.sample(frac=1, random_state=0)
    made = fit(experiment.counts, experiment.obs, design=shuffled)
    pd.testing.assert_frame_equal(made.coefficients, fitted.coefficients)
    named = made.contrasts("`compoundB-12` - compoundvehicle").ebayes()
    assert relative(named.t.iloc[:, 0], fitted.contrasts(CONTRASTS).ebayes().t["one"]) < 1e-10
    few = fit(
        experiment.counts, experiment.obs, design=experiment.formula, gene_filter="filterByExpr"
    )
    assert 0 < len(few.genes) < len(fitted.genes)
    assert few.ebayes().t.index.equals(few.genes)


def test_what_objects_show_fits_on_a_screen(fitted: LinearFit, tested: Moderated) -> None:
    assert "300 genes x 36 samples" in repr(fitted)
    assert "one: " in repr(tested)
    assert "beyond a log2 fold change of 0.5" in repr(
        fitted.contrasts("`a b` - vehicle").treat(0.5)
    )


BAD = {
    "no contrast": (lambda f: f.contrasts({}), ConfigError, "no contrast is asked for"),
    "no level": (lambda f: f.contrasts("`B-13` - vehicle"), DesignError, "did you mean 'B-12'"),
    "proportion": (lambda f: f.ebayes(proportion=0.0), ConfigError, "proportion=0.0"),
    "lfc": (lambda f: f.treat(-1.0), ConfigError, "lfc=-1.0"),
    "lfc nan": (lambda f: f.treat(float("nan")), ConfigError, "lfc=nan"),
    "unknown": (
        lambda f: f.contrasts(CONTRASTS).ebayes().top_table("ome"),
        SchemaError,
        "did you mean 'one'",
    ),
    "none": (lambda f: f.ebayes().top_table([]), ConfigError, "no contrast is named"),
    "sort": (
        lambda f: f.contrasts(CONTRASTS).ebayes().top_table("one", sort="b"),
        ConfigError,
        "sort",
    ),
    "no B": (
        lambda f: f.contrasts("Abc - vehicle").treat().top_table(sort="B"),
        ConfigError,
        "no B after treat",
    ),
    "no F": (
        lambda f: f.contrasts(CONTRASTS).treat().top_table(),
        ConfigError,
        "one contrast at a",
    ),
    "nested": (lambda f: f.treat().decide("nestedF"), ConfigError, "does not have"),
    "method": (lambda f: f.ebayes().decide("nested"), ConfigError, "method='nested'"),
    "adjust": (lambda f: f.ebayes().decide(adjust="hb"), ConfigError, "adjust='hb'"),
    "confint": (
        lambda f: f.contrasts(CONTRASTS).ebayes().top_table("one", confint=95),
        ConfigError,
        "confint=95",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_questions_are_explained(name: str, fitted: LinearFit) -> None:
    ask, error, words = BAD[name]
    with pytest.raises(error, match=words):
        ask(fitted)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"design": "~0 + {group}"}, ConfigError, "need the column"),
        ({"design": "~ compound", "control": "vehicle"}, ConfigError, "need the column"),
        ({"design": "~ {group}", "group": "compound", "control": "veicle"}, SchemaError, "did you"),
        ({"design": "~ {group}", "group": "compoud"}, SchemaError, "compound"),
        ({"design": np.ones((3, 1))}, DesignError, "3 rows for 36 samples"),
        ({"design": "~ compound", "contrasts": "exakt"}, ConfigError, "contrasts='exakt'"),
        ({"design": "~ compound", "gene_filter": "intersection"}, ConfigError, "several fits"),
        ({"design": "~ compound", "gene_filter": ["nope"]}, SchemaError, "not in the counts"),
    ],
)
def test_bad_fits_are_explained(
    options: dict[str, object], error: type[Exception], words: str, experiment: Case
) -> None:
    with pytest.raises(error, match=words):
        fit(experiment.counts, experiment.obs, **options)


def test_a_coefficient_that_others_determine_is_refused() -> None:
    experiment = case("balanced")
    obs = experiment.obs.assign(again=experiment.obs["donor"].str.upper())
    made = fit(experiment.counts, obs, design="~ compound + donor + again")
    with pytest.raises(DesignError, match="not estimable: in these samples againD1 is donord1"):
        made.contrasts("againD1")
