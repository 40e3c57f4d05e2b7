from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import CountsError, SchemaError
from perturbgen.generate import WellTable
from perturbgen.generate.validate import _withheld_folds


def toy() -> tuple[pd.DataFrame, pd.Series]:
    """Two compounds on two plates; no B cell of d2 was left on plate q, and its NK cells were never
    measured.
    """
    rows = [
        ("B", "d1", "p", "A1"),
        ("B", "d1", "p", "A1"),
        ("NK", "d1", "p", "A1"),
        ("B", "d2", "p", "A2"),
        ("B", "d1", "q", "A1"),
        ("NK", "d1", "q", "A1"),
        ("T", "d2", "p", "A2"),
        ("T", "d2", "q", "A2"),
    ]
    obs = pd.DataFrame(
        rows, columns=["cell_type", "compound", "plate", "well"], index=[f"c{i}" for i in range(8)]
    )
    return obs, pd.Series([10.0, 1000, 5, 7, 8, 9, 20, 30], obs.index)


def test_counts_depths_and_zeros_by_hand() -> None:
    table = WellTable.tabulate(*toy())
    found = table.groups.set_index(["plate", "well", "cell_type"])
    assert found["n_cells"].to_dict() == {
        ("p", "A1", "B"): 2,
        ("p", "A1", "NK"): 1,
        ("p", "A2", "B"): 1,
        ("p", "A2", "T"): 1,
        ("q", "A1", "B"): 1,
        ("q", "A1", "NK"): 1,
        ("q", "A2", "B"): 0,
        ("q", "A2", "T"): 1,
    }
    assert found.loc[("p", "A1", "B"), "log_library"] == pytest.approx(np.log(100))
    assert np.isnan(found.loc[("q", "A2", "B"), "log_library"])
    assert np.exp(table.log_libraries[table.starts[0] : table.starts[1]]) == pytest.approx(
        [10, 1000]
    )
    assert found.loc[("p", "A2", "B"), ["row", "column"]].tolist() == ["A", "2"]


def test_obs_in_another_order_than_the_totals_changes_nothing(everything: WellTable) -> None:
    obs, totals = toy()
    shuffled = WellTable.tabulate(obs.iloc[[5, 2, 7, 0, 1, 6, 3, 4]], totals.iloc[::-1])
    expected = WellTable.tabulate(obs, totals)
    assert shuffled.groups.drop(columns="log_library").equals(
        expected.groups.drop(columns="log_library")
    )
    assert np.allclose(
        shuffled.groups["log_library"], expected.groups["log_library"], equal_nan=True
    )
    cells = anndata.AnnData(totals.to_numpy()[:, None] * [[1, 0]], obs=obs).copy()
    assert (
        WellTable.of(cells[::-1].copy())
        .groups["log_library"]
        .equals(expected.groups["log_library"])
    )


def test_taking_rows_takes_their_cells() -> None:
    table = WellTable.tabulate(*toy())
    part = table.take((table.groups["cell_type"] == "T").to_numpy())
    assert np.exp(part.log_libraries) == pytest.approx([20, 30])
    assert part.starts.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda obs, totals: (obs, totals.iloc[1:]), "1 without a total"),
        (lambda obs, totals: (obs, totals.set_axis(["c0"] * 8)), "more than once"),
        (lambda obs, totals: (obs.drop(columns="plate"), totals), "no column 'plate'"),
        (
            lambda obs, totals: (obs.assign(compound=list("abcdefgh")), totals),
            "differ in 'compound'",
        ),
        (lambda obs, totals: (obs.assign(well=None), totals), "missing in 8 cells"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        WellTable.tabulate(*change(*toy()))


def test_totals_must_be_counts() -> None:
    obs, totals = toy()
    with pytest.raises(CountsError, match="'c3'"):
        WellTable.tabulate(obs, totals.where(totals.index != "c3", -1))


def test_cells_without_a_count_are_counted_and_have_no_depth(
    caplog: pytest.LogCaptureFixture,
) -> None:
    obs, totals = toy()
    table = WellTable.tabulate(obs, totals.where(totals.index != "c0", 0))
    first = table.groups.iloc[0]
    assert (first["n_cells"], first["log_library"]) == (2, pytest.approx(np.log(1000)))
    assert "1 cells without a count" in caplog.text


def test_wells_of_a_condition_nobody_measured_come_from_its_other_cell_types() -> None:
    wells = WellTable.tabulate(*toy()).design(
        pd.DataFrame({"cell_type": ["NK"], "compound": ["d2"]})
    )
    assert wells[["cell_type", "compound", "plate", "well"]].to_numpy().tolist() == [
        ["NK", "d2", "p", "A2"],
        ["NK", "d2", "q", "A2"],
    ]


@pytest.mark.parametrize(
    ("cell_type", "compound", "words"),
    [
        (["B"], ["d3"], "compound 'd3'"),
        (["C"], ["d1"], "cell type 'C'"),
        (["B", "B"], ["d1", "d1"], "occur twice"),
    ],
)
def test_impossible_conditions_are_refused(
    cell_type: list[str], compound: list[str], words: str
) -> None:
    with pytest.raises(SchemaError, match=words):
        WellTable.tabulate(*toy()).design(
            pd.DataFrame({"cell_type": cell_type, "compound": compound})
        )


def test_hidden_conditions_are_whole_and_controls_never_hidden(everything: WellTable) -> None:
    groups = everything.groups
    fold = _withheld_folds(groups, 2, rng=np.random.default_rng(0))
    assert (fold[groups["compound"] == "DMSO"] == -1).all()
    assert (fold[groups["compound"] != "DMSO"] >= 0).all()
    homes = pd.Series(fold).groupby([groups["cell_type"], groups["compound"]]).nunique()
    assert (homes == 1).all()
    hidden = pd.Series(fold == 0).groupby(groups["compound"]).mean().drop("DMSO")
    assert hidden.to_numpy() == pytest.approx(0.5)  # two of the four cell types of each compound
