from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.evaluate import METRICS, Values, open_problems_mean_score, score, scorecard
from perturbgen.evaluate.catalogue import _OPEN_PROBLEMS
from perturbgen.evaluate.metrics import TABLE_METRICS
from tests.evaluate.tables import experiment, frame, told


def test_the_record_in_files_is_what_other_programs_read() -> None:
    record = METRICS["weighted_r2_delta_control"].record()
    assert list(record) == [
        "name",
        "title",
        "definition",
        "higher_is_better",
        "low",
        "high",
        "zeros",
        "negative_control",
        "needs",
        "scale_free",
    ]
    assert (record["low"], record["high"]) == (None, 1)


def test_a_table_of_metrics_by_conditions() -> None:
    truth, prediction, _ = experiment()
    scores = score(truth, prediction, metrics=["mean_rowwise_mae", "mean_rowwise_rmse"])
    assert list(scores.index) == ["mean_rowwise_mae", "mean_rowwise_rmse"]
    assert scores.columns.equals(truth.index)
    expected = np.sqrt(((truth - prediction) ** 2).mean(axis=1))
    np.testing.assert_allclose(scores.loc["mean_rowwise_rmse"], expected)


@pytest.mark.parametrize("metric", TABLE_METRICS, ids=lambda m: m.name)
def test_a_perfect_prediction_has_the_best_value_and_others_are_within_range(
    metric: object,
) -> None:
    truth, prediction, _ = experiment()
    [name] = [metric.name]  # type: ignore[attr-defined]
    record = METRICS[name]
    perfect = score(truth, truth, metrics=[name], **told(truth)).loc[name]
    np.testing.assert_allclose(perfect, record.best, atol=1e-12)
    for other in (prediction, -truth, 3 * truth, truth * 0 + 1):
        values = score(truth, other, metrics=[name], **told(truth)).loc[name].to_numpy()
        assert ((values >= record.low - 1e-12) & (values <= record.high + 1e-12)).all()
        assert (record.sign * (record.best - values) >= -1e-9).all()


@pytest.mark.parametrize("metric", TABLE_METRICS, ids=lambda m: m.name)
def test_zeros_get_what_the_record_says(metric: object) -> None:
    name = metric.name  # type: ignore[attr-defined]
    truth, prediction, _ = experiment()
    values = score(truth, truth * 0, metrics=[name], **told(truth)).loc[name]
    if METRICS[name].zeros is not None:
        assert values.mean() == pytest.approx(METRICS[name].zeros)
    else:
        worse = METRICS[name].sign * values.mean()
        honest = score(truth, prediction, metrics=[name], **told(truth)).loc[name].mean()
        assert worse < METRICS[name].sign * honest


@pytest.mark.parametrize("metric", TABLE_METRICS, ids=lambda m: m.name)
def test_order_of_genes_rows_and_levels_does_not_matter(metric: object) -> None:
    name = metric.name  # type: ignore[attr-defined]
    truth, prediction, _ = experiment(conditions=21)
    before = score(truth, prediction, metrics=[name], **told(truth))
    rng = np.random.default_rng(0)
    genes, rows = rng.permutation(truth.columns), rng.permutation(len(truth))
    moved = prediction[genes].iloc[rng.permutation(len(truth))].swaplevel()
    pd.testing.assert_frame_equal(score(truth, moved, metrics=[name], **told(truth)), before)
    turned = score(truth[genes].iloc[rows], prediction, metrics=[name], **told(truth))
    tolerance = METRICS[name].tolerance
    pd.testing.assert_frame_equal(turned[before.columns], before, rtol=tolerance)


@pytest.mark.parametrize("metric", TABLE_METRICS, ids=lambda m: m.name)
def test_scale_free_metrics_and_only_those_ignore_the_size_of_a_prediction(metric: object) -> None:
    name = metric.name  # type: ignore[attr-defined]
    truth, prediction, _ = experiment()
    one, other = (
        score(truth, c * prediction, metrics=[name], **told(truth)).loc[name] for c in (1.0, 0.37)
    )
    assert np.allclose(one, other, atol=1e-9) == METRICS[name].scale_free


