"""What holds for every baseline: labels decide, order does not, seeds repeat, nothing withheld
leaks in.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from perturbgen.baselines import REGISTRY, Predictor, make, mimic_folds, out_of_fold
from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError
from tests.baselines.cases import KNOWS_NO_LABELS, LEARNERS, MODELS, QUICK, quick

RNG = np.random.default_rng
Task = tuple[pd.DataFrame, pd.DataFrame]


def test_every_baseline_is_tried_here() -> None:
    # These two need more than the table, and have tests of their own.
    missing = set(REGISTRY) - set(QUICK) - {"ground_truth", "pseudobulk_forest"}
    assert not missing, f"add {sorted(missing)} to QUICK in tests/baselines/cases.py"
    assert set(QUICK) <= set(REGISTRY)


@pytest.mark.parametrize("name", QUICK)
def test_predictions_are_labelled_and_finite(task: Task, name: str) -> None:
    train, test = task
    model = quick(name)
    assert isinstance(model, Predictor)
    found = model.fit(train, rng=RNG(0)).predict(test.index)
    assert found.index.equals(test.index)
    assert found.columns.equals(train.columns)
    assert np.isfinite(found.to_numpy()).all()


@pytest.mark.parametrize("name", QUICK)
def test_the_same_seed_gives_the_same_bits_whatever_the_order_of_the_rows(
    task: Task, name: str
) -> None:
    train, test = task
    first = quick(name).fit(train, rng=RNG(7)).predict(test.index)
    shuffled = train.iloc[RNG(1).permutation(len(train))]
    swapped = shuffled.set_axis(shuffled.index.reorder_levels(["compound", "cell_type"]))
    second = quick(name).fit(swapped, rng=RNG(7)).predict(test.index)
    if REGISTRY[name].kind.canonical:
        pd.testing.assert_frame_equal(first, second, check_exact=True)
    else:  # plain sums, up to the order of their terms
        pd.testing.assert_frame_equal(first, second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name", [n for n in QUICK if not REGISTRY[n].random and n not in ("blend", "nested")]
)
def test_the_order_of_genes_and_requests_means_nothing(task: Task, name: str) -> None:
    train, test = task
    first = quick(name).fit(train, rng=RNG(7)).predict(test.index)
    second = quick(name).fit(train.iloc[:, ::-1], rng=RNG(7)).predict(test.index[::-1])
    pd.testing.assert_frame_equal(
        first, second.loc[first.index, first.columns], rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("name", [n for n in QUICK if REGISTRY[n].random])
def test_another_seed_gives_another_prediction(task: Task, name: str) -> None:
    train, test = task
    first, second = (quick(name).fit(train, rng=RNG(seed)).predict(test.index) for seed in (1, 2))
    if name == "blend":  # its folds are drawn, and with them its weights
        assert not first.equals(second)
    elif name != "nested":  # the same setting may be best on other folds
        assert np.abs(first - second).to_numpy().max() > 1e-9


@pytest.mark.parametrize("name", QUICK)
def test_a_withheld_row_never_influences_its_own_prediction(task: Task, name: str) -> None:
    train, _ = task
    name_of_fold, withheld = next(iter(mimic_folds(train.index, folds=2, rng=RNG(0)).items()))
    folds, label = {name_of_fold: withheld}, withheld[0]
    changed = train.copy()
    changed.loc[label] = 1000.0
    first, second = (
        out_of_fold(lambda: quick(name), t, folds, rng=RNG(0)) for t in (train, changed)
    )
    pd.testing.assert_series_equal(first.loc[label], second.loc[label], check_exact=True)


@pytest.mark.parametrize("name", MODELS)
def test_models_beat_the_additive_world_without_effects(task: Task, name: str) -> None:
    """A low-rank world: whoever models compounds must beat the mean of the cell type clearly."""
    train, test = task
    errors = {}
    for key in (name, "cell_type_mean"):
        found = quick(key).fit(train, rng=RNG(0)).predict(test.index)
        errors[key] = float(np.sqrt(((found - test) ** 2).to_numpy().mean()))
    assert errors[name] < 0.9 * errors["cell_type_mean"]


@pytest.mark.parametrize("name", LEARNERS)
def test_shuffled_labels_leave_nothing_to_learn(task: Task, name: str) -> None:
    """With the values dealt to the labels at random, out-of-fold predictions know nothing of what
    they predict.
    """
    train, _ = task
    skills = []
    for seed in range(3):
        dealt = train.set_axis(train.index[RNG(seed).permutation(len(train))])
        centred = dealt - dealt.mean()
        found = out_of_fold(
            lambda: quick(name), centred, mimic_folds(train.index, folds=4, rng=RNG(0)), rng=RNG(0)
        )
        truth = centred.loc[list(found.index)]
        skills.append(np.corrcoef(truth.to_numpy().ravel(), found.to_numpy().ravel())[0, 1])
    assert np.mean(skills) < 0.12


@pytest.mark.parametrize("name", [n for n in QUICK if n != "zeros"])
def test_unknown_labels_fall_back_and_are_named(
    task: Task, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    train, _ = task
    new = pd.MultiIndex.from_tuples(
        [("T1", "unheard"), ("nowhere", "c20"), ("nowhere", "unheard")],
        names=["cell_type", "compound"],
    )
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        found = quick(name).fit(train, rng=RNG(0)).predict(new)
    assert np.isfinite(found.to_numpy()).all()
    if name not in KNOWS_NO_LABELS:
        assert "unheard" in caplog.text
        assert "nowhere" in caplog.text


def test_what_the_means_fall_back_to(task: Task) -> None:
    train, _ = task
    new = pd.MultiIndex.from_tuples(
        [("T1", "unheard"), ("nowhere", "c20"), ("nowhere", "unheard")],
        names=["cell_type", "compound"],
    )
    expected = [train.loc["T1"].mean(), train.xs("c20", level="compound").mean(), train.mean()]
    for name in ("compound_mean", "cell_type_mean", "compound_median", "nearest_replicate"):
        found = make(name).fit(train, rng=RNG(0)).predict(new)
        rows = [0, 2] if name == "nearest_replicate" or "median" in name else [0, 1, 2]
        for i in rows:
            np.testing.assert_allclose(found.iloc[i], expected[i], rtol=1e-10)


def test_bad_tables_are_refused_by_name(task: Task) -> None:
    train, test = task
    fit = lambda frame: make("gene_mean").fit(frame, rng=RNG(0))  # noqa: E731
    hole = train.copy()
    hole.iloc[3, 5] = np.nan
    with pytest.raises(SchemaError, match=r"gene 'g5' of S1 \| c03"):
        fit(hole)
    with pytest.raises(SchemaError, match=r"names conditions twice: 'S1 \| c00'"):
        fit(pd.concat([train, train.iloc[:1]]))
    with pytest.raises(SchemaError, match="cell_type"):
        fit(train.reset_index(drop=True))
    with pytest.raises(SchemaError, match="no rows"):
        fit(train.iloc[:0])
    with pytest.raises(SchemaError, match="genes twice: 'g0'"):
        fit(pd.concat([train, train.iloc[:, :1]], axis=1))
    with pytest.raises(SchemaError, match="'word' hold no numbers"):
        fit(train.assign(word="a"))
    with pytest.raises(SchemaError, match="names conditions twice"):
        fit(train).predict(test.index.append(test.index[:1]))
    with pytest.raises(PerturbgenError, match="has not been fitted"):
        make("gene_mean").predict(test.index)


def test_wrong_names_and_settings_are_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kernel_ridge'"):
        make("kernel_rigde")
    with pytest.raises(ConfigError, match="unknown key 'rigde': did you mean 'ridge'"):
        make("kernel_ridge", rigde=1)
    with pytest.raises(ConfigError, match="ridge"):
        make("kernel_ridge", ridge=-1)
    with pytest.raises(ConfigError, match="ground_truth needs truth"):
        make("ground_truth")
    with pytest.raises(ConfigError, match="gene_mean makes no use of smiles"):
        make("gene_mean", smiles=pd.Series({"a": "C"}))
    with pytest.raises(ConfigError, match="no member"):
        make("blend", members=["zeros"], settings={"additve": {}})
    with pytest.raises(ConfigError, match="unknown key 'tress'"):
        make("nested", base="random_forest", grid={"tress": [1]})
    with pytest.raises(SchemaError, match="no SMILES are given"):
        make("xgboost", fingerprints=64)


def test_one_row_is_enough_for_the_means() -> None:
    one = pd.DataFrame(
        [[1.0, 2.0]], pd.MultiIndex.from_tuples([("A", "x")], names=["cell_type", "compound"])
    )
    names = (
        "zeros",
        "gene_mean",
        "compound_mean",
        "cell_type_mean",
        "compound_median",
        "additive",
        "shrunken_additive",
    )
    for name in names:
        found = make(name).fit(one, rng=RNG(0)).predict(one.index)
        np.testing.assert_allclose(found, 0 if name == "zeros" else one, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, e in REGISTRY.items() if e.intervals])
def test_intervals_cover(name: str) -> None:
    """Ninety-percent intervals hold about that share of new rows from the same world."""
    rng = RNG(3)
    cells, compounds, genes = 4, 40, 60
    index = pd.MultiIndex.from_product(
        [[f"t{i}" for i in range(cells)], [f"c{i}" for i in range(compounds)]]
    )
    index.names = ["cell_type", "compound"]
    if name == "zeros" or name.endswith("mean"):  # the world in which its assumption holds
        values = rng.normal(size=(cells * compounds, genes))
    else:
        parts = rng.normal(size=(cells, 1, genes)) + rng.normal(
            size=(1, compounds, 4)
        ) @ rng.normal(size=(4, genes))
        values = (parts + rng.normal(size=(cells, compounds, genes))).reshape(-1, genes)
    full = pd.DataFrame(values, index)
    out = rng.random(len(full)) < 0.15
    model = quick(name).fit(full[~out], rng=RNG(0))
    lower, upper = model.predict_interval(full.index[out])
    covered = ((full[out] >= lower) & (full[out] <= upper)).to_numpy().mean()
    assert 0.8 < covered < 0.97


def test_who_has_no_interval_says_so(task: Task) -> None:
    train, test = task
    for name in [n for n in QUICK if not REGISTRY[n].intervals]:
        with pytest.raises(ConfigError, match="no prediction intervals"):
            quick(name).fit(train, rng=RNG(0)).predict_interval(test.index)
    with pytest.raises(ConfigError, match="interval of level 90"):
        make("gene_mean").fit(train, rng=RNG(0)).predict_interval(test.index, level=90)


def test_only_the_pseudolabel_network_looks_at_the_other_conditions(task: Task) -> None:
    train, test = task
    for name in QUICK:
        if name == "random_draw":
            continue
        model = quick(name).fit(train, rng=RNG(0))
        alone, together = model.predict(test.index[:5]), model.predict(test.index)
        same = np.allclose(alone, together.iloc[:5], atol=1e-5)
        assert same != REGISTRY[name].transductive, name
