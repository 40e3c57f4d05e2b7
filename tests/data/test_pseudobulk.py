import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbgen.core.errors import CountsError, SchemaError
from perturbgen.data.aggregate import layout_of, pseudobulk


@pytest.fixture
def cells() -> ad.AnnData:
    counts = np.array([[1, 0, 2], [0, 3, 0], [4, 0, 0], [0, 0, 5]])
    obs = pd.DataFrame(
        {
            "well": ["A2", "A1", "A2", "A1"],
            "compound": ["x", "y", "x", "y"],
            "score": [1, 2, 3, 4],
            "dose": [np.nan, 1, np.nan, 1],
        },
        index=list("abcd"),
    ).astype({"compound": pd.CategoricalDtype(["x", "y", "z"])})
    return ad.AnnData(
        sp.csr_matrix(counts),
        obs=obs,
        var=pd.DataFrame(index=["g1", "g2", "g3"]),
        uns={"vehicle": "x"},
    )


def test_sums_by_hand(cells: ad.AnnData) -> None:
    bulk = pseudobulk(cells, by=["well"])
    assert bulk.obs_names.tolist() == ["A1", "A2"]
    assert bulk.X.toarray().tolist() == [[0, 3, 5], [5, 0, 2]]
    assert bulk.X.dtype == np.int64
    assert bulk.obs["n_cells"].tolist() == [2, 2]
    assert bulk.uns["vehicle"] == "x"


def test_only_columns_constant_within_every_sample_are_kept(cells: ad.AnnData) -> None:
    bulk = pseudobulk(cells, by=["well"])
    assert bulk.obs.columns.tolist() == ["well", "compound", "dose", "n_cells"]
    assert bulk.obs["compound"].tolist() == ["y", "x"]
    assert bulk.obs["compound"].cat.categories.tolist() == ["x", "y"]


def test_order_of_cells_changes_nothing(cells: ad.AnnData) -> None:
    one, other = pseudobulk(cells, by=["well"]), pseudobulk(cells[[3, 1, 2, 0]].copy(), by=["well"])
    assert (one.X != other.X).nnz == 0
    pd.testing.assert_frame_equal(one.obs, other.obs)


def test_equals_a_loop_over_the_groups() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (200, 30))
    obs = pd.DataFrame(
        {"plate": rng.choice(list("pq"), 200), "well": rng.choice(list("ABC"), 200)},
        index=map(str, range(200)),
    )
    bulk = pseudobulk(
        ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs), by=["plate", "well"]
    )
    for name, sample in bulk.obs.iterrows():
        rows = (obs["plate"] == sample["plate"]) & (obs["well"] == sample["well"])
        assert bulk[name].X.toarray().ravel().tolist() == counts[rows].sum(axis=0).tolist()
    assert bulk.X.sum() == counts.sum()


def test_sums_do_not_overflow_32_bits(cells: ad.AnnData) -> None:
    cells.X = sp.csr_matrix(np.full((4, 3), 2**31 - 1, np.int32))
    assert pseudobulk(cells, by=["well"]).X.max() == 2 * (2**31 - 1)


def test_samples_without_counts_are_dropped_and_named(
    cells: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    cells.X = sp.csr_matrix(np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    with caplog.at_level(logging.WARNING):
        assert pseudobulk(cells, by="well").obs_names.tolist() == ["A2"]
    assert "'A1'" in caplog.text


def test_fractions_are_refused_unless_allowed(cells: ad.AnnData) -> None:
    cells.X = cells.X.astype(np.float64) / 2
    with pytest.raises(CountsError, match="not whole numbers"):
        pseudobulk(cells, by=["well"])
    assert pseudobulk(cells, by=["well"], allow_fractional=True).X.sum() == 7.5


def test_unknown_column_and_missing_values_are_named(cells: ad.AnnData) -> None:
    with pytest.raises(SchemaError, match="'compound'"):
        pseudobulk(cells, by=["compond"])
    with pytest.raises(SchemaError, match="missing in 2 cells: 'a', 'c'"):
        pseudobulk(cells, by=["dose"])


def test_compounds_of_the_same_plates_and_row_have_one_layout() -> None:
    wells = [
        # a library on two plates, where b lost one of its wells
        *[("p1", "A", "a"), ("p2", "A", "a"), ("p1", "A", "b"), ("p2", "B", "c")],
        *[("p3", "A", "d"), ("p3", "B", "e")],
        *[(plate, row, "vehicle") for plate in ("p1", "p2", "p3") for row in "AB"],
    ]
    obs = pd.DataFrame(wells, columns=["plate", "row", "compound"])
    found = layout_of(pd.concat([obs, obs]))
    assert found["a"] == found["b"]
    assert found.nunique() == 5
    # one library: every compound may be on every plate
    assert layout_of(obs[obs["plate"] == "p3"])[["d", "e"]].tolist() == ["A", "B"]