def test_rows_in_blocks_are_rows_apart() -> None:
    truth, prediction, _ = experiment(conditions=19)
    names = [metric.name for metric in TABLE_METRICS if not metric.across]
    together = score(truth, prediction, metrics=names, reference=truth.mean())
    for i in (0, 7, 8, 18):
        alone = score(truth.iloc[[i]], prediction.iloc[[i]], metrics=names, reference=truth.mean())
        pd.testing.assert_series_equal(alone.iloc[:, 0], together.iloc[:, i])


def test_genes_respond_before_values_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    values = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 5317))
    values[0, :7] = [30, -30, 30, 30, 30, -30, 30]
    truth = frame(values)
    before, within = score(truth, truth), score(truth, truth, clip=4)
    limited = score(truth.clip(-4, 4), truth.clip(-4, 4))
    of_genes = ["sign_accuracy_de", "de_precision", "de_recall", "de_overlap"]
    np.testing.assert_array_equal(within.loc[of_genes], before.loc[of_genes])
    assert (within.loc[of_genes].iloc[:, 0] == 1).all()
    assert limited.loc[of_genes].iloc[:, 0].isna().all(), (
        "none of seven p = 1e-4 passes among 5,317"
    )
    rest = limited.index.difference(of_genes)
    np.testing.assert_array_equal(within.loc[rest], limited.loc[rest])
    prediction = truth * 0.5
    np.testing.assert_array_equal(
        score(truth, prediction, clip=4).loc[rest],
        score(truth.clip(-4, 4), prediction.clip(-4, 4)).loc[rest],
    )
    assert Values(truth.to_numpy(), clip=4).blocks[0].de.sum() == 7
    for table, adjust, warned in (
        (truth, True, False),
        (truth.clip(-4, 4), True, True),
        (truth.clip(-4, 4), False, False),
    ):
        caplog.clear()
        scorecard(table, {"same": table}, adjust=adjust, resamples=2)
        assert ("the truth ends at ±4" in caplog.text) == warned


def test_the_reference_is_subtracted_by_label() -> None:
    truth, prediction, _ = experiment(conditions=12)
    names = ["pearson_delta_perturbed_mean", "weighted_r2_delta_perturbed_mean"]
    mean = truth.mean()
    by_gene = score(truth, prediction, metrics=names, reference=mean.sample(frac=1, random_state=0))
    expected = [
        np.corrcoef(t - mean, p - mean)[0, 1]
        for (_, t), (_, p) in zip(truth.iterrows(), prediction.iterrows(), strict=True)
    ]
    np.testing.assert_allclose(by_gene.loc[names[0]], expected)
    table = pd.DataFrame([mean] * 12, index=truth.index[::-1])
    pd.testing.assert_frame_equal(score(truth, prediction, metrics=names, reference=table), by_gene)
    assert score(truth, truth * 0 + mean, metrics=names[:1], reference=mean).to_numpy().max() == 0
    with pytest.raises(ConfigError, match="needs the mean perturbation"):
        score(truth, prediction, metrics=names)
    with pytest.raises(SchemaError, match="no value for 1 genes: 'g3'"):
        score(truth, prediction, reference=mean.drop("g3"))


def test_groups_are_a_level_a_column_or_all() -> None:
    truth, prediction, _ = experiment(conditions=12)
    name = ["perturbation_discrimination"]
    by_level = score(truth, prediction, metrics=name)
    cell_type = pd.Series(truth.index.get_level_values("cell_type"), truth.index)
    shuffled = cell_type.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(score(truth, prediction, metrics=name, groups=shuffled), by_level)
    assert not score(truth, prediction * 0 + 1, metrics=name, groups=None).equals(by_level)
    with pytest.raises(SchemaError, match="no level 'plate'"):
        score(truth, prediction, groups="plate")
    with pytest.raises(SchemaError, match="groups say nothing of 1 conditions"):
        score(truth, prediction, groups=cell_type.iloc[1:])


def test_other_genes_are_named_and_only_dropped_when_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth, prediction, _ = experiment(conditions=6, genes=9)
    more = prediction.assign(extra=1.0)
    fewer = prediction.drop(columns=["g2", "g5"])
    with pytest.raises(
        SchemaError, match="other genes than the truth: 1 are unknown to the truth \\('extra'\\)"
    ):
        score(truth, more)
    with pytest.raises(SchemaError, match="2 of 9 are absent \\('g2', 'g5'\\)"):
        score(truth, fewer, genes="truth")
    expected = score(truth, prediction)
    pd.testing.assert_frame_equal(score(truth, more, genes="truth"), expected)
    both = score(truth, fewer, genes="intersection")
    pd.testing.assert_frame_equal(both, score(truth[fewer.columns], fewer))
    assert "scoring 7 of 9 genes; 2 of 9 are absent ('g2', 'g5')" in caplog.text


