// What answers the controls of report_controls.html: rankings, groups, true against predicted, genes.
//
// report.py puts two elements before it: #data, the JSON of _payload (labels, methods, metrics, and
// tables as base64: int16 values with a scale for each row, float32 scores), and a script that
// defines PALETTE, the colours of the figures. Plotly is on the page already.
"use strict";
const data = JSON.parse($("data").textContent);
const table = (packed, genes = data.genes.length) => unpack(packed, genes);
const truth = lazily(() => table(data.truth));
const tables = {}, ownTables = {};
const own = data.own.codes[0].length;
const ownTruth = lazily(() => table(data.own.truth, own));
for (const name in data.tables) {
  tables[name] = lazily(() => table(data.tables[name]));
  ownTables[name] = lazily(() => table(data.own.tables[name], own));
}
const scores = {};
for (const name in data.scores) scores[name] = lazily(() => new Float32Array(fromBase64(data.scores[name])));
const metricOf = Object.fromEntries(data.metrics.map((metric) => [metric.name, metric]));
const labels = data.conditions.map((parts) => parts.join(" | "));
const arrow = (metric) => (metric.up ? "↑" : "↓");
const SHARE = "share of the dynamic range<br>(0 negative, 1 positive control)";
// Ranking: a point and an interval for each method, controls hollow.
function drawRanking() {
  const metric = metricOf[$("rank-metric").value];
  const asShare = $("rank-share").checked && metric.name !== "headline";
  const at = asShare ? 3 : 0;
  const rows = data.methods.map((method, i) => ({ ...method, numbers: data.overall[metric.name][i].slice(at, at + 3) }))
    .filter((row) => row.numbers[0] !== null);
  const better = metric.up || asShare ? 1 : -1;
  // Equals from the last to the first, as the axis runs upwards: in the order of the table.
  rows.reverse().sort((a, b) => better * (a.numbers[0] - b.numbers[0]));
  const off = (row, end) => (row.numbers[end] === null ? 0 : Math.abs(row.numbers[end] - row.numbers[0]));
  const hollow = (row) => row.role.endsWith("control") || row.role === "reference";
  draw("rank-plot", [{
    type: "scatter", mode: "markers", x: rows.map((row) => row.numbers[0]), y: rows.map((row) => asText(row.name)),
    error_x: { type: "data", symmetric: false, array: rows.map((row) => off(row, 2)),
      arrayminus: rows.map((row) => off(row, 1)), color: "#57606a", thickness: 1.5, width: 4 },
    marker: { size: 11, color: PALETTE[0], line: { width: 2, color: PALETTE[0] },
      symbol: rows.map((row) => (hollow(row) ? "circle-open" : row.role === "baseline" ? "square" : "circle")) },
    customdata: rows.map((row) => row.role), hovertemplate: "%{y} (%{customdata}): %{x:.4f}<extra></extra>",
  }], {
    height: 140 + 30 * rows.length, margin: { l: 20, r: 20, t: 40, b: 76 },
    yaxis: { automargin: true, type: "category" },
    xaxis: { title: { text: asShare || metric.name === "headline" ? SHARE : metric.title + " " + arrow(metric) },
      zeroline: true, gridcolor: "#e5e9ed" },
  });
  const warning = "The controls do not differ beyond chance: this metric ranks nobody. ";
  $("rank-note").textContent = (metric.ranks ? "" : warning)
    + "Best at the top. Circles are methods, squares baselines, hollow circles controls and references; "
    + "bars are 95 % intervals."
    + (rows.length ? "" : " There is nothing to show.");
}

// Of ascending values, between neighbours in proportion.
function quantile(values, share) {
  const at = share * (values.length - 1), below = Math.floor(at);
  return values[below] + (at - below) * (values[Math.min(below + 1, values.length - 1)] - values[below]);
}

// Scores of groups: a sortable table, shaded from the worst value to the best.
const order = { column: -1, down: true };
function groups() {
  const level = Number($("group-level").value);
  const name = $("group-metric").value;
  const values = scores[name]();
  const found = new Map();
  data.conditions.forEach((parts, row) => {
    const key = level < 0 ? labels[row] : parts[level];
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(row);
  });
  const mean = (rows, method) => {
    const finite = rows.map((row) => values[method * labels.length + row]).filter(Number.isFinite);
    return finite.length ? finite.reduce((a, b) => a + b, 0) / finite.length : NaN;
  };
  const means = (rows) => data.methods.map((_, i) => mean(rows, i));
  return [...found].map(([key, rows]) => ({ key, count: rows.length, means: means(rows) }));
}

