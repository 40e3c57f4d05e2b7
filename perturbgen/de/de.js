// What answers the controls of de.html: conditions, one condition, one gene. plots.py puts #data before it.
"use strict";
const data = JSON.parse($("data").textContent);
const UNTESTED = 65535;
const width = data.shown, most = data.per_gene;
const codes = lazily(() => new Uint16Array(fromBase64(data.codes)));
const logfc = lazily(() => unpack(data.logfc, width));
const expression = lazily(() => unpack(data.ave_expr, width));
const evidence = lazily(() => unpack(data.log10_p, width));
const ofGene = lazily(() => new Uint16Array(fromBase64(data.gene_codes)));
const geneEffect = lazily(() => unpack(data.gene_logfc, most));
const geneEvidence = lazily(() => unpack(data.gene_log10_p, most));
const counted = data.cells !== null;
const everyone = data.conditions.map((_, row) => row);
const least = () => Number($("min-cells").value) || 0;
const enough = (row) => !counted || data.cells[row] >= least();
const slants = (row) => data.slant[row] !== null && Math.abs(data.slant[row]) > data.slants_from;
// Samples are wells where each well is one: then a column of each would say the same twice.
const sampled = data.wells === null || data.wells.some((wells, row) => wells !== data.samples[row]);
const counts = { ...(counted && { cells: data.cells }), ...(data.wells && { wells: data.wells }),
  ...(sampled && { samples: data.samples }) };
const sizes = Object.keys(counts);
const size = (row) => sizes.map((name) => counts[name][row]);
const said = (row) => size(row).map((value, i) => `${value.toLocaleString("en")} ${sizes[i]}`).join(", ")
  + ` and ${data.controls[row]} of the control`;

function fill(id, heads, rows, choose) {
  const head = element("tr", "");
  heads.forEach((text, i) => head.append(element("th", text, { scope: "col", class: i ? "number" : "" })));
  const body = rows.map(([name, ...values], i) => {
    const line = element("tr", ""), first = element("th", choose ? "" : name, { scope: "row" });
    if (choose) {
      const button = element("button", name, { type: "button" });
      button.addEventListener("click", () => choose(i));
      first.append(button);
    }
    line.append(first);
    for (const value of values) {
      const text = typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 2 }) : value;
      line.append(element("td", text, { class: "number" }));
    }
    return line;
  });
  const thead = element("thead", ""), tbody = element("tbody", "");
  thead.append(head);
  tbody.append(...body);
  $(id).replaceChildren(thead, tbody);
  markWide();
}

function pick(row) {
  $("condition").value = data.conditions[row];
  drawCondition();
  $("condition").scrollIntoView({ block: "center" });
}

function drawTable() {
  const wanted = $("only").value.trim().toLowerCase();
  const rows = everyone.filter((row) => enough(row) && data.conditions[row].toLowerCase().includes(wanted))
    .sort((a, b) => data.hits[b] - data.hits[a]);
  const some = rows.some(slants);  // a column of nothing asks what it is for
  fill("condition-rows", ["condition", "genes", ...sizes, ...(some ? ["slants"] : []), "up", "largest |log2 FC|", "controls"],
    rows.map((row) => [data.conditions[row], data.hits[row], ...size(row),
      ...(some ? [slants(row) ? number(data.slant[row], 1) : ""] : []), data.up[row], data.largest[row], data.controls[row]]), (i) => pick(rows[i]));
  const few = everyone.filter((row) => !enough(row)).length;
  const left = counted ? `${few} of ${everyone.length} conditions have fewer than ${least()} cells and are left out. `
    : "The pseudobulk does not say how many cells a sample has (n_cells): no condition is left out. ";
  $("table-note").textContent = `${rows.length} conditions; genes are those of adjusted p < ${data.level}. ${left}`
    + (some ? `Slants: the median log2 fold change of the best expressed third of the genes less that of the least, where it `
    + `is over ${data.slants_from}; then significance is more of the sample than of the compound.` : "");
}