def test_other_rows_are_named_and_only_dropped_when_asked() -> None:
    truth, prediction, _ = experiment(conditions=6, genes=9)
    with pytest.raises(SchemaError, match=r"1 of 6 are absent .*c2") as error:
        score(truth, prediction.iloc[:-1])
    assert "rows='intersection'" in str(error.value)
    pd.testing.assert_frame_equal(
        score(truth, prediction.iloc[:-1], rows="intersection"),
        score(truth.iloc[:-1], prediction.iloc[:-1]),
    )
    pd.testing.assert_frame_equal(
        score(truth.iloc[1:], prediction, rows="truth"), score(truth.iloc[1:], prediction.iloc[1:])
    )
    renamed = prediction.rename(index={"B cells": "b"}, level=0).iloc[::2]
    with pytest.raises(SchemaError, match="no conditions in common"):
        score(truth, renamed, rows="intersection")


def test_missing_predictions_count_as_0_where_that_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth, prediction, _ = experiment(conditions=6, genes=9)
    holes, filled = prediction.copy(), prediction.copy()
    holes.iloc[1, 3], filled.iloc[1, 3] = np.nan, 0.0
    with caplog.at_level(logging.WARNING):
        scores = score(truth, holes, missing="zeros")
    pd.testing.assert_frame_equal(scores, score(truth, filled))
    assert "1 missing values, in 1 of 6 rows: 'T cells | c0'; they count as 0" in caplog.text


def mistakes() -> list[tuple[pd.DataFrame, object, dict[str, object], str]]:
    """Truth, prediction, options, and what the error says."""
    good = frame(np.arange(12.0).reshape(3, 4))
    hole, infinite, text = good.copy(), good.copy(), good.copy().astype(object)
    hole.iloc[2, 1], infinite.iloc[0, 2], text.iloc[:, 3] = np.nan, -np.inf, "x"
    flat = good.reset_index(drop=True)
    return [
        (hole, good, {}, "the truth has 1 missing values, .* gene 'g1'"),
        (good, infinite, {}, "the prediction has 1 infinite values, .* gene 'g2'"),
        (good, text, {}, "columns that are not numbers"),
        (good, good.to_numpy(), {}, "is a ndarray"),
        (good, pd.concat([good, good]), {}, "holds conditions twice"),
        (good, pd.concat([good, good], axis=1), {}, "holds genes twice"),
        (good, good.iloc[:0], {}, "has no condition"),
        (good, flat, {}, "the conditions of the prediction are like"),
        (good, good, {"genes": "any"}, "genes='any' is no policy"),
        (good, good, {"level": 0.0}, "level=0.0"),
        (good, good, {"metrics": ["mean_rowwise_rsme"]}, "did you mean 'mean_rowwise_rmse'"),
    ]


@pytest.mark.parametrize("at", range(len(mistakes())))
def test_a_mistake_is_explained(at: int) -> None:
    truth, prediction, options, words = mistakes()[at]
    with pytest.raises((SchemaError, ConfigError), match=words):
        score(truth, prediction, **options)  # type: ignore[arg-type]


def test_one_condition_and_one_gene_only() -> None:
    truth = frame([[1.0, -2.0, 3.0]])
    scores = score(truth, truth)["B cells", "c0"]
    assert scores["mean_rowwise_pearson"] == pytest.approx(1)
    assert np.isnan(scores["perturbation_discrimination"])
    gene = frame([[3.0], [-2.0]])
    lone = score(gene, gene)
    assert (lone.loc["mean_rowwise_pearson"] == 0).all()  # one gene is a constant row
    assert (lone.loc["mean_rowwise_rmse"] == 0).all()


def test_mean_rowwise_rmse_is_over_rows_not_genes() -> None:
    truth = frame([[3.0, 4.0], [0.0, 0.0]])
    zeros = score(truth, truth * 0, metrics=["mean_rowwise_rmse"]).mean(axis=1).iloc[0]
    assert zeros == pytest.approx(np.sqrt(12.5) / 2)  # per gene it would be (√4.5 + √8) / 2