function drawGroups() {
  const metric = metricOf[$("group-metric").value];
  const wanted = $("group-filter").value.trim().toLowerCase();
  const rows = groups().filter((row) => row.key.toLowerCase().includes(wanted));
  const value = (row) => (order.column === -1 ? row.key : order.column === -2 ? row.count : row.means[order.column]);
  const down = order.down ? -1 : 1;
  rows.sort((a, b) => {
    const x = value(a), y = value(b);
    if (typeof x === "string") return -down * x.localeCompare(y, undefined, { numeric: true });
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return down * (x - y);
  });
  // Of all values: the colours stay when rows are filtered. One outlier would make the rest one colour.
  const all = groups().flatMap((row) => row.means).filter(Number.isFinite).sort((a, b) => a - b);
  const low = quantile(all, 0.05), high = quantile(all, 0.95);
  const heading = (text, column) => {
    const sorted = order.column === column;
    const ascending = column === -1 ? order.down : !order.down;  // names begin with A
    const direction = sorted ? (ascending ? "ascending" : "descending") : "none";
    // Names of many methods stand upright, or the table is wider than any window.
    const kind = column < 0 ? (column === -1 ? "" : "number") : data.methods.length > 5 ? "number upright" : "number";
    const cell = element("th", "", { scope: "col", "aria-sort": direction, class: kind });
    const button = element("button", text, { type: "button", "data-column": column });
    button.addEventListener("click", () => {
      order.down = sorted ? !order.down : true;
      order.column = column;
      drawGroups();
      document.querySelector(`#group-table button[data-column="${column}"]`).focus();
    });
    cell.append(button);
    return cell;
  };
  const head = element("tr", "");
  const level = Number($("group-level").value);
  head.append(heading(level < 0 ? "condition" : data.levels[level], -1), heading("conditions", -2));
  data.methods.forEach((method, i) => head.append(heading(method.name, i)));
  const body = rows.map((row) => {
    const line = element("tr", "");
    line.append(element("th", row.key, { scope: "row" }), element("td", row.count, { class: "number" }));
    for (const mean of row.means) {
      const cell = element("td", number(mean), { class: "number" });
      const share = high > low ? (metric.up ? mean - low : high - mean) / (high - low) : 0;
      const good = Math.min(1, Math.max(0, share));
      if (Number.isFinite(mean)) cell.style.background = `rgba(0, 114, 178, ${(0.35 * good).toFixed(3)})`;
      line.append(cell);
    }
    return line;
  });
  const thead = element("thead", ""), tbody = element("tbody", "");
  thead.append(head);
  tbody.append(...body);
  $("group-table").replaceChildren(thead, tbody);
  markWide();
  $("group-note").textContent = `${rows.length} rows; ${metric.title} ${arrow(metric)}, darker is better. `
    + `Colours run from the 5 % to the 95 % quantile of the table (${number(low)} to ${number(high)}).`;
}

// Two axes of one scale with the line of equality.
function square(id, x, y, text, colours, axes) {
  const reach = 1.05 * Math.max(1e-9, ...x.map(Math.abs), ...y.map(Math.abs));
  const axis = { range: [-reach, reach], zeroline: true, zerolinecolor: "#8a949e", gridcolor: "#e5e9ed" };
  const traces = [{ type: "scatter", mode: "lines", x: [-reach, reach], y: [-reach, reach], hoverinfo: "skip",
    line: { color: "#8a949e", dash: "dot" }, showlegend: false }];
  for (const [name, colour, chosen] of colours) {
    traces.push({ type: "scatter", mode: "markers", name: asText(name), x: chosen.map((i) => x[i]),
      y: chosen.map((i) => y[i]), text: chosen.map((i) => asText(text[i])),
      marker: { size: 7, color: colour, opacity: 0.65 },
      hovertemplate: "%{text}<br>true %{x:.2f}, predicted %{y:.2f}<extra></extra>" });
  }
  draw(id, traces, { height: 480, showlegend: colours.length > 1, legend: { orientation: "h", y: 1.08 },
    margin: { l: 60, r: 20, t: 40, b: 50 },
    xaxis: { ...axis, title: { text: axes[0] } }, yaxis: { ...axis, title: { text: axes[1] } } });
}

// What stands beside the truth in tables: a method, the best baseline and the positive control.
function beside(name) {
  const best = data.methods.find((entry) => entry.role === "baseline" && entry.name in tables);
  const control = data.methods.find((entry) => entry.role === "positive control" && entry.name in tables);
  return [...new Set([name, best && best.name, control && control.name])].filter(Boolean);
}

// A table of true and predicted values; each row is a name and numbers.
function fill(id, what, names, rows) {
  const head = element("tr", "");
  head.append(element("th", what, { scope: "col" }));
  for (const text of ["true", ...names]) {
    head.append(element("th", text, { scope: "col", class: "number" }));
  }
  const body = rows.map(([name, ...values]) => {
    const line = element("tr", "");
    line.append(element("th", name, { scope: "row" }));
    for (const value of values) line.append(element("td", number(value, 2), { class: "number" }));
    return line;
  });
  const thead = element("thead", ""), tbody = element("tbody", "");
  thead.append(head);
  tbody.append(...body);
  $(id).replaceChildren(thead, tbody);
  markWide();
}

