"""The metrics of raw counts: cell-eval2's numbers, scipy's test, and what attacks on them get."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats

import perturbgen as pg
from perturbgen.core.errors import ConfigError, CountsError, SchemaError
from perturbgen.evaluate import METRICS, VCC2026, anchors, panel_values, scaled
from perturbgen.evaluate.ranksum import wilcoxon_table
from perturbgen.scores import count_metrics, measured_cells
from tests.evaluate.cell_eval2.world import COLUMN, CONTROL, world

GOLDENS = Path(__file__).parent / "cell_eval2"
WHERE = {"perturbation": COLUMN, "control": CONTROL}


@pytest.fixture(scope="module")
def sides() -> tuple[AnnData, AnnData]:
    return world()


def assert_equal_scores(found: pd.DataFrame, golden: pd.DataFrame, tolerance: float) -> None:
    keys = ["perturbation", "metric"]
    both = golden.merge(found, on=keys, suffixes=("_theirs", "_ours"), validate="one_to_one")
    assert len(both) == len(golden) > 0
    np.testing.assert_allclose(both["value_ours"], both["value_theirs"], rtol=0, atol=tolerance)


def test_two_halves_of_real_cells_score_as_cell_eval2_says(real_data: Path) -> None:
    folder = real_data / "vcc"
    cells = anndata.read_h5ad(folder / "H1-VCC-2025-training.h5ad")
    labels = cells.obs["target_gene"].astype(str).to_numpy()
    rng, predicted = np.random.default_rng(0), np.zeros(len(labels), bool)
    for name in dict.fromkeys(labels):
        drawn = rng.permutation(np.flatnonzero(labels == name))
        predicted[drawn[: len(drawn) // 2]] = True
    found = pg.score_cells(cells[predicted], cells[~predicted], **WHERE, metrics="all")
    golden = pd.read_csv(folder / "cell_eval2_0.20_H1_halves_seed0.csv")
    assert_equal_scores(found, golden, 1e-12)


def test_thirty_perturbations_score_as_cell_eval2_says(sides: tuple[AnnData, AnnData]) -> None:
    truth, prediction = sides
    found = pg.score_cells(prediction, truth, **WHERE, metrics="all")
    golden = pd.read_csv(GOLDENS / "scores.csv")
    assert golden["metric"].nunique() == 9
    assert_equal_scores(found, golden, 1e-12)


def test_the_ends_of_the_scale_are_those_of_cell_eval2(sides: tuple[AnnData, AnnData]) -> None:
    golden = pd.read_csv(GOLDENS / "anchors.csv", index_col="metric")
    measured = measured_cells(sides[0], **WHERE)
    found = anchors(measured, count_metrics("all"))
    for end in ("replicate", "replicate_sd", "baseline"):
        # the baseline's cells are float32 there
        tolerance = 1e-6 if end == "baseline" else 1e-10
        np.testing.assert_allclose(found[end], golden[end][found.index], rtol=tolerance, atol=1e-9)


def test_the_rank_sum_test_is_scipys() -> None:
    rng = np.random.default_rng(1)
    control, cells = (sparse.csr_array(rng.poisson(1.5, (n, 40)).astype(float)) for n in (60, 25))
    table = wilcoxon_table([cells], control)
    scale = [x.toarray() / x.sum(axis=1)[:, None] * 1e6 for x in (cells, control)]
    theirs = stats.mannwhitneyu(*map(np.log1p, scale), method="asymptotic").pvalue
    np.testing.assert_allclose(table.p[0], theirs, rtol=1e-10)
    np.testing.assert_allclose(table.adjusted_p[0], stats.false_discovery_control(theirs))


def test_nothing_depends_on_the_order_of_cells_and_genes(sides: tuple[AnnData, AnnData]) -> None:
    truth, prediction = sides
    rng = np.random.default_rng(2)
    turned = [x[rng.permutation(x.n_obs), rng.permutation(x.n_vars)].copy() for x in sides]
    found = pg.score_cells(turned[1], turned[0], **WHERE)
    wanted = pg.score_cells(prediction, truth, **WHERE)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-9)


def other_counts(cells: AnnData, counts: np.ndarray) -> AnnData:
    return AnnData(sparse.csr_matrix(counts), obs=cells.obs.copy(), var=cells.var.copy())


def test_attacks_get_what_the_specification_says(sides: tuple[AnnData, AnnData]) -> None:
    truth, prediction = sides
    rng = np.random.default_rng(3)
    measured = measured_cells(truth, **WHERE)
    ends = anchors(measured, count_metrics("vcc2026"))

    def place(cells: AnnData) -> pd.Series:
        return scaled(panel_values(pg.score_cells(cells, truth, **WHERE)), ends)

    honest, same = place(prediction), place(truth)
    # deeper cells are the same prediction but for noise, of which none may be claimed twice
    deeper = panel_values(pg.score_cells(other_counts(truth, 3 * truth.X), truth, **WHERE))
    np.testing.assert_allclose(
        deeper, panel_values(pg.score_cells(truth, truth, **WHERE)), atol=1e-9
    )
    control = truth[truth.obs[COLUMN] == CONTROL]
    drawn = rng.integers(0, control.n_obs, truth.n_obs)
    copies = place(other_counts(truth, control.X[drawn]))
    # one profile for all: each cell is the mean of all perturbed ones, whole numbers
    perturbed = truth.X[(truth.obs[COLUMN] != CONTROL).to_numpy()].toarray()
    flat = np.tile(np.rint(perturbed.mean(axis=0) * 50), (truth.n_obs, 1))
    mean = panel_values(pg.score_cells(other_counts(truth, flat), truth, **WHERE))
    assert mean["pds_cosine"] == pytest.approx(0.5, abs=0.02)
    labels = truth.obs[COLUMN].to_numpy(dtype=object)
    names = np.array(measured.names)
    shuffled = truth.copy()
    turn = dict(zip(names, np.roll(names, 7), strict=True)) | {CONTROL: CONTROL}
    shuffled.obs[COLUMN] = [turn[label] for label in labels]
    genes = other_counts(truth, truth.X[:, rng.permutation(truth.n_vars)])
    mean_of = {
        "same": same.mean(),
        "honest": honest.mean(),
        "copies": copies.mean(),
        "shuffled": place(shuffled).mean(),
        "genes": place(genes).mean(),
    }
    assert mean_of["same"] > mean_of["honest"] > mean_of["copies"]
    assert mean_of["shuffled"] < mean_of["honest"]
    assert mean_of["genes"] < mean_of["copies"]


def test_an_exact_copy_is_better_than_a_repeat(sides: tuple[AnnData, AnnData]) -> None:
    truth, _ = sides
    found = panel_values(pg.score_cells(truth, truth, **WHERE))
    best = {name: METRICS[name].best for name in VCC2026[2:]}
    np.testing.assert_allclose([found[name] for name in best], list(best.values()), atol=1e-12)
    ends = anchors(measured_cells(truth, **WHERE), count_metrics("vcc2026"))
    place = scaled(found, ends)
    assert (place[[name for name in place.index if name != VCC2026[1]]] >= 1).all()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda p: p[:, :-1], SchemaError, "genes are not the measured ones: it lacks 1"),
        (lambda p: p[p.obs[COLUMN] != "p00"], SchemaError, "lacks 1: 'p00'"),
        (lambda p: other_counts(p, p.X.toarray() + 0.5), CountsError, "no counts, such as"),
        (lambda p: other_counts(p, -p.X.toarray()), CountsError, "no counts"),
    ],
)
def test_what_does_not_fit_is_refused(
    sides: tuple[AnnData, AnnData], change, error: type[Exception], said: str
) -> None:
    truth, prediction = sides
    with pytest.raises(error, match=said):
        pg.score_cells(change(prediction), truth, **WHERE)


def test_names_that_are_not_there_are_told_with_the_nearest(sides: tuple[AnnData, AnnData]) -> None:
    truth, prediction = sides
    with pytest.raises(SchemaError, match="target_gene"):
        pg.score_cells(prediction, truth, perturbation="target_gen", control=CONTROL)
    with pytest.raises(SchemaError, match="non-targeting"):
        pg.score_cells(prediction, truth, perturbation=COLUMN, control="nontargeting")
    with pytest.raises(ConfigError, match="pds_cosine"):
        pg.score_cells(prediction, truth, **WHERE, metrics=["pds_cosin"])
    with pytest.raises(SchemaError, match="fewer than two cells"):
        few = truth[~((truth.obs[COLUMN] == "p00") & (np.arange(truth.n_obs) > 0))]
        anchors(measured_cells(few, **WHERE), count_metrics("vcc2026"))