def test_float32_tables_lose_nothing() -> None:
    truth, prediction, _ = experiment()
    small = truth.astype(np.float32), prediction.astype(np.float32)
    np.testing.assert_allclose(score(*small), score(truth, prediction), rtol=1e-4, atol=1e-3)
    assert (score(*small).dtypes == np.float64).all()


# Open Problems' website, run of 2024-10-31: RMSE, MAE, Pearson, Spearman, cosine, mean score.
PUBLISHED = {
    "zeros": (0.9179, 0.6351, 0.0, 0.0, 0.0, 0.1335),
    "sample": (1.3636, 0.9633, 0.0524, 0.0562, 0.0547, 0.0327),
    "mean_outcome": (0.8992, 0.6356, 0.2198, 0.2117, 0.2264, 0.2677),
    "mean_across_celltypes": (0.8925, 0.6437, 0.2972, 0.2806, 0.3017, 0.3113),
    "nn_retraining_with_pseudolabels": (0.7562, 0.5464, 0.4909, 0.4627, 0.4941, 0.465),
    "ground_truth": (0.0, 0.0, 1.0, 1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_websites_mean_score(method: str) -> None:
    *values, expected = PUBLISHED[method]
    worst = pd.Series(PUBLISHED["sample"][:5], list(_OPEN_PROBLEMS))
    assert open_problems_mean_score(
        pd.Series(values, list(_OPEN_PROBLEMS)), worst
    ) == pytest.approx(expected, abs=2e-4)


@pytest.mark.data
def test_the_whole_website(real_data: Path) -> None:
    results = json.loads((real_data / "op3" / "openproblems_results.json").read_text())
    values = pd.DataFrame({entry["method_id"]: entry["metric_values"] for entry in results})
    for entry in results:
        found = open_problems_mean_score(values[entry["method_id"]], values["sample"])
        assert found == pytest.approx(entry["mean_score"], abs=2e-4), entry["method_id"]


KNOWN = (
    "Alvocidib",
    "CHIR-99021",
    "Crizotinib",
    "Dactolisib",
    "Foretinib",
    "Idelalisib",
    "LDN 193189",
    "Linagliptin",
    "MLN 2238",
    "O-Demethylated Adapalene",
    "Oprozomib (ONX 0912)",
    "Palbociclib",
    "Penfluridol",
    "Porcn Inhibitor III",
    "R428",
    "Belinostat",
    "Dabrafenib",
)


@pytest.mark.data
@pytest.mark.parametrize(
    ("cell_type", "of_cell_type", "of_compound"), [("b", 0.256, 0.247), ("myeloid", 0.198, 0.213)]
)
def test_means_of_real_drug_rankings(
    real_data: Path, cell_type: str, of_cell_type: float, of_compound: float
) -> None:
    """The mean over known drugs of a cell type, and a drug's mean over NK and T cells, on the 122
    unknown ones.
    """
    archive = np.load(real_data / "op3" / "de_ranks_4x135x6349.npz")
    index = pd.MultiIndex.from_product(
        [archive["cells"].tolist(), archive["drugs"].tolist()], names=["cell", "drug"]
    )
    ranks = pd.DataFrame(archive["Z"].reshape(len(index), -1), index, archive["genes"])
    drugs = archive["drugs"][~np.isin(archive["drugs"], KNOWN)]
    truth = ranks.loc[cell_type].loc[drugs]
    mean = ranks.loc[cell_type].drop(index=drugs).mean()
    predictions = {
        "cell type": pd.DataFrame(np.tile(mean, (len(drugs), 1)), truth.index, truth.columns),
        "compound": (ranks.loc["nk"] + ranks.loc["t"]).loc[drugs],
    }
    names = ["mean_rowwise_spearman", "perturbation_discrimination"]
    found = {
        name: score(truth, table, metrics=names).mean(axis=1) for name, table in predictions.items()
    }
    assert len(drugs) == 122
    assert found["cell type"][names[0]] == pytest.approx(of_cell_type, abs=6e-4)
    assert found["compound"][names[0]] == pytest.approx(of_compound, abs=6e-4)
    # one row for all: it tells no drug from another
    assert found["cell type"][names[1]] == pytest.approx(0.5)
    assert found["compound"][names[1]] > 0.9