const everyone = (count) => Array.from({ length: count }, (_, i) => i);

function drawCondition(place) {
  const row = Number($("condition" + place).value), name = $("condition-method").value;
  const strongest = data.own.codes[row].map((code) => data.own.names[code]);
  const genes = everyone(data.genes.length).filter((g) => !strongest.includes(data.genes[g]));
  const names = [...genes.map((g) => data.genes[g]), ...strongest];
  const ranks = everyone(own);
  square("condition-plot" + place, [...genes.map((g) => truth()(row, g)), ...ranks.map((g) => ownTruth()(row, g))],
    [...genes.map((g) => tables[name]()(row, g)), ...ranks.map((g) => ownTables[name]()(row, g))], names,
    [["other genes", PALETTE[0], everyone(genes.length)],
      [`its ${own} strongest`, PALETTE[1], ranks.map((g) => genes.length + g)]],
    ["true", "predicted by " + asText(name)]);
  fill("condition-table" + place, "gene", beside(name), ranks.map((g) => [strongest[g], ownTruth()(row, g),
    ...beside(name).map((method) => ownTables[method]()(row, g))]));
  const method = data.methods.findIndex((entry) => entry.name === name);
  // The headline's metrics, or all where none of them was computed.
  const asked = data.headline.length ? data.headline : Object.keys(scores);
  const shown = data.metrics.filter((metric) => asked.includes(metric.name)).map((metric) =>
    `${metric.title} ${number(scores[metric.name]()[method * labels.length + row])}`);
  const total = data.all_genes.toLocaleString("en");
  $("condition-note" + place).textContent = `${labels[row]}, over all ${total} genes: ${shown.join(", ")}.`;
}

function drawGene() {
  const gene = data.genes.indexOf($("gene").value.trim()), name = $("gene-method").value;
  if (gene < 0) {
    const asked = $("gene").value.trim() || "No gene";
    $("gene-note").textContent = `${asked} is not among the ${data.genes.length} genes on this page.`;
    return;
  }
  const rows = everyone(labels.length);
  const x = rows.map((row) => truth()(row, gene)), y = rows.map((row) => tables[name]()(row, gene));
  const kinds = [...new Set(data.conditions.map((parts) => parts[0]))];
  const many = kinds.length > PALETTE.length;
  const colours = many ? [["conditions", PALETTE[0], rows]]
    : kinds.map((kind, i) => [kind, PALETTE[i], rows.filter((row) => data.conditions[row][0] === kind)]);
  square("gene-plot", x, y, labels, colours, ["true " + asText(data.genes[gene]), "predicted by " + asText(name)]);
  const first = [...rows].sort((a, b) => Math.abs(x[b]) - Math.abs(x[a])).slice(0, 25);
  fill("gene-table", "condition", beside(name), first.map((row) => [labels[row], x[row],
    ...beside(name).map((method) => tables[method]()(row, gene))]));
  const note = `${data.genes[gene]} in ${rows.length} conditions; below, the ${first.length} where it is strongest.`;
  $("gene-note").textContent = note;
}

const metrics = data.metrics.map((metric) => [metric.name, `${metric.title} ${arrow(metric)}`]);
const single = metrics.filter(([name]) => name !== "headline");
const drawn = data.methods.map((method) => method.name).filter((name) => name in tables).map((name) => [name, name]);
options("rank-metric", metrics);
options("group-level", [...data.levels.map((name, i) => [String(i), name]), ["-1", "condition"]]
  .filter(([, name], i, list) => list.findIndex((entry) => entry[1] === name) === i));
options("group-metric", single);
// The page opens on the strongest condition, beside it on the median one.
const byStrength = everyone(labels.length).sort((a, b) => data.strength[b] - data.strength[a]);
const strengths = byStrength.map((row, i) => [String(row), `${labels[row]} (${i + 1} of ${labels.length})`]);
options("condition", strengths);
options("condition-2", strengths, String(byStrength[Math.floor((labels.length - 1) / 2)]));
const honest = data.methods.find((method) => method.role === "method" && method.name in tables);
const first = (honest || data.methods[0]).name;
options("condition-method", drawn, first);
options("gene-method", drawn, first);
$("gene-list").replaceChildren(...data.genes.map((gene) => new Option(gene)));
$("gene").value = data.genes[0];
const on = (ids, event, handler) => ids.forEach((id) => $(id).addEventListener(event, handler));
on(["rank-metric", "rank-share"], "change", drawRanking);
on(["group-level", "group-metric"], "change", drawGroups);
on(["group-filter"], "input", drawGroups);
const drawConditions = () => ["", "-2"].forEach(drawCondition);
on(["condition", "condition-2", "condition-method"], "change", drawConditions);
on(["gene"], "input", drawGene);
on(["gene-method"], "change", drawGene);
drawRanking();
drawGroups();
drawConditions();
drawGene();
