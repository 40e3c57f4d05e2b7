"""The controls of the report and their style; the script behind them is in ``report_script``."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
.controls { display: flex; flex-wrap: wrap; gap: 10px 18px; margin: 10px 0; align-items: end; }
.controls label { display: flex; flex-direction: column; font-size: .85rem; color: var(--soft); max-width: 100%; }
.controls label.tick { flex-direction: row; gap: 6px; align-items: center; padding-bottom: 6px; }
.controls select, .controls input[type=search], .controls button { font: inherit; color: var(--ink); padding: 5px 8px;
  border: 1px solid #8a949e; border-radius: 4px; background: #fff; max-width: 100%; min-height: 36px; }
:is(select, input, button):focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.plot { width: 100%; }
.note { color: var(--soft); font-size: .92rem; min-height: 1.5em; max-width: none; }
.tall { max-height: 520px; width: fit-content; max-width: 100%; overflow: auto; border: 1px solid var(--line); }
.tall:focus-visible { outline: 3px solid var(--accent); }
.tall table { margin: 0; }
.tall th { position: sticky; top: 0; background: #fff; z-index: 1; }
.tall th[scope=row] { left: 0; top: auto; z-index: 0; }
.tall th, .tall td { padding: 4px 10px; white-space: nowrap; }
th button { font: inherit; font-weight: 700; border: 0; background: none; padding: 2px; cursor: pointer;
  color: inherit; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
"""

CONTROLS: Final = {
    "ranking": """<div class="controls">
<label>Metric<select id="rank-metric"></select></label>
<label class="tick"><input type="checkbox" id="rank-share"> share of the dynamic range</label></div>
<div id="rank-plot" class="plot" role="img" aria-label="Ranking of methods with intervals"></div>
<p id="rank-note" class="note" aria-live="polite"></p>""",
    "groups": """<div class="controls">
<label>Group by<select id="group-level"></select></label>
<label>Metric<select id="group-metric"></select></label>
<label>Only rows with<input type="search" id="group-filter" autocomplete="off"></label></div>
<div class="tall" tabindex="0" role="region" aria-label="Scores of groups"><table id="group-table"></table></div>
<p id="group-note" class="note" aria-live="polite"></p>""",
    "conditions": """<div class="controls">
<label>Condition<select id="condition"></select></label>
<label>Method<select id="condition-method"></select></label></div>
<div id="condition-plot" class="plot" role="img" aria-label="Predicted against true values of genes"></div>
<p id="condition-note" class="note" aria-live="polite"></p>
<div class="tall" tabindex="0" role="region" aria-label="Strongest genes of a condition">
<table id="condition-table"></table></div>""",
    "genes": """<div class="controls">
<label>Gene<input type="search" id="gene" list="gene-list" autocomplete="off"></label>
<datalist id="gene-list"></datalist>
<label>Method<select id="gene-method"></select></label></div>
<div id="gene-plot" class="plot" role="img" aria-label="Predicted against true values of conditions"></div>
<p id="gene-note" class="note" aria-live="polite"></p>
<div class="tall" tabindex="0" role="region" aria-label="Conditions of a gene"><table id="gene-table"></table></div>""",
}
