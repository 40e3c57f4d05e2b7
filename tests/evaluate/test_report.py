from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import SchemaError
from perturbgen.core.page import Page
from perturbgen.evaluate import Scorecard, calibration, report_page, scorecard
from perturbgen.evaluate.report import _payload, _shown_genes
from tests.evaluate.tables import experiment, frame

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

Made = tuple[Scorecard, pd.DataFrame, dict[str, pd.DataFrame]]


@pytest.fixture(scope="module")
def made() -> Made:
    """A scorecard of two methods, one of a dangerous name, a baseline and a positive control."""
    truth, prediction, signal = experiment(conditions=20, genes=60)
    truth = truth.rename(columns={"g3": "<b>&g3"})
    tables = {"honest": prediction, "</script>weak": prediction * 0.1 + 1, "signal": signal}
    tables = {name: table.set_axis(truth.columns, axis=1) for name, table in tables.items()}
    card = scorecard(truth, tables, positive="signal", baselines=["</script>weak"], resamples=50)
    return card, truth, tables


def embedded(html: str) -> dict[str, object]:
    """The JSON of a page."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    found: dict[str, object] = json.loads(text)
    return found


def test_the_page_is_self_contained_and_escapes_names(made: Made) -> None:
    html = report_page(
        *made, metadata={"seed": 3, "git": None, "packages": {"numpy": "2.4"}}
    ).html()
    for forbidden in ("<script src", "<link", "@import", "</script>weak", "<b>&g3"):
        assert forbidden not in html, forbidden
    for section in (
        "Ranking",
        "By cell type and compound",
        "Predicted against true",
        "Genes",
        "Definitions",
        "Run",
    ):
        assert f">{section}</h2>" in html
    assert "packages.numpy" in html
    assert "Calibration" not in html
    assert "all 60 are shown" in html
    # Only comments may stand before the directive, or it does nothing.
    assert re.search(r'<script>(//[^\n]*\n)*"use strict";', html)


def test_what_is_embedded_is_what_was_scored(made: Made) -> None:
    card, truth, tables = made
    data = embedded(report_page(*made).html())
    names = [entry["name"] for entry in data["methods"]]  # type: ignore[index,attr-defined]
    assert names == card.ranking["method"].tolist()
    packed = data["scores"]["mean_rowwise_mae"]  # type: ignore[index,call-overload]
    scores = np.frombuffer(base64.b64decode(packed), "<f4")
    expected = card.scores.xs("mean_rowwise_mae", level="metric").loc[names].to_numpy()
    np.testing.assert_allclose(scores.reshape(4, 20), expected, rtol=1e-6)
    packed = data["tables"]["honest"]  # type: ignore[index,call-overload]
    whole = np.frombuffer(base64.b64decode(packed["data"]), "<i2").reshape(20, 60)
    values = whole * np.array(packed["scale"])[:, None]
    shown = pd.DataFrame(values, truth.index, data["genes"])  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(
        shown[truth.columns], tables["honest"], check_names=False, atol=1e-3
    )


def test_labels_join_predictions_in_any_order(made: Made) -> None:
    card, truth, tables = made
    rng = np.random.default_rng(0)
    turned = {
        name: table.sample(frac=1, random_state=1)[rng.permutation(table.columns)].swaplevel()
        for name, table in tables.items()
    }
    assert Page.json(_payload(card, truth, turned)) == Page.json(_payload(card, truth, tables))


def test_a_budget_limits_the_genes_and_the_page_says_so(made: Made) -> None:
    card, truth, tables = made
    budget = 12 * 20 * 4 * 8 // 3  # twelve genes of twenty conditions and four tables
    assert len(_payload(card, truth, tables, budget=budget)["genes"]) == 12
    html = report_page(card, truth, tables, budget=budget).html()
    assert "of the 60 genes these are 12" in html


def test_half_of_the_genes_are_the_strongest() -> None:
    truth = np.ones((3, 1)) * np.arange(100.0)
    chosen = _shown_genes(truth, 20)
    assert sorted(chosen[:10]) == list(range(90, 100))
    assert len(set(chosen.tolist())) == 20
    assert {0, 89} <= set(chosen.tolist())
    np.testing.assert_array_equal(_shown_genes(truth, 100), np.arange(100))


def test_quantised_values_are_close_and_zero_rows_survive() -> None:
    values = np.array([[1.0, -3.0, 0.001], [0.0, 0.0, 0.0]])
    packed = Page.packed(values)
    whole = np.frombuffer(base64.b64decode(packed["data"]), "<i2").reshape(2, 3)
    np.testing.assert_allclose(whole * np.array(packed["scale"])[:, None], values, atol=3 / 32767)


def test_coverage_by_hand() -> None:
    truth, low, high = (
        frame([[1.0, 2.0, 3.0, 4.0]]),
        frame([[1.0, 2.5, 0, 0]]),
        frame([[1.5, 3.0, 3.0, 3.0]]),
    )
    assert calibration(truth, {0.5: (low, high)})["coverage"].tolist() == [0.5]


def test_endless_intervals_hold_everything_and_are_shown(made: Made) -> None:
    card, truth, predictions = made
    name, endless = next(iter(predictions)), (truth * 0 - np.inf, truth * 0 + np.inf)
    found = calibration(truth, {0.9: endless})
    assert found["coverage"].eq(1).all()
    assert np.isposinf(found["width"]).all()
    page = report_page(card, truth, predictions, intervals={name: {0.9: endless}}).html()
    assert "mean width" in page


def test_calibration_of_normal_intervals_is_nominal(made: Made) -> None:
    truth, _, signal = experiment(conditions=40, genes=400)
    levels = {0.5: 0.674490, 0.9: 1.644854}
    wide = {level: (signal - z, signal + z) for level, z in levels.items()}
    found = calibration(truth, wide).groupby(level="nominal").mean()
    np.testing.assert_allclose(found["coverage"], [0.5, 0.9], atol=0.01)
    np.testing.assert_allclose(found["width"], [2 * 0.674490, 2 * 1.644854])
    html = report_page(*made, intervals={"honest": {0.9: (made[1] - 1, made[1] + 1)}}).html()
    assert ">Calibration</h2>" in html
    with pytest.raises(SchemaError, match="above their upper ends"):
        calibration(truth, {0.5: (signal + 1, signal - 1)})
    with pytest.raises(SchemaError, match="level 90"):
        calibration(truth, {90: (signal, signal)})
    with pytest.raises(SchemaError, match="no intervals"):
        calibration(truth, {})


def test_the_ladder_has_rungs_and_methods_on_one_scale(made: Made) -> None:
    card, truth, tables = made
    assert "Oracle ladder" not in report_page(*made).html()
    rungs = [
        {"prediction": "<i>one draw", "seed 0": 2.0, "ratio": 0.8125},
        {"prediction": "zeros", "ratio": 1.0},
    ]
    html = report_page(*made, ladder=rungs).html()
    section = html.split(">Oracle ladder</h2>")[1].split("<h2")[0]
    errors = card.table[card.table["metric"] == "mean_rowwise_rmse"].set_index("method")["value"]
    rows = re.findall(
        r"<tr><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>", section
    )
    shown = {name: (who, float(ratio)) for name, who, ratio in rows}
    assert shown.keys() == {"&lt;i&gt;one draw", "honest", "&lt;/script&gt;weak"}, (
        "controls have no place"
    )
    assert shown["&lt;i&gt;one draw"] == ("oracle", 0.8125)
    assert shown["honest"] == (
        "method",
        pytest.approx(errors["honest"] / errors["zeros"], rel=1e-3),
    )
    assert [ratio for _, ratio in shown.values()] == sorted(ratio for _, ratio in shown.values())
    assert "<i>one" not in section
    plain = scorecard(
        truth, tables, positive="signal", metrics=["mean_rowwise_pearson"], resamples=10
    )
    without_errors = (
        report_page(plain, truth, tables, ladder=rungs).html().split(">Oracle ladder</h2>")[1]
    )
    assert "<td>method</td>" not in without_errors, "the rungs alone"


def test_one_condition_has_a_page() -> None:
    truth, prediction, _ = experiment(conditions=1, genes=8)
    card = scorecard(truth, {"p": prediction})
    data = embedded(report_page(card, truth, {"p": prediction}).html())
    assert data["conditions"] == [["B cells", "c0"]]


DRIVE = """
const seen = { errors: [] };
window.addEventListener("error", (event) => seen.errors.push(event.message));
window.addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
PLOTLY.then(() => new Promise((done) => setTimeout(done, 500))).then(() => {
const note = (id) => document.getElementById(id).textContent;
const set = (id, value, event = "change") => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event(event));
};
const all = (selector) => [...document.querySelectorAll(selector)];
const keys = (id) => all(`#${id} tbody th`).map((cell) => cell.textContent);
const points = (id, trace) => document.getElementById(id).data[trace];
const opened = [$("condition").value, $("condition-2").value].map(Number);
set("rank-metric", "mean_rowwise_rmse");
seen.ranking = points("rank-plot", 0).y.slice();
document.getElementById("rank-share").click();
seen.share = points("rank-plot", 0).x.slice();
set("group-level", "1");
seen.compounds = keys("group-table");
document.querySelector('#group-table button[data-column="0"]').click();
seen.sorted = keys("group-table");
seen.focus = document.activeElement.dataset.column;
seen.aria = all("#group-table thead th").map((cell) => cell.getAttribute("aria-sort"));
document.querySelector('#group-table button[data-column="0"]').click();
seen.reversed = keys("group-table");
set("group-filter", "C7", "input");
seen.filtered = keys("group-table");
set("condition", "5");
set("condition-method", "signal");
seen.condition = note("condition-note");
seen.truth = [...points("condition-plot", 1).x, ...points("condition-plot", 2).x];
seen.predicted = [...points("condition-plot", 1).y, ...points("condition-plot", 2).y];
seen.own = keys("condition-table");
seen.row = all("#condition-table tbody tr:first-child td").map((cell) => cell.textContent);
set("gene", "g7", "input");
set("gene-method", "honest");
seen.gene = note("gene-note");
seen.strongest = keys("gene-table")[0];
set("gene", "nothing", "input");
seen.unknown = note("gene-note");
seen.upload = all('[data-title*="Share"], [data-title*="Cloud"]').length;
seen.opened = opened;
seen.over = document.documentElement.scrollWidth - window.innerWidth;
seen.reachable = all("select, input, th button, .tall").every((e) => e.tabIndex === 0);
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify(seen);
document.body.append(result);
});
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found")
def test_the_controls_work_in_a_browser(made: Made, tmp_path: Path) -> None:
    card, truth, tables = made
    page = report_page(card, truth, tables).write(tmp_path / "report.html")
    page.write_text(page.read_text().replace("</body>", f"<script>{DRIVE}</script></body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--window-size=500,900",
    ]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=9000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    [text] = re.findall(r'<pre id="seen">(.*?)</pre>', dom)
    seen = json.loads(text)
    assert seen["errors"] == []
    assert seen["ranking"][-1] == "signal"  # best on top
    assert seen["share"][-1] == pytest.approx(1)
    assert seen["compounds"] == [f"c{i}" for i in range(10)]
    best = card.ranking["method"].iloc[0]
    rmse = card.scores.loc[(best, "mean_rowwise_rmse")].groupby(level="compound").mean()
    assert seen["sorted"] == rmse.sort_values(ascending=False).index.tolist()
    assert seen["reversed"] == seen["sorted"][::-1]
    assert seen["focus"] == "0"
    assert seen["aria"][2] == "descending"
    assert seen["filtered"] == ["c7"]
    label = truth.index[5]
    assert f"{label[0]} | {label[1]}, over all 60 genes" in seen["condition"]
    pearson = card.scores.loc[("signal", "mean_rowwise_pearson"), label]
    assert f"Correlation (Pearson) {pearson:.3f}" in seen["condition"]
    np.testing.assert_allclose(sorted(seen["truth"]), np.sort(truth.loc[label]), atol=2e-3)
    np.testing.assert_allclose(
        sorted(seen["predicted"]), np.sort(tables["signal"].loc[label]), atol=2e-3
    )
    assert seen["own"] == truth.loc[label].abs().sort_values(ascending=False).index[:20].tolist()
    strongest = truth.loc[label].abs().idxmax()
    # the chosen method, which is the positive control, too, and the best baseline
    expected = [truth, tables["signal"], tables["</script>weak"]]
    assert [float(value) for value in seen["row"]] == pytest.approx(
        [t.loc[label, strongest] for t in expected], abs=6e-3
    )
    assert seen["gene"].startswith("g7 in 20 conditions")
    assert seen["strongest"] == " | ".join(truth["g7"].abs().idxmax())
    assert "nothing is not among the 60 genes" in seen["unknown"]
    assert seen["reachable"]
    assert seen["upload"] == 0
    assert seen["over"] <= 0, "nothing is wider than a narrow window"
    strength = (truth**2).mean(axis=1).to_numpy()
    strongest_first = np.argsort(-strength)
    assert seen["opened"] == [strongest_first[0], strongest_first[9]]  # of 20
