"""Enrichment, WTCS, NCS and tau, against numbers made by hand and a slow loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.l1000 import max_quantile, ncs, read_gmt, tau, wtcs


def slow_es(values: np.ndarray, chosen: set[int], *, weighted: bool = True) -> float:
    """Walk down the ranked list."""
    order = np.argsort(-values, kind="stable")
    weight = np.abs(values) if weighted else np.ones(len(values))
    total = sum(weight[i] for i in chosen)
    level, best = 0.0, 0.0
    for gene in order:
        level += weight[gene] / total if gene in chosen else -1 / (len(values) - len(chosen))
        best = level if abs(level) > abs(best) else best
    return best


@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_walk_down_the_list(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    genes = [f"g{i}" for i in range(80)]
    table = pd.DataFrame(rng.normal(size=(6, 80)), columns=genes)
    up = {f"q{k}": [genes[i] for i in rng.choice(80, 3 + 4 * k, replace=False)] for k in range(4)}
    down = {f"q{k}": [genes[i] for i in rng.choice(80, 5, replace=False)] for k in range(4)}
    found = wtcs(table, up, down, weighted=weighted)
    for s in range(6):
        for query in up:
            a, b = (
                slow_es(
                    table.iloc[s].to_numpy(), {genes.index(g) for g in q[query]}, weighted=weighted
                )
                for q in (up, down)
            )
            assert found.loc[s, query] == pytest.approx(
                (a - b) / 2 if np.sign(a) != np.sign(b) else 0, abs=1e-12
            )
    one = wtcs(table, up, weighted=weighted)
    other = wtcs(table, None, up, weighted=weighted)
    pd.testing.assert_frame_equal(one, -other)


def test_by_hand() -> None:
    table = pd.DataFrame([[5.0, 3.0, 1.0, -1.0, -3.0, -5.0]], columns=list("abcdef"))
    assert wtcs(table, {"q": ["a", "b"]}).loc[0, "q"] == pytest.approx(1.0)
    assert wtcs(table, {"q": ["a", "c"]}).loc[0, "q"] == pytest.approx(5 / 6)
    assert wtcs(table, {"q": ["a", "b"]}, {"q": ["e", "f"]}).loc[0, "q"] == pytest.approx(1.0)
    assert wtcs(table, {"q": ["e", "f"]}, {"q": ["a", "b"]}).loc[0, "q"] == pytest.approx(-1.0)
    assert wtcs(table, {"q": ["a"]}, {"q": ["b"]}).loc[0, "q"] == 0, "both up: no connection"


def test_genes_are_matched_by_name_and_unknown_ones_said(caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame([[5.0, 3.0, 1.0, -1.0]], columns=[10, 20, 30, 40])
    found = wtcs(table, {"q": ["10", "10", "999"]})
    assert found.loc[0, "q"] == pytest.approx(1.0)
    assert "1 genes of the queries" in caplog.text
    with pytest.raises(SchemaError, match="no gene of query 'q'"):
        wtcs(table, {"q": ["TP53"]})
    with pytest.raises(SchemaError, match="no query"):
        wtcs(table)
    table.iloc[0, 2] = np.nan
    with pytest.raises(SchemaError, match="1 genes have missing values: '30'"):
        wtcs(table, {"q": [10]})


def test_a_signature_of_zeros_connects_with_nothing() -> None:
    assert (
        wtcs(pd.DataFrame([[0.0] * 6], columns=list("abcdef")), {"q": ["a"]}, {"q": ["f"]}).loc[
            0, "q"
        ]
        == 0
    )


def test_scores_are_scaled_within_line_and_type() -> None:
    about = pd.DataFrame(
        {
            "cell_line": ["A", "A", "A", "B", "B", "C"],
            "pert_type": ["trt_cp", "trt_cp", "trt_poscon", "trt_cp", "trt_cp", "trt_sh"],
        },
        index=list("abcdef"),
    )
    scores = pd.DataFrame({"q": [0.2, 0.4, -0.3, 0.001, 0.0, -0.5]}, index=list("abcdef"))
    found = ncs(scores, about)["q"]
    np.testing.assert_allclose(found, [0.2 / 0.3, 0.4 / 0.3, -1.0, 0.1, 0.0, -1.0])


def test_groups_without_reference_borrow_from_their_type_then_their_line() -> None:
    about = pd.DataFrame(
        {
            "cell_line": ["A", "B", "C", "A", "D"],
            "pert_type": ["trt_cp", "trt_cp", "trt_cp", "trt_sh", "trt_oe"],
        },
        index=list("abcde"),
    )
    scores = pd.DataFrame({"q": [0.2, 0.4, 0.6, 0.5, 0.9]}, index=list("abcde"))
    reference = pd.Series([True, True, False, False, False], index=list("abcde"))
    found = ncs(scores, about, reference=reference)["q"]
    np.testing.assert_allclose(found, [1, 1, 0.6 / 0.3, 0.5 / 0.2, 0.9 / 0.3])
    with pytest.raises(SchemaError, match="no reference signature"):
        ncs(scores, about, reference=~reference & reference)


def test_the_quantile_of_larger_size_speaks_for_all_lines() -> None:
    scores = pd.DataFrame({"q": [1.0, 2.0, 3.0, -9.0, -8.0, 1.0]}, index=list("abcdef"))
    groups = pd.Series(["x", "x", "x", "y", "y", "y"], index=list("abcdef"))
    found = max_quantile(scores, groups)["q"]
    assert found["x"] == pytest.approx(np.percentile([1, 2, 3], 67, method="hazen"))
    assert found["y"] == pytest.approx(np.percentile([-9, -8, 1], 33, method="hazen"))


def test_tau_is_the_signed_share_of_weaker_references() -> None:
    reference = pd.DataFrame([[0.1, -0.2, 0.3, 0.4], [1, 1, 1, 1]], index=["b", "a"])
    scores = pd.DataFrame({"p": [0.35, 2.0], "q": [-0.2, 0.0]}, index=["b", "a"])
    found = tau(scores, reference)
    assert found.loc["b"].tolist() == [75, -25]
    assert found.loc["a"].tolist() == [100, 0]
    with pytest.raises(SchemaError, match="1 signatures have no reference"):
        tau(scores, reference.iloc[:1])


def test_gene_sets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.gmt"
    path.write_text("a_UP\t\t1\t2\t\nb_UP\tnote\t3\n")
    assert read_gmt(path, suffix="_UP") == {"a": ["1", "2"], "b": ["3"]}
    path.write_text("a\tb\n")
    with pytest.raises(InputError, match="2 cells"):
        read_gmt(path)
