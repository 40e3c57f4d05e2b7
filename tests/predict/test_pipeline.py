"""From a run to a prediction: nothing leaks, nothing depends on order, bad noise is seen, and the
contract holds.
"""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from perturbgen.baselines import Predictor
from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError
from perturbgen.core.tables import conditions_of
from perturbgen.data.aggregate import pseudobulk
from perturbgen.data.splits import Split
from perturbgen.de import flavour_table
from perturbgen.generate import CellSampler
from perturbgen.predict import (
    GenerativePredictor,
    MeasuredExperiment,
    PredictSettings,
    Shrinkage,
    Task,
    predict,
    withheld_likelihood,
    without,
)
from perturbgen.predict.calibration import _TWIN, _calibration_conditions
from perturbgen.predict.estimators import _anchored_t
from perturbgen.predict.experiment import _check_generated
from perturbgen.predict.weights import _gate
from perturbgen.predict.wells import _expected_log2
from tests.predict.conftest import (
    COMPOUNDS,
    FAST,
    FEW_TREES,
    GENES,
    KNOWN,
    make_experiment,
    train,
    wanted_table,
)

WANTED = wanted_table()
LABELS = pd.MultiIndex.from_frame(WANTED)


@pytest.fixture(scope="module")
def sampler(experiment_file):
    return CellSampler.of(ad.read_h5ad(experiment_file), seed=0, settings=FEW_TREES)


def test_every_estimator_answers_for_every_condition(vae, experiment, sampler):
    names = ("mean_t", "anchored_t", "plug_in", "shrunk", "shrunk_mean", "shrunk_plug_in")
    settings = PredictSettings(estimators=names, replicates=2, levels=2)
    found = predict(vae, experiment, WANTED, settings, sampler=sampler, keep=(1, 2))
    assert set(found.values) == set(names)
    for values in found.values.values():
        assert values.index.equals(LABELS)
        assert list(values.columns) == GENES
        assert np.isfinite(values.to_numpy()).all()
    for name in ("mean_t", "anchored_t"):
        pd.testing.assert_frame_equal(found.by_replicates[2][name], found.values[name])
        assert not found.by_replicates[1][name].equals(found.by_replicates[2][name])
    assert sorted(found.measured.index) == [("B", name) for name in KNOWN]
    assert list(found.scores.index) == [1, 2]
    pairs = (("anchored_t", "shrunk"), ("mean_t", "shrunk_mean"), ("plug_in", "shrunk_plug_in"))
    for raw, name in pairs:
        values, shrinkage = found.values[raw], found.shrinkage[name]
        gated = values.mul(_gate(values, shrinkage.noise), axis=0)
        ratio = (found.values[name] / gated.where(gated.abs() > 1e-9)).round(9)
        factors = shrinkage.factors.round(9).to_numpy().ravel()
        assert np.isin(ratio.to_numpy()[ratio.notna().to_numpy()], factors).all()
        assert found.calibrated[name].shape == found.calibrated[raw].shape == found.measured.shape


def test_calibration_conditions_are_given_out_as_shrunk_by_the_others(
    vae, experiment, sampler, monkeypatch
):
    """In the ensemble, a member that was shrunk by a condition's own answer would look too good."""
    monkeypatch.setattr(Shrinkage, "by_others", lambda values, truth, levels: values * 0 + 7)
    settings = PredictSettings(estimators=("shrunk",), replicates=1, levels=2)
    found = predict(vae, experiment, WANTED, settings, sampler=sampler)
    assert (found.calibrated["shrunk"] == 7).all(axis=None)
    assert not (found.values["shrunk"] == 7).any(axis=None)


