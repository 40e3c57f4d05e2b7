// What answers the controls of cells.html: two maps, and counts of a gene. pictures.py puts #data before it.
"use strict";
const data = JSON.parse($("data").textContent);
const SIDES = ["real", "generated"];
const GREY = "#c9ced4", FEWEST = 20;
const cells = data.condition.length;
const everyone = Array.from({ length: cells }, (_, i) => i);
const coordinates = {}, counts = {}, sizes = {};
for (const side of SIDES) {
  coordinates[side] = lazily(() => unpack(data[side].coordinates, cells));
  counts[side] = lazily(() => new Uint8Array(fromBase64(data[side].counts)));
  sizes[side] = lazily(() => new Float32Array(fromBase64(data[side].sizes)));
}
const VIRIDIS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
const chosenGene = () => data.genes.indexOf($("gene").value.trim());
const within = () => {
  const wanted = Number($("condition").value);
  return wanted < 0 ? everyone : everyone.filter((i) => data.condition[i] === wanted);
};

// Numbers of the cells of a side for a colour: of a label, or of a gene.
function valuesOf(side) {
  const name = $("colour").value;
  if (name !== "gene") return data[side].labels[Number(name)];
  const gene = chosenGene();
  return everyone.map((i) => (gene < 0 ? 0 : Math.log1p(1e4 * counts[side]()[gene * cells + i] / sizes[side]()[i])));
}

function quantile(values, share) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  return sorted[Math.round(share * (sorted.length - 1))];
}

function point(i, side) {
  return asText(`${data.conditions[data.condition[i]]}`);
}

function markers(side, shown, rest) {
  const x = Number($("across").value), y = Number($("up").value), at = coordinates[side]();
  const trace = (list, more) => ({ type: "scattergl", mode: "markers", x: list.map((i) => at(x, i)),
    y: list.map((i) => at(y, i)), text: list.map((i) => point(i, side)), showlegend: false,
    hovertemplate: "%{text}<extra></extra>", ...more });
  const size = shown.length < 300 ? 7 : 4;
  const traces = [trace(rest, { marker: { size: 3, color: GREY, opacity: 0.35 }, hoverinfo: "skip" })];
  const values = valuesOf(side), label = data.labels[Number($("colour").value)];
  if (label && label.names) {
    label.names.forEach((name, code) => {
      const other = name === "other";
      traces.push(trace(shown.filter((i) => values[i] === code), { name: asText(name), marker: { size,
        color: other ? GREY : PALETTE[code % PALETTE.length], opacity: other ? 0.5 : 0.75,
        symbol: code < PALETTE.length ? "circle" : "diamond" } }));
    });
  } else {
    const [low, high] = limits();
    const [known, unknown] = [shown.filter((i) => values[i] !== null), shown.filter((i) => values[i] === null)];
    traces.push(trace(unknown, { marker: { size, color: GREY, opacity: 0.5 } }));
    traces.push(trace(known, { marker: { size, color: known.map((i) => values[i]), cmin: low, cmax: high, opacity: 0.8,
      colorscale: VIRIDIS.map((colour, i) => [i / (VIRIDIS.length - 1), colour]) } }));
  }
  return traces;
}

// Limits of a colour scale, of the real cells.
function limits() {
  const values = valuesOf("real");
  const low = quantile([...values], 0.02), high = quantile([...values], 0.98);
  return [low, high > low ? high : low + 1e-6];
}

function drawLegend() {
  const label = data.labels[Number($("colour").value)];
  const entry = (text, colour, round) => {
    const item = element("span", ""), dot = element("i", "", { class: round ? "" : "diamond" });
    dot.style.background = colour;
    item.append(dot, text);
    return item;
  };
  if (label && label.names) {
    $("legend").replaceChildren(...label.names.map((name, code) =>
      entry(name, name === "other" ? GREY : PALETTE[code % PALETTE.length], code < PALETTE.length)));
    return;
  }
  const [low, high] = limits(), bar = element("b", "");
  bar.style.background = `linear-gradient(to right, ${VIRIDIS.join(",")})`;
  $("legend").replaceChildren(number(low, 2), bar, number(high, 2));
}

