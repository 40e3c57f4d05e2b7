"""The page of a DE table: what it says first and leaves out, what slants, what can be found."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbgen.de import DETable, limma_table, log_cpm, mds, tmm_factors
from perturbgen.de.plots import _clouds, de_page
from perturbgen.de.sample_map import sample_figure
from perturbgen.de.table import SLANT
from tests.de.cases import case


def sums(**columns: Any) -> DETable:
    experiment = case("balanced")
    obs = experiment.obs.assign(**columns)
    return limma_table(
        experiment.counts, obs, design="~0 + {group}", group="compound", control="vehicle"
    )


def with_cells() -> DETable:
    """Compound B-12 has one cell in each of 6 samples, others 50; two samples share each well."""
    compound = case("balanced").obs["compound"]
    few = np.where(compound == "B-12", 1, 50)
    return sums(n_cells=few, well=[f"A{i // 2}" for i in range(len(compound))])


def embedded(html: str) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    found: dict[str, Any] = json.loads(text)
    return found


def test_conditions_say_how_many_cells_and_wells_they_have() -> None:
    table = with_cells()
    assert table.conditions.loc["B-12", ["n_samples", "n_cells"]].tolist() == [6, 6]
    assert table.conditions.loc["a b", "n_cells"] == 300
    # plates are part of a well's name: A3 of one plate is not A3 of another
    obs = case("balanced").obs.assign(well=[f"A{i // 2}" for i in range(36)])
    wells = obs.loc[obs["compound"] == "Abc", ["plate", "well"]].drop_duplicates()
    assert table.conditions.loc["Abc", "n_wells"] == len(wells)
    assert not {"n_cells", "n_wells"} & set(sums().conditions)


def test_conditions_of_few_cells_are_left_out_and_that_is_said(tmp_path: Any) -> None:
    table = with_cells()
    names = [row["condition"] for row in table.strongest(20, min_cells=10)]
    assert "B-12" not in names
    assert len(names) == len(table.conditions) - 1
    assert {"cells", "wells", "samples"} <= set(table.strongest(1)[0])
    html = de_page(table).html()
    data = embedded(html)
    assert data["min_cells"] == 10
    assert data["conditions"][data["first"]] != "B-12"
    assert "of 4 conditions of 10 cells or more have" in html
    # a file keeps the numbers
    again = DETable.read(table.write(tmp_path / "de.parquet"))
    pd.testing.assert_frame_equal(again.conditions, table.conditions)
    uncounted = embedded(de_page(sums()).html())
    assert uncounted["cells"] is None


def slanted(by: float) -> DETable:
    """The first condition's effects fall by ``by`` from the least to the best expressed third."""
    table = sums()
    genes = len(table.genes)
    expression = np.tile(np.linspace(0, 12, genes), (len(table.conditions), 1))
    effects = np.random.default_rng(0).normal(0, 0.1, expression.shape)
    effects[0] -= by * np.linspace(-0.75, 0.75, genes)  # thirds' medians are 2/3 of the range apart
    frames = {"ave_expr": expression, "logfc": effects}
    made = {
        name: pd.DataFrame(values, table.logfc.index, table.genes)
        for name, values in frames.items()
    }

    return replace(table, **made)


def test_a_cloud_that_slants_is_flagged() -> None:
    table = slanted(2.0)
    slant = table.slant()
    assert slant.iloc[0] == pytest.approx(-2.0, abs=0.1)
    assert (slant.iloc[1:].abs() < 0.1).all()
    flags = {row["condition"]: row["slants"] for row in table.strongest(20)}
    first = table.show_label(table.conditions.index[0])
    assert flags.pop(first) == "-2.0"
    assert set(flags.values()) == {""}
    assert "slants" not in slanted(0.0).strongest(20)[0], "a column of nothing says nothing"
    assert "In 1 of them the MA cloud slants" in de_page(table, level=0.9).html()
    assert "slants, which" not in de_page(slanted(0.5), level=0.9).html()
    assert embedded(de_page(table).html())["slants_from"] == SLANT


def test_what_is_drawn_is_what_was_found() -> None:
    table = with_cells()
    data = embedded(de_page(table).html())
    genes, shown = data["genes"], data["shown"]
    assert genes == table.genes.tolist()
    codes = np.frombuffer(base64.b64decode(data["codes"]), "<u2").reshape(-1, shown)
    packed = np.frombuffer(base64.b64decode(data["logfc"]["data"]), "<i2").reshape(-1, shown)
    effects = packed * np.array(data["logfc"]["scale"])[:, None]
    for row in range(len(table.conditions)):
        tested = codes[row] != 65535
        expected = table.logfc.iloc[row].to_numpy()[codes[row][tested]]
        np.testing.assert_allclose(effects[row][tested], expected, atol=2e-3)
        # the strongest come first
        p = table.log10_p.iloc[row].to_numpy()[codes[row][tested]]
        assert (np.diff(p[: data["strongest"]]) >= 0).all()
    best = np.frombuffer(base64.b64decode(data["gene_codes"]), "<u2").reshape(len(genes), -1)
    gene = int(np.flatnonzero(table.log10_p.notna().all().to_numpy())[0])
    assert best[gene][0] == int(table.log10_p.iloc[:, gene].to_numpy().argmin())


def test_a_budget_limits_what_is_drawn_to_the_strongest_and_a_sample() -> None:
    table = with_cells()
    evidence = -table.log10_p.to_numpy()
    few = _clouds(table, evidence, budget=1)
    assert few["shown"] == min(80, len(table.genes))
    codes = np.frombuffer(base64.b64decode(few["codes"]), "<u2").reshape(-1, few["shown"])
    for row in codes:
        used = row[row != 65535]
        assert len(set(used.tolist())) == len(used), "no gene twice"


def test_ids_of_a_page_are_not_given_twice() -> None:
    """A heading and a table of one id made the table overwrite the heading."""
    html = de_page(with_cells()).html()
    ids = re.findall(r' id="([^"]+)"', re.sub(r"<script.*?</script>", "", html, flags=re.S))
    assert len(ids) == len(set(ids))


def test_samples_are_drawn_by_their_leading_fold_changes() -> None:
    experiment = case("balanced")
    counts = anndata.AnnData(experiment.counts, experiment.obs)
    figure, caption = sample_figure(counts, sums().info)
    assert "each pair's own" in caption
    assert {trace.name for trace in figure.data} == set(experiment.obs["compound"])
    expected = mds(log_cpm(experiment.counts, norm_factors=tmm_factors(experiment.counts)))
    drawn = {
        text.partition(":")[0]: x
        for trace in figure.data
        for text, x in zip(trace.text, trace.x, strict=True)
    }
    assert drawn == pytest.approx(expected.coordinates["dim1"].to_dict())
    html = de_page(sums(), samples=counts).html()
    assert "one that stands out is looked at" in html
    assert "one that stands out is looked at" not in de_page(sums()).html()


def test_many_samples_are_drawn_by_common_genes_and_many_levels_by_the_control() -> None:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"compound": [f"c{i // 3}" for i in range(150)]})
    obs.index = [f"s{i}" for i in range(150)]
    counts = anndata.AnnData(rng.poisson(20, (150, 40)).astype(float), obs)
    figure, caption = sample_figure(counts, {"group": "compound", "control": "c0"})
    assert "vary most" in caption
    assert {trace.name for trace in figure.data} == {"c0", "others"}