function scatter(id, x, y, names, significant, titles) {
  const kinds = [["other genes", "#8a949e", 0.4, (i) => !significant[i]],
    [`adjusted p < ${data.level}`, PALETTE[1], 0.75, (i) => significant[i]]];
  const traces = kinds.map(([name, colour, opacity, belongs]) => {
    const chosen = x.map((_, i) => i).filter(belongs);
    return { type: "scattergl", mode: "markers", name, x: chosen.map((i) => x[i]), y: chosen.map((i) => y[i]),
      text: chosen.map((i) => asText(names[i])), marker: { size: 5, color: colour, opacity },
      hovertemplate: "%{text}<br>%{x:.2f}, %{y:.2f}<extra></extra>" };
  });
  draw(id, traces, { height: 400, margin: { l: 55, r: 10, t: 50, b: 50 }, legend: { orientation: "h", x: 0, y: 1.12 },
    xaxis: { title: { text: titles[0] }, gridcolor: "#e5e9ed" }, yaxis: { title: { text: titles[1] }, gridcolor: "#e5e9ed" } });
}

function drawCondition() {
  const row = data.conditions.indexOf($("condition").value.trim());
  if (row < 0) {
    $("condition-note").textContent = `There is no condition ${$("condition").value.trim() || "without a name"}.`;
    return;
  }
  const places = Array.from({ length: width }, (_, i) => i).filter((i) => codes()[row * width + i] !== UNTESTED);
  const names = places.map((i) => data.genes[codes()[row * width + i]]);
  const effect = places.map((i) => logfc()(row, i)), p = places.map((i) => evidence()(row, i));
  const level = places.map((i) => expression()(row, i));
  // What was rounded may not move across the line.
  const significant = p.map((value) => data.cut[row] !== null && value >= data.cut[row] * 0.999);
  scatter("volcano", effect, p, names, significant, ["log2 fold change", "−log10 p"]);
  scatter("ma", level, effect, names, significant, ["average log2 CPM", "log2 fold change"]);
  const some = places.length < data.genes.length ? `; of the genes ${places.length} are drawn: the ${data.strongest} `
    + "strongest, and an even sample of the others by expression" : "";
  const few = enough(row) ? "" : ` Fewer than ${least()} cells: what is significant here may be the few cells' own.`;
  $("condition-note").textContent = `${data.conditions[row]}: ${said(row)}; ${data.hits[row]} genes of adjusted `
    + `p < ${data.level}${some}.${few}`;
  $("slant").hidden = !slants(row);
  $("slant").textContent = slants(row) ? `This cloud slants: the best expressed third of the genes is at a median of `
    + `${number(data.slant[row], 1)} log2 to the least expressed third. With few cells, or libraries that do not compare, `
    + `genes are significant for no reason of their own.` : "";
  const first = places.map((_, i) => i).slice(0, data.strongest);
  fill("genes-of", ["gene", "log2 FC", "−log10 p", "average log2 CPM"],
    first.map((i) => [names[i], effect[i], p[i], level[i]]));
}

function drawGene() {
  const gene = data.genes.indexOf($("gene").value.trim());
  if (gene < 0) {
    $("gene-note").textContent = `${$("gene").value.trim() || "No gene"} is not among the ${data.genes.length} genes.`;
    return;
  }
  const ranks = Array.from({ length: most }, (_, i) => i).filter((i) => {
    const row = ofGene()[gene * most + i];
    return row !== UNTESTED && enough(row);
  });
  const some = ranks.some((i) => slants(ofGene()[gene * most + i]));
  fill("conditions-of", ["condition", ...sizes, "log2 FC", "−log10 p", ...(some ? ["slants"] : [])], ranks.map((i) => {
    const row = ofGene()[gene * most + i];
    return [data.conditions[row], ...size(row), geneEffect()(gene, i), geneEvidence()(gene, i),
      ...(some ? [slants(row) ? number(data.slant[row], 1) : ""] : [])];
  }));
  $("gene-note").textContent = `The conditions in which ${data.genes[gene]} has the least p: of the ${most} first those of `
    + `${least()} cells or more.`;
}

const on = (id, event, handler) => $(id).addEventListener(event, handler);
$("min-cells").value = data.min_cells;
$("condition-list").replaceChildren(...data.conditions.map((name) => new Option(name)));
$("gene-list").replaceChildren(...data.genes.map((gene) => new Option(gene)));
$("condition").value = data.conditions[data.first];
$("gene").value = data.genes[codes()[data.first * width]] || data.genes[0];
on("min-cells", "input", () => { drawTable(); drawCondition(); drawGene(); });
on("only", "input", drawTable);
on("condition", "input", drawCondition);
on("gene", "input", drawGene);
drawTable();
drawCondition();
drawGene();