function drawMaps() {
  const shown = within(), inside = new Set(shown);
  const rest = everyone.filter((i) => !inside.has(i));
  const x = Number($("across").value), y = Number($("up").value);
  const range = (axis) => {
    const all = SIDES.flatMap((side) => everyone.map((i) => coordinates[side]()(axis, i)));
    const low = Math.min(...all), high = Math.max(...all), pad = 0.04 * (high - low) + 1e-9;
    return [low - pad, high + pad];
  };
  const axis = (which) => ({ title: { text: data.axes[which] }, range: range(which), zeroline: false, gridcolor: "#e5e9ed" });
  for (const side of SIDES) {
    draw(`map-${side}`, markers(side, shown, rest), { height: 420, margin: { l: 50, r: 10, t: 10, b: 45 },
      xaxis: axis(x), yaxis: axis(y) });
  }
  drawLegend();
  const label = data.labels[Number($("colour").value)];
  const borrowed = label && label.borrowed ? " What generated cells show is of the nearest real cells." : "";
  const scale = label && label.names ? "" : " Colours run from the 2 % to the 98 % quantile of the real cells.";
  $("map-note").textContent = `${shown.length} cells a side, generated for the same conditions and sizes as the real ones.`
    + scale + borrowed + (shown.length < FEWEST ? ` Fewer than ${FEWEST} cells say little.` : "");
}

function drawCounts() {
  const gene = chosenGene();
  if (gene < 0) {
    const asked = $("gene").value.trim() || "No gene";
    $("counts-note").textContent = `${asked} is not among the ${data.genes.length} genes on this page.`;
    return;
  }
  const shown = within();
  const of = (side) => shown.map((i) => counts[side]()[gene * cells + i]);
  const last = Math.min(30, Math.max(3, ...SIDES.map((side) => quantile(of(side), 0.95))));
  const bins = Array.from({ length: last + 1 }, (_, i) => (i === last ? `${i}+` : String(i)));
  const traces = SIDES.map((side, at) => {
    const share = new Array(last + 1).fill(0);
    for (const value of of(side)) share[Math.min(value, last)] += 1 / shown.length;
    return { type: "bar", name: side, x: bins, y: share, marker: { color: PALETTE[at] },
      hovertemplate: "%{x}: %{y:.1%}<extra>%{fullData.name}</extra>" };
  });
  draw("counts", traces, { height: 320, barmode: "group", margin: { l: 60, r: 10, t: 40, b: 45 },
    legend: { orientation: "h", x: 0, y: 1.15 }, xaxis: { title: { text: `counts of ${asText(data.genes[gene])} in a cell` },
      type: "category" }, yaxis: { title: { text: "share of cells" }, gridcolor: "#e5e9ed", tickformat: ".0%" } });
  const mean = (side) => number(of(side).reduce((a, b) => a + b, 0) / shown.length, 2);
  const zeros = (side) => number(100 * of(side).filter((value) => value === 0).length / shown.length, 0);
  const where = Number($("condition").value) < 0 ? "all shown cells" : $("condition").selectedOptions[0].textContent;
  $("counts-note").textContent = `${data.genes[gene]} in ${where}: mean ${mean("real")} in real and ${mean("generated")} in `
    + `generated cells, without a count ${zeros("real")} and ${zeros("generated")} %.`;
}

options("colour", [...data.labels.map((label, i) => [String(i), label.name]), ["gene", "the gene"]], String(data.opens[0]));
options("condition", [["-1", "all"], ...data.listed.map((code) =>
  [String(code), `${data.conditions[code]} (${data.condition.filter((other) => other === code).length})`])]);
for (const [id, chosen] of [["across", String(data.opens[1])], ["up", String(data.opens[2])]]) {
  options(id, data.axes.map((name, i) => [String(i), name]), chosen);
}
$("gene-list").replaceChildren(...data.genes.map((gene) => new Option(gene)));
$("gene").value = data.genes[0];
const on = (id, handler) => $(id).addEventListener(id === "gene" ? "input" : "change", handler);
["colour", "across", "up"].forEach((id) => on(id, drawMaps));
on("condition", () => { drawMaps(); drawCounts(); });
on("gene", () => { if ($("colour").value === "gene") drawMaps(); drawCounts(); });
drawMaps();
drawCounts();
