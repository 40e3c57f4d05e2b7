"""limma_table: invariants, labels, and every kind of bad input."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from perturbgen.core.errors import ConfigError, CountsError, DesignError, SchemaError
from perturbgen.de import DETable, limma_table
from tests.de.cases import Case, case
from tests.de.compare import relative


def table(experiment: Case, **options: object) -> DETable:
    settings = {"design": experiment.template, "group": "compound", "control": "vehicle", **options}
    return limma_table(experiment.counts, experiment.obs, **settings)


@pytest.fixture(scope="module")
def awkward() -> Case:
    return case("rank deficient")


@pytest.fixture(scope="module")
def two_types() -> Case:
    one, other = case("balanced"), case("unbalanced")
    obs = pd.concat([one.obs.assign(cell_type="B"), other.obs.assign(cell_type="NK")])
    counts = pd.concat([one.counts, other.counts])
    counts.index = obs.index = [f"s{i}" for i in range(len(obs))]
    return Case(counts, obs)


def relabel_plates(obs: pd.DataFrame) -> pd.DataFrame:
    names = sorted(obs["plate"].unique())
    return obs.assign(plate=obs["plate"].map(dict(zip(names, names[1:] + names[:1], strict=True))))


def test_exact_contrasts_do_not_depend_on_the_names_of_plates(awkward: Case) -> None:
    renamed = Case(awkward.counts, relabel_plates(awkward.obs), awkward.formula)
    before, after = table(awkward), table(renamed)
    assert relative(after.t.to_numpy(), before.t.to_numpy()) < 1e-8
    assert relative(after.log10_p.to_numpy(), before.log10_p.to_numpy()) < 1e-8


def test_limma_contrasts_do(awkward: Case) -> None:
    """The reason why the exact kind is the default."""
    renamed = Case(awkward.counts, relabel_plates(awkward.obs), awkward.formula)
    before, after = (table(one, contrasts="limma") for one in (awkward, renamed))
    np.testing.assert_allclose(after.logfc, before.logfc, atol=1e-9)
    assert relative(after.t.to_numpy(), before.t.to_numpy()) > 1e-3


@pytest.mark.parametrize("contrasts", ["exact", "limma"])
def test_the_order_of_samples_and_genes_does_not_matter(awkward: Case, contrasts: str) -> None:
    rng = np.random.default_rng(0)
    samples, genes = rng.permutation(awkward.counts.index), rng.permutation(awkward.counts.columns)
    # obs is joined by label
    shuffled = Case(awkward.counts.loc[samples, genes], awkward.obs, awkward.formula)
    before, after = (table(one, contrasts=contrasts) for one in (awkward, shuffled))
    pd.testing.assert_frame_equal(after.t[before.genes], before.t, rtol=1e-8)
    assert list(after.genes) == list(genes)


def test_treatment_coding_gives_the_same_exact_contrasts(awkward: Case) -> None:
    other = table(awkward, design="~ donor + plate + row + {group}")
    assert relative(other.t.to_numpy(), table(awkward).t.to_numpy()) < 1e-8


def test_each_level_of_by_is_its_own_analysis(two_types: Case) -> None:
    whole = table(two_types, by="cell_type")
    rows = two_types.obs["cell_type"] == "NK"
    alone = table(Case(two_types.counts[rows], two_types.obs[rows]))
    np.testing.assert_allclose(whole.t.loc["NK"].to_numpy(), alone.t.to_numpy(), rtol=1e-10)
    assert whole.t.index.names == ["cell_type", "compound"]
    assert alone.t.index.name == "compound"


def test_a_joint_fit_compares_within_its_level(two_types: Case) -> None:
    joint = table(two_types, by="cell_type", joint=True)
    both = two_types.obs["cell_type"] + "/" + two_types.obs["compound"]
    pasted = limma_table(
        two_types.counts,
        two_types.obs.assign(both=both),
        design=two_types.template,
        group="both",
        control="NK/vehicle",
    )
    np.testing.assert_allclose(
        joint.t.loc[("NK", "Abc")].to_numpy(), pasted.t.loc["NK/Abc"].to_numpy(), rtol=1e-8
    )
    assert ("NK", "vehicle") not in joint.t.index


def test_names_that_would_collide_after_mangling_stay_apart() -> None:
    experiment = case("balanced")
    names = {"B-12": "a.b", "Abc": "a_b"}
    renamed = Case(
        experiment.counts, experiment.obs.assign(compound=experiment.obs["compound"].replace(names))
    )
    found = table(renamed)
    assert {"a b", "a.b", "a_b"} <= set(found.t.index)
    original = table(experiment)
    np.testing.assert_allclose(
        found.t.loc["a.b"].to_numpy(), original.t.loc["B-12"].to_numpy(), rtol=1e-8
    )


def test_anndata_dense_sparse_and_layers(awkward: Case) -> None:
    settings = {"design": awkward.template, "group": "compound", "control": "vehicle"}
    expected = table(awkward).t
    dense = anndata.AnnData(awkward.counts, awkward.obs)
    sparse = anndata.AnnData(
        scipy.sparse.csr_matrix(awkward.counts.to_numpy().astype(np.uint32)), awkward.obs
    )
    sparse.var_names = awkward.counts.columns
    sparse.layers["raw"] = sparse.X.copy()
    sparse.X = sparse.X * 2
    pd.testing.assert_frame_equal(limma_table(dense, **settings).t, expected)
    pd.testing.assert_frame_equal(limma_table(sparse, layer="raw", **settings).t, expected)
    with pytest.raises(SchemaError, match="no layer 'counts'"):
        limma_table(sparse, layer="counts", **settings)


def test_gene_filters(two_types: Case) -> None:
    each = table(two_types, by="cell_type", gene_filter="filterByExpr").t.notna()
    common = table(two_types, by="cell_type", gene_filter="intersection").t.notna()
    tested = each.groupby("cell_type").all()
    assert 0 < common.iloc[0].sum() < common.shape[1]
    assert (common.iloc[0] == tested.loc["B"] & tested.loc["NK"]).all()
    named = table(two_types, by="cell_type", gene_filter=["g50", "g51", "g200", "g201", "g202"])
    assert named.t.columns[named.t.notna().any()].tolist() == ["g50", "g51", "g200", "g201", "g202"]


def test_a_single_replicate_is_fitted_and_flagged() -> None:
    found = table(case("single replicate"))
    assert found.conditions.loc["lonely", ["n_samples", "single_replicate"]].tolist() == [1, True]
    assert not found.conditions["single_replicate"].drop("lonely").any()
    assert np.isfinite(found.t.loc["lonely"]).all()


@pytest.mark.parametrize("contrasts", ["exact", "limma"])
def test_what_is_not_estimable_is_named_and_na(
    contrasts: str, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = case("balanced")
    obs = experiment.obs.copy()
    obs.loc[obs["compound"] == "Abc", "plate"] = "a plate without controls"
    with caplog.at_level(logging.WARNING, "perturbgen"):
        found = table(Case(experiment.counts, obs), contrasts=contrasts)
    assert "not estimable" in caplog.text
    assert "'Abc'" in caplog.text
    assert found.t.loc["Abc"].isna().all()
    assert found.log10_p.drop(index="Abc").notna().all(axis=None)
    assert not found.conditions.loc["Abc", "estimable"]


def test_the_adaptive_span_is_that_of_all_genes_given() -> None:
    experiment = case("mostly zero")  # 120 of the 300 genes have no count
    found = table(experiment, span="adaptive")
    expected = table(experiment, span=0.3 + 0.7 * (50 / 300) ** (1 / 3))
    pd.testing.assert_frame_equal(found.t, expected.t)


def test_nothing_but_controls_says_nothing_of_a_column_not_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    experiment = case("balanced")
    with pytest.raises(SchemaError, match="every sample is 'vehicle'"):
        table(Case(experiment.counts.iloc[:6], experiment.obs.iloc[:6]))
    assert "None" not in caplog.text


def test_duplicated_samples_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    experiment = case("balanced")
    counts = experiment.counts.copy()
    counts.loc["s1"] = counts.loc["s0"]
    with caplog.at_level(logging.WARNING, "perturbgen"):
        table(Case(counts, experiment.obs))
    assert "same counts as another one (copies are no replicates): 's1'" in caplog.text


def test_fractions_can_be_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    experiment = case("balanced")
    with caplog.at_level(logging.WARNING, "perturbgen"):
        found = table(Case(experiment.counts + 0.5, experiment.obs), allow_fractional=True)
    assert "100.0 % of the counts are not whole numbers" in caplog.text
    assert found.t.notna().all(axis=None)


def change(frame: pd.DataFrame, row: str, column: str, value: object) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[row, column] = value
    return frame


BAD: dict[
    str,
    tuple[
        Callable[[Case], tuple[pd.DataFrame, pd.DataFrame]], dict[str, object], type[Exception], str
    ],
] = {
    "negative": (
        lambda c: (change(c.counts, "s3", "g9", -1), c.obs),
        {},
        CountsError,
        "'s3' has -1 in gene 'g9'",
    ),
    "NaN": (
        lambda c: (change(c.counts, "s3", "g9", np.nan), c.obs),
        {},
        CountsError,
        "'s3' has nan in gene 'g9'",
    ),
    "infinite": (
        lambda c: (change(c.counts, "s3", "g9", np.inf), c.obs),
        {},
        CountsError,
        "missing or infinite",
    ),
    "fraction": (
        lambda c: (change(c.counts, "s3", "g9", 0.5), c.obs),
        {},
        CountsError,
        "allow_fractional",
    ),
    "empty sample": (
        lambda c: (c.counts.mul(c.counts.index != "s2", axis=0), c.obs),
        {},
        CountsError,
        "'s2'",
    ),
    "no genes": (lambda c: (c.counts.iloc[:, :0], c.obs), {}, CountsError, "36 samples x 0 genes"),
    "text": (
        lambda c: (c.counts.astype(object).where(c.counts > 0, "none"), c.obs),
        {},
        CountsError,
        "not a number",
    ),
    "transposed": (lambda c: (c.counts.T, c.obs), {}, SchemaError, "obs lacks 300 of the samples"),
    "repeated genes": (
        lambda c: (c.counts.rename(columns={"g1": "g2"}), c.obs),
        {},
        SchemaError,
        "'g2'",
    ),
    "no such control": (
        lambda c: (c.counts, c.obs),
        {"control": "vehicel"},
        SchemaError,
        "did you mean 'vehicle'",
    ),
    "no such group": (
        lambda c: (c.counts, c.obs),
        {"group": "drug"},
        SchemaError,
        "group 'drug': obs has no such column",
    ),
    "missing group": (
        lambda c: (c.counts, change(c.obs, "s4", "compound", None)),
        {},
        SchemaError,
        "'s4'",
    ),
    "missing covariate": (
        lambda c: (c.counts, c.obs.drop(columns="plate")),
        {},
        SchemaError,
        "'plate'",
    ),
    "NaN in a covariate": (
        lambda c: (c.counts, change(c.obs, "s4", "plate", np.nan)),
        {},
        SchemaError,
        "'s4'",
    ),
    "control missing in a level": (
        lambda c: (
            c.counts,
            c.obs.assign(cell_type=np.where(c.obs["compound"] == "Abc", "NK", "B")),
        ),
        {"by": "cell_type"},
        SchemaError,
        "missing in cell_type 'NK'",
    ),
    "only controls": (lambda c: (c.counts.iloc[:6], c.obs), {}, SchemaError, "nothing to compare"),
    "no residual df": (
        lambda c: (c.counts.iloc[::6], c.obs),
        {"design": "~0 + {group}"},
        DesignError,
        "no residual degrees",
    ),
    "joint without by": (lambda c: (c.counts, c.obs), {"joint": True}, ConfigError, "needs by"),
    "unknown backend": (lambda c: (c.counts, c.obs), {"backend": "R"}, ConfigError, "backend='R'"),
    "unknown contrasts": (
        lambda c: (c.counts, c.obs),
        {"contrasts": "approximate"},
        ConfigError,
        "contrasts=",
    ),
    "unknown filter": (
        lambda c: (c.counts, c.obs),
        {"gene_filter": "hvg"},
        ConfigError,
        "gene_filter='hvg'",
    ),
    "filter with unknown genes": (
        lambda c: (c.counts, c.obs),
        {"gene_filter": ["TP53"]},
        SchemaError,
        "'TP53'",
    ),
    "impossible span": (lambda c: (c.counts, c.obs), {"span": 1.5}, ConfigError, "span=1.5"),
    "unknown device": (lambda c: (c.counts, c.obs), {"device": "cuda:99"}, ConfigError, "cuda:99"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained(name: str) -> None:
    spoil, options, error, words = BAD[name]
    counts, obs = spoil(case("balanced"))
    with pytest.raises(error) as raised:
        table(Case(counts, obs), **options)
    assert words in str(raised.value)


def test_counts_without_obs() -> None:
    with pytest.raises(SchemaError, match="without obs"):
        limma_table(
            case("balanced").counts, design="~0 + {group}", group="compound", control="vehicle"
        )


def test_the_native_backend_never_touches_r() -> None:
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.de.cases import case; from perturbgen.de import limma_table\n"
        "c = case('balanced'); names = {'group': 'compound', 'control': 'vehicle'}\n"
        "limma_table(c.counts, c.obs, design=c.template, robust=True, **names)\n"
        "heavy = 'rpy2', 'perturbgen.de.r.', 'torch'\n"
        "print(sorted(m for m in sys.modules if m.startswith(heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