def test_anchored_t_is_against_generated_vehicle_wells_of_the_same_places(vae, experiment, sampler):
    settings = PredictSettings(estimators=("anchored_t",), replicates=1)
    task = Task.of(vae, experiment, LABELS, settings, sampler=sampler)
    mock = task.wanted.untreated("DMSO")
    assert (mock.wells["compound"] == "DMSO").all()
    # fewer than twelve compounds: all their wells
    assert set(mock.wells["well"]) == set(task.wanted.wells["well"])
    samples = (
        task.experiment.draw(task.wanted, replicate=1),
        task.experiment.draw(mock, replicate=1),
    )
    table = task.experiment.fit(*samples)
    t = _anchored_t(table, task.groups, vehicle="DMSO")
    base = table.logfc.loc[("B", "DMSO (untreated)")]
    key = ("B", COMPOUNDS[3])
    pd.testing.assert_series_equal(
        t.loc[key], (table.logfc.loc[key] - base) / table.se.loc[key], check_names=False
    )
    # A model that is wrong by the same factor in every well of a cell type: the average of t sees
    # it, this does not.
    wrong = np.where(np.arange(len(GENES)) % 2, 3.0, 1.0)
    for part in samples:
        part.X = sp.csr_array(np.rint(part.X.toarray() * wrong))
    biased = task.experiment.fit(*samples)
    here = _anchored_t(biased, task.groups, vehicle="DMSO").loc[key]
    assert (here - t.loc[key]).abs().median() < 0.25 * (
        biased.t.loc[key] - table.t.loc[key]
    ).abs().median()


