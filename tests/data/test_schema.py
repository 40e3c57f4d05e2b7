"""Each rule of the schema is broken once; together they are reported together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from perturbgen.core.errors import CountsError, SchemaError
from perturbgen.data.pictures import Overview
from perturbgen.data.schema import find_violations, validate

PADDED = "'compound' has names that are blank or padded"
ALIKE = "'compound' has names that differ in case only"


def good() -> anndata.AnnData:
    obs = pd.DataFrame(
        {
            "cell_type": ["T", "T", "B", "B", "T", "B"],
            "compound": ["DMSO", "drug", "DMSO", "drug", "DMSO", "DMSO"],
            "plate": ["p0", "p0", "p0", "p0", "p1", "p1"],
            "well": ["A1", "A2", "A1", "A2", "A1", "A1"],
            "dose": [0.0, 1.0, 0.0, 1.0, 0.0, 0.0],
        },
        index=list("abcdef"),
    )
    counts = sparse.csr_matrix(
        np.array([[1, 0], [2, 3], [0, 4], [5, 0], [1, 1], [0, 2]], dtype=np.int32)
    )
    return anndata.AnnData(
        X=counts, obs=obs, var=pd.DataFrame(index=["G1", "G2"]), uns={"vehicle": "DMSO"}
    )


def test_good_data_have_no_violations() -> None:
    assert find_violations(good()) == []
    assert validate(good()) == []


def negative(adata: Any) -> None:
    adata.X = adata.X.astype(float)
    adata.X[1, 1] = -2


def fractional(adata: Any) -> None:
    adata.X = adata.X.toarray() * 0.5


def repeated_cell(adata: Any) -> None:
    adata.obs_names = ["a", "a", "c", "d", "e", "f"]


def repeated_gene(adata: Any) -> None:
    adata.var_names = ["G1", "G1"]


def change(row: str, column: str, value: Any) -> Callable[[Any], None]:
    def apply(adata: Any) -> None:
        adata.obs[column] = adata.obs[column].astype(object)
        adata.obs.loc[row, column] = value

    return apply


def drop(column: str) -> Callable[[Any], None]:
    def apply(adata: Any) -> None:
        del adata.obs[column]

    return apply


def rename(column: str, old: str, new: str) -> Callable[[Any], None]:
    def apply(adata: Any) -> None:
        adata.obs[column] = adata.obs[column].replace({old: new})

    return apply


def empty_cell(adata: Any) -> None:
    adata.X = sparse.csr_matrix(adata.X.toarray() * np.array([[1], [1], [1], [1], [0], [1]]))


def no_vehicle(adata: Any) -> None:
    del adata.uns["vehicle"]


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize(
    ("spoil", "severity", "rule", "message"),
    [
        (negative, "error", "counts", "X holds negative values: cell 'b' has -2 in gene 'G2'"),
        (fractional, "error", "counts", "X holds non-integers: cell 'a' has 0.5 in gene 'G1'"),
        (repeated_cell, "error", "unique ids", "1 cell names occur more than once: 'a'"),
        (repeated_gene, "error", "unique ids", "1 gene names occur more than once: 'G1'"),
        (drop("compound"), "error", "columns", "obs has no column 'compound'"),
        (
            change("c", "cell_type", None),
            "error",
            "columns",
            "'cell_type' is missing in 1 cells: 'c'",
        ),
        (change("c", "dose", None), "warning", "columns", "'dose' is missing in 1 cells: 'c'"),
        (rename("compound", "drug", "drug "), "error", "categories", f"{PADDED}: 'drug '"),
        (rename("compound", "drug", ""), "error", "categories", f"{PADDED}: ''"),
        (change("d", "compound", "Drug"), "warning", "categories", f"{ALIKE}: 'Drug', 'drug'"),
        (no_vehicle, "error", "vehicle", "no vehicle is named"),
        (
            rename("compound", "DMSO", "DMSO2"),
            "error",
            "vehicle",
            "no cell was treated with the vehicle 'DMSO'",
        ),
        (rename("cell_type", "T", "B"), None, "", ""),
        (change("c", "cell_type", "NK"), None, "", ""),
        (change("d", "cell_type", "NK"), "error", "vehicle", "no 'DMSO' cell in cell_type 'NK'"),
        (change("d", "plate", "p2"), "error", "vehicle", "no 'DMSO' cell in plate 'p2'"),
        (
            change("d", "well", "A1"),
            "error",
            "wells",
            "1 wells hold more than one compound: 'p0 A1: DMSO / drug'",
        ),
        (empty_cell, "warning", "depth", "1 cells have no counts: 'e'"),
    ],
)
def test_each_rule_names_what_breaks_it(
    spoil: Callable[[Any], None], severity: str | None, rule: str, message: str
) -> None:
    adata = good()
    spoil(adata)
    found = [
        (violation.severity, violation.rule, violation.error.what.rstrip("."))
        for violation in find_violations(adata)
    ]
    if severity is None:
        assert found == []
    else:
        assert (severity, rule, message) in found
        assert all(violation.error.expected for violation in find_violations(adata))


def test_a_well_without_counts_is_named() -> None:
    adata = good()
    adata.X = sparse.csr_matrix(adata.X.toarray() * np.array([[1], [1], [1], [1], [0], [0]]))
    messages = [violation.error.what for violation in find_violations(adata)]
    assert messages == [
        "2 cells have no counts: 'e', 'f'",
        "1 wells have no counts at all: 'p1 A1'",
    ]


def test_empty_data_are_an_error() -> None:
    assert find_violations(good()[:0])[0].error.what == "the data are empty: 0 cells x 2 genes"


def test_the_groups_that_need_a_vehicle_can_be_named() -> None:
    adata = good()
    adata.obs["donor"] = ["d0", "d1", "d0", "d1", "d0", "d0"]
    assert find_violations(adata) == []
    assert [v.error.what for v in find_violations(adata, by=("cell_type", "donor"))] == [
        "no 'DMSO' cell in donor 'd1'"
    ]
    assert [v.error.what for v in find_violations(adata, vehicle="drug")] == [
        "no 'drug' cell in plate 'p1'"
    ]


def test_one_error_is_raised_as_itself_and_several_together() -> None:
    adata = good()
    negative(adata)
    with pytest.raises(CountsError, match="negative"):
        validate(adata)
    change("d", "plate", "p2")(adata)
    with pytest.raises(SchemaError, match=r"2 things are wrong[\s\S]*negative[\s\S]*plate 'p2'"):
        validate(adata)


def test_warnings_are_returned_and_do_not_raise() -> None:
    adata = good()
    empty_cell(adata)
    change("d", "compound", "Drug")(adata)
    adata.obs.loc["d", "well"] = "A3"
    assert [violation.severity for violation in validate(adata)] == ["warning", "warning"]


def test_a_violation_reads_as_an_error_does() -> None:
    adata = good()
    fractional(adata)
    assert str(find_violations(adata)[0]).splitlines() == [
        "CountsError: X holds non-integers: cell 'a' has 0.5 in gene 'G1'.",
        "  expected     raw UMI counts (non-negative integers)",
        "  usual cause  the matrix was normalised, log-transformed or corrected",
        "  fix          pass the raw matrix, or name its layer (--layer); perturbgen init finds it",
    ]


@pytest.mark.parametrize("dense", [False, True])
def test_the_overview_counts_by_hand(dense: bool) -> None:
    adata = good()
    adata.X = adata.X.toarray() if dense else adata.X
    summary = Overview(adata).summary()
    assert (summary["cells"], summary["genes"], summary["compounds"], summary["plates"]) == (
        6,
        2,
        2,
        2,
    )
    assert summary["zeros"] == pytest.approx(4 / 12)
    assert Overview(adata).depth()[0] == {
        "per cell": "counts per cell",
        "min": 1,
        "5%": 1,
        "median": 3,
        "95%": 5,
        "max": 5,
    }
    assert Overview(adata).cells() == [
        {"compound": "DMSO", "B": 2, "T": 2},
        {"compound": "drug", "B": 1, "T": 1},
    ]
    assert Overview(adata).cells(top=1)[1] == {"compound": "(1 more)", "B": 1, "T": 1}