def test_the_seed_decides_and_the_order_of_conditions_does_not(vae, experiment, sampler):
    first, again = (
        predict(vae, experiment, WANTED, FAST, sampler=sampler).values["mean_t"] for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    turned = predict(vae, experiment, WANTED.iloc[::-1], FAST, sampler=sampler).values["mean_t"]
    assert list(turned.index) == list(LABELS[::-1])
    pd.testing.assert_frame_equal(first, turned.loc[LABELS])
    other = predict(
        vae, experiment, WANTED, FAST.model_copy(update={"seed": 1}), sampler=sampler
    ).values["mean_t"]
    assert not first.equals(other)


def test_cells_of_the_conditions_to_predict_are_never_looked_at(vae, experiment):
    everything = make_experiment(everything=True)
    hidden = (
        (everything.obs["cell_type"] == "B") & everything.obs["compound"].isin(COMPOUNDS[3:])
    ).to_numpy()
    absurd = everything.copy()
    absurd.X = sp.csr_matrix(everything.X.toarray() * np.where(hidden, 100, 1)[:, None])
    settings = PredictSettings(estimators=("shrunk",), replicates=1, levels=2)
    first, second = (
        predict(vae, cells, WANTED, settings).values["shrunk"] for cells in (everything, absurd)
    )
    pd.testing.assert_frame_equal(first, second)


def test_the_order_of_genes_in_the_file_does_not_matter(vae, experiment, sampler):
    shuffled = experiment[:, GENES[::-1]].copy()
    first, second = (
        predict(vae, cells, WANTED, FAST, sampler=sampler).values["mean_t"]
        for cells in (experiment, shuffled)
    )
    pd.testing.assert_frame_equal(first, second)


def test_replicates_grow_until_they_are_in_vain(vae, experiment, sampler):
    settings = FAST.model_copy(update={"replicates": None, "most": 20})
    found = predict(vae, experiment, WANTED, settings, sampler=sampler)
    assert 3 <= len(found.scores) <= 20
    assert (
        found.scores.iloc[-2:].min() > 0.99 * found.scores.iloc[:-2].min()
        or len(found.scores) == 20
    )


def test_real_samples_of_the_same_cell_types_join_the_fit(vae, experiment, sampler):
    settings = PredictSettings(estimators=("shrunk",), replicates=1)
    task = Task.of(vae, experiment, LABELS, settings, sampler=sampler)
    drawn = [task.experiment.draw(group, replicate=1) for group in task.groups]
    table = task.experiment.fit(*drawn)
    assert set(task.experiment.real.obs["cell_type"]) == {"B"}
    assert set(table.conditions.index) == {
        ("B", c) for c in (*COMPOUNDS, *(f"{c}{_TWIN}" for c in KNOWN))
    }
    generated = drawn[0].obs
    here = experiment.obs[["plate", "well", "donor", "row", "compound"]].drop_duplicates()
    assert len(generated.merge(here)) == len(generated) > 0
    # Real conditions are what they are without us, but for the shared variance.
    alone = task.experiment.fit()
    for key, row in alone.logfc.iterrows():
        assert np.corrcoef(row, table.logfc.loc[key])[0, 1] > 0.97


def test_conditions_that_a_run_withheld_are_the_ones_it_is_calibrated_on(
    experiment_file, experiment, caplog, vae
):
    parts = pd.Series("train", experiment.obs_names, name="part").rename_axis("cell")
    parts[
        ((experiment.obs["cell_type"] == "B") & (experiment.obs["compound"] == KNOWN[0])).to_numpy()
    ] = "withheld"
    split = experiment_file.parent / "split.csv"
    Split(parts, "cells").write(split)
    data = {"path": str(experiment_file), "split": str(split)}
    model = {"latent": 2, "decoder": {"hidden": [8]}}
    honest = train(experiment_file.parent, data=data, model=model)
    bench = MeasuredExperiment.of(experiment, ["B"], vehicle="DMSO", flavour="kaggle")
    options = {"vehicle": "DMSO"}
    with caplog.at_level(logging.WARNING):
        assert list(
            _calibration_conditions(honest, experiment.obs, bench.fit(), ["B"], **options)
        ) == [("B", KNOWN[0])]
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(
            _calibration_conditions(vae, experiment.obs, bench.fit(), ["B"], **options)
        ) == len(KNOWN)
    assert "was trained on the measured conditions of 'B'" in caplog.text
    settings = PredictSettings(estimators=("shrunk",), replicates=1, levels=2)
    found = predict(vae, experiment, WANTED, settings, calibration_run=honest)
    assert list(found.measured.index) == [("B", KNOWN[0])]


@pytest.fixture(scope="module")
def honest(experiment_file):
    """A run that never saw a known compound in B cells, of a file whose genes stand the other way
    round.
    """
    experiment = make_experiment()[:, GENES[::-1]].copy()
    parts = pd.Series("train", experiment.obs_names, name="part").rename_axis("cell")
    parts[conditions_of(experiment.obs) == ("B", KNOWN[0])] = "withheld"
    path, split = experiment_file.parent / "reversed.h5ad", experiment_file.parent / "hidden.csv"
    experiment.write_h5ad(path)
    Split(parts, "cells").write(split)
    data = {"path": str(path), "split": str(split)}
    model = {"latent": 2, "decoder": {"hidden": [8], "additive": True}}
    return train(
        experiment_file.parent, data=data, model=model, training={"epochs": 600, "batch_size": 64}
    )


def test_a_calibration_run_may_have_its_genes_in_another_order(vae, honest, experiment):
    settings = PredictSettings(estimators=("shrunk", "plug_in"), replicates=1, levels=2)
    task = Task.of(vae, experiment, LABELS, settings, sampler=None, calibration_run=honest)
    made = task.experiment.draw(task.twins, replicate=1)
    assert list(made.var_names) == GENES
    real = task.experiment.real[(task.experiment.real.obs["cell_type"] == "B").to_numpy()]
    profiles = [np.log1p(np.asarray(part.X.sum(axis=0)).ravel()) for part in (made, real)]
    assert np.corrcoef(profiles)[0, 1] > 0.9, "of other genes, near 0"
    # One file, both orders: the model's own contrast lands on the same names.
    here = task.twins.logfc(vehicle="DMSO", genes=pd.Index(GENES))
    there = task.twins.logfc(vehicle="DMSO", genes=pd.Index(GENES[::-1]))
    pd.testing.assert_frame_equal(here, there[GENES])


def test_wells_that_the_judge_never_saw_are_drawn_by_a_sampler_that_never_saw_them(
    vae, honest, experiment, sampler
):
    settings = PredictSettings(estimators=("shrunk",), replicates=1, levels=2)
    judged = Task.of(vae, experiment, LABELS, settings, sampler=sampler, calibration_run=honest)
    hidden = ("B", KNOWN[0])
    assert hidden in list(conditions_of(judged.wanted.plan.sampler.table.groups))
    assert hidden not in list(conditions_of(judged.twins.plan.sampler.table.groups))
    assert ("B", KNOWN[1]) in list(conditions_of(judged.twins.plan.sampler.table.groups))
    remembered = Task.of(vae, experiment, LABELS, settings, sampler=sampler)
    assert remembered.twins.plan.sampler is sampler


def test_a_sampler_that_saw_the_wanted_conditions_is_refused(vae, experiment):
    knowing = CellSampler.of(make_experiment(everything=True), seed=0, settings=FEW_TREES)
    with pytest.raises(SchemaError, match="was fitted on 3 of the conditions to predict"):
        predict(vae, experiment, WANTED, FAST, sampler=knowing)


def test_the_benchmarks_flavour_is_fitted_on_all_cell_types_and_stays_within_its_limit(
    vae, experiment, sampler
):
    names = ("mean_t", "anchored_t", "plug_in", "shrunk", "shrunk_mean", "shrunk_plug_in")
    strong = experiment.copy()
    factor = np.ones(strong.shape, int)
    factor[(strong.obs["compound"] == "DMSO").to_numpy(), :6] = 30
    strong.X = sp.csr_matrix(strong.X.toarray() * factor)
    settings = PredictSettings(estimators=names, replicates=1, levels=2, flavour="op3")
    found = predict(vae, strong, WANTED, settings, sampler=sampler)
    largest = {name: float(values.abs().to_numpy().max()) for name, values in found.values.items()}
    assert max(largest.values()) <= 4
    assert largest["mean_t"] == 4  # it would be larger
    task = Task.of(vae, experiment, LABELS, settings, sampler=sampler)
    whole = flavour_table(
        pseudobulk(experiment, by=["plate", "well", "cell_type"]), flavour="op3", control="DMSO"
    )
    pd.testing.assert_frame_equal(
        task.experiment.measured.t, whole.t.loc[task.experiment.measured.t.index]
    )
    assert set(task.experiment.measured.t.index.get_level_values(0)) == {"B", "T"}
    assert set(task.twins.plan.conditions["cell_type"]) == {"B"}


def test_plug_in_is_the_models_own_contrast(vae, experiment, sampler):
    settings = PredictSettings(estimators=("plug_in",))
    task = Task.of(vae, experiment, LABELS, settings, sampler=sampler)
    same = task.wanted._replace(wells=task.wanted.wells.assign(compound="DMSO"))
    none = same.logfc(vehicle="DMSO", genes=pd.Index(GENES))
    assert np.allclose(none.dropna(), 0)
    assert (task.wanted.logfc(vehicle="DMSO", genes=pd.Index(GENES)).abs() > 0).to_numpy().any()


def test_plug_in_needs_a_run_that_knows_compounds(experiment_file, experiment, sampler):
    model = {"latent": 2, "decoder": {"hidden": [8]}}
    run = train(
        experiment_file.parent,
        data={"path": str(experiment_file)},
        model=model,
        conditions={"cell_type": {}, "well": {}},
    )
    with pytest.raises(ConfigError, match="not conditioned on compound"):
        predict(run, experiment, WANTED, PredictSettings(estimators=("plug_in",)), sampler=sampler)
    with pytest.raises(ConfigError, match="not conditioned on compound"):
        predict(run, experiment, WANTED, PredictSettings(estimators=("shrunk",)), sampler=sampler)
    values = predict(run, experiment, WANTED, FAST, sampler=sampler).values["mean_t"]
    # the seed's own conditions, cell type and well, are enough to generate
    assert values.index.equals(LABELS)


def test_expected_log2_is_that_of_poisson_counts():
    for mean in (0.0, 0.01, 0.7, 30.0, 990.0, 5000.0):
        counts = np.arange(8000)
        exact = stats.poisson.pmf(counts, mean) @ np.log2(counts + 0.5)
        assert _expected_log2(np.array([mean]))[0] == pytest.approx(exact, abs=2e-4)


def bulk(rng, n, mean, compound, *, noise=True):
    """Samples of 40 cells on two plates."""
    rate = np.full((n, 60), mean)
    counts = (
        rng.poisson(rate * np.exp(rng.normal(0, 0.3, rate.shape))) if noise else rate.astype(int)
    )
    obs = pd.DataFrame(
        {"cell_type": "B", "compound": compound, "plate": ["p0", "p1"] * (n // 2), "n_cells": 40}
    )
    obs.index = [f"{compound} {i}" for i in range(n)]
    return ad.AnnData(sp.csr_array(counts), obs=obs)


def test_a_design_that_tells_compounds_apart_is_refused_and_says_why(vae, experiment):
    """It was predicted as 0, with the words that no cell had been drawn."""
    cells = experiment.copy()
    cells.obs["tube"] = "tube of " + cells.obs["compound"].astype(str)
    words = r"1 of 1 conditions cannot be compared with 'DMSO': 'B \| .*"
    settings = PredictSettings(estimators=("mean_t",), replicates=1, design="~0 + {group} + tube")
    with pytest.raises(SchemaError, match=words) as caught:
        predict(vae, cells, WANTED[:1], settings)
    assert "each value of 'tube' has samples of one compound alone" in str(caught.value)
    good = settings.model_copy(update={"design": "~0 + {group} + plate"})
    found = predict(vae, cells, WANTED[:1], good).values["mean_t"]
    assert (found != 0).any(axis=None)
    other = settings.model_copy(update={"design": "~0 + {group} + batch"})
    with pytest.raises(SchemaError, match="the design needs 'batch', which obs does not have"):
        predict(vae, cells, WANTED[:1], other)


def test_samples_of_fewer_cells_are_no_noisier_than_they_have_to_be(caplog):
    """Vehicle samples are the large ones: a sixth of their cells was a sixfold variance."""
    rng = np.random.default_rng(0)
    tables = []
    for cells, compound in ((60, "DMSO"), (10, "x")):
        mean = np.repeat(cells * np.linspace(0.8, 3, 40)[None], 30, axis=0)
        obs = pd.DataFrame(
            {"cell_type": "B", "compound": compound, "plate": "p", "n_cells": cells}, range(30)
        )
        obs.index = [f"{compound} {i}" for i in range(30)]
        tables.append(ad.AnnData(sp.csr_array(rng.poisson(mean)), obs=obs))
    with caplog.at_level(logging.WARNING):
        found = _check_generated(tables[1], tables[0], vehicle="DMSO")
    assert not caplog.records
    assert found.loc["B", "variance"] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, None),
        ({"noise": False}, "variance"),
        ({"mean": 90.0}, "depth"),
        ({"mean": 400.0}, "depth"),
    ],
)
def test_wrong_depth_and_missing_noise_are_seen(caplog, options, warned):
    rng = np.random.default_rng(0)
    real = bulk(rng, 30, 200.0, "DMSO")
    generated = bulk(rng, 30, **{"mean": 200.0, "compound": "x", **options})
    with caplog.at_level(logging.WARNING):
        table = _check_generated(generated, real, vehicle="DMSO")
    assert ("generated over real" in caplog.text) == (warned is not None)
    if warned:
        assert f"real {warned} is outside" in caplog.text
        assert f"B {table[warned].iat[0]:.2f}" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: pd.concat([t, t.iloc[:1]]), "conditions occur twice: 'B | drug 3'"),
        (lambda t: t.assign(cell_type="Z"), "no well of cell type 'Z'"),
        (lambda t: t.iloc[:1].assign(compound="drug 77"), "does not have: 'drug 77'"),
        (lambda t: t.iloc[:0], "no condition is asked for"),
        (lambda t: t.drop(columns="compound"), "no such column"),
        (lambda t: t.assign(compound=[None, *t["compound"][1:]]), "is missing in 1"),
    ],
)
def test_bad_conditions_are_refused(vae, experiment, sampler, change, words):
    with pytest.raises(SchemaError, match=words):
        predict(vae, experiment, change(WANTED), FAST, sampler=sampler)


def test_a_cell_type_without_real_controls_is_refused(vae, experiment, sampler):
    bare = experiment[
        ~((experiment.obs["cell_type"] == "B") & (experiment.obs["compound"] == "DMSO"))
    ].copy()
    settings = FAST.model_copy(update={"latent": "prior"})
    with pytest.raises(SchemaError, match="no well of the vehicle 'DMSO' has cells of type 'B'"):
        predict(vae, bare, WANTED, settings, sampler=sampler)


def test_nothing_to_calibrate_on_is_refused_and_says_what_needs_none(vae, experiment):
    only = without(experiment, pd.MultiIndex.from_product([["B"], KNOWN]))
    with pytest.raises(SchemaError, match="no compound was measured in 'B'"):
        predict(vae, only, WANTED, PredictSettings(estimators=("shrunk",), replicates=1))
    assert predict(vae, only, WANTED, FAST).values["mean_t"].shape == (3, len(GENES))


def test_a_condition_without_any_cell_is_predicted_as_zero_with_a_warning(
    vae, experiment, sampler, monkeypatch, caplog
):
    from perturbgen.generate import Plan

    libraries = Plan.libraries

    def none_of_the_first(self, replicate):
        lost = (self.wells["compound"] == COMPOUNDS[3]).to_numpy()
        return [
            size[:0] if gone else size
            for size, gone in zip(libraries(self, replicate), lost, strict=True)
        ]

    monkeypatch.setattr(Plan, "libraries", none_of_the_first)
    with caplog.at_level(logging.WARNING):
        values = predict(vae, experiment, WANTED, FAST, sampler=sampler).values["mean_t"]
    assert (values.loc[("B", COMPOUNDS[3])] == 0).all()
    assert (values.loc[("B", COMPOUNDS[4])] != 0).any()
    assert "no cell was drawn for 1 conditions" in caplog.text


def test_a_model_is_a_predictor_like_any_other(vae, experiment):
    bench = MeasuredExperiment.of(experiment, ["B", "T"], vehicle="DMSO", flavour="kaggle")
    table = bench.fit().signed_log10_p
    model = GenerativePredictor(vae, experiment, FAST)
    assert isinstance(model, Predictor)
    with pytest.raises(PerturbgenError, match="not been fitted"):
        model.predict(LABELS)
    fitted = model.fit(table[GENES[::-1]], rng=np.random.default_rng(0))
    values = fitted.predict(LABELS[::-1])
    assert values.index.equals(LABELS[::-1])
    assert list(values.columns) == GENES[::-1]
    again = (
        GenerativePredictor(vae, experiment, FAST)
        .fit(table, rng=np.random.default_rng(0))
        .predict(WANTED)
    )
    pd.testing.assert_frame_equal(again, values.loc[LABELS, GENES])


def test_a_predictor_trains_on_the_cells_of_its_training_rows_alone(vae, experiment):
    seen = []
    rows = pd.MultiIndex.from_tuples([("T", name) for name in COMPOUNDS] + [("B", KNOWN[1])])
    table = pd.DataFrame(0.0, rows, GENES)
    GenerativePredictor(lambda cells, seed: seen.append(cells) or vae, experiment, FAST).fit(
        table, rng=np.random.default_rng(0)
    )
    labels = set(zip(seen[0].obs["cell_type"], seen[0].obs["compound"], strict=True))
    assert labels == {*rows, ("T", "DMSO"), ("B", "DMSO")}


def test_withheld_cells_have_a_likelihood_under_their_compound(vae):
    cells = make_experiment(everything=True)
    table = withheld_likelihood(
        vae, cells[cells.obs["compound"].isin(["DMSO", COMPOUNDS[4]])].copy(), samples=4, most=6
    )
    assert (table["cells"] <= 6).all()
    assert (table["nll"] > 0).all()
    assert np.allclose(table.loc[[("B", "DMSO"), ("T", "DMSO")], "gain"], 0)
    assert (table.loc[("T", COMPOUNDS[4]), "gain"]) != 0
