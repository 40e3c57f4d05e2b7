// Draws the figures of a page (page.py puts each as JSON beside its place) and helps its tables.
//
// plotly is packed in the page, since its script is 4.8 MB: PLOTLY is a promise of it, for which
// scripts of a page's own controls wait, too.
"use strict";
const NARROW = window.matchMedia("(max-width: 640px)");
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: NARROW.matches ? false : "hover", showSendToCloud: false,
  modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"] };
const ready = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));

const PLOTLY = ready.then(async () => {
  const packed = document.getElementById("plotly");
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  return window.Plotly;
});
PLOTLY.catch((error) => {
  const note = document.createElement("p");
  note.className = "warning";
  note.textContent = "The figures are not drawn: they need a browser of 2023 or later "
    + "(DecompressionStream). Tables and text are complete. " + error;
  document.querySelector("h1").after(note);
});

const isPaper = (note) => note.xref === "paper" && note.yref === "paper";
const middle = (axis) => (axis.domain[0] + axis.domain[1]) / 2;

// Panels of a figure, from the top left: the axes that share a number.
function panelsOf(layout) {
  return Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name))
    .map((name) => ({ x: layout[name], y: layout[name.replace("x", "y")] }))
    .filter((panel) => panel.x.domain && panel.y && panel.y.domain)
    .sort((a, b) => b.y.domain[1] - a.y.domain[1] || a.x.domain[0] - b.x.domain[0]);
}

// What is written over a panel: its own title, or that of its column, and that of its row.
function titleOf(panel, notes) {
  const above = notes.filter((note) => !note.textangle && note.y > 0.01
    && Math.abs(note.x - middle(panel.x)) < 0.02 && note.y >= panel.y.domain[1] - 0.001);
  const [title] = above.sort((a, b) => a.y - b.y);
  const row = notes.find((note) => note.textangle === 90 && Math.abs(note.y - middle(panel.y)) < 0.02);
  return [title, row].filter(Boolean).map((note) => note.text).join(", ");
}

// Panels beside each other are too small on a narrow window: they go below each other.
function stack(layout) {
  const panels = panelsOf(layout);
  if (new Set(panels.map((panel) => panel.x.domain[0])).size < 2) return;
  const notes = (layout.annotations || []).filter(isPaper);
  const rows = new Set(panels.map((panel) => panel.y.domain[1])).size;
  const titles = panels.map((panel) => titleOf(panel, notes));
  const across = notes.find((note) => !note.textangle && note.y < 0.01);
  const upright = notes.find((note) => note.textangle === -90);
  const size = Math.max(230, Math.min(340, ((layout.height || 400) - 110) / rows));
  const height = panels.length * (size + 70), gap = 70 / height;
  layout.annotations = (layout.annotations || []).filter((note) => !isPaper(note));
  panels.forEach((panel, i) => {
    const top = 1 - i / panels.length;
    panel.y.domain = [top - 1 / panels.length + gap, top - 24 / height];
    panel.x.domain = [0, 1];
    for (const axis of [panel.x, panel.y]) if (axis.matches) delete axis.showticklabels;
    if (across) panel.x.title = { text: across.text };
    if (upright) panel.y.title = { text: upright.text };
    if (titles[i]) layout.annotations.push({ text: titles[i], showarrow: false, xref: "paper", yref: "paper",
      x: 0, xanchor: "left", y: panel.y.domain[1], yanchor: "bottom" });
  });
  layout.height = height + 110;
}

// The layout for a narrow window: panels in a column, legends and colour bars below, small margins.
function narrow(layout) {
  stack(layout);
  const below = (pixels) => -pixels / Math.max(100, (layout.height || 450) - 110);
  const titled = layout.title && layout.title.text;
  layout.margin = { ...layout.margin, l: 48, r: 10, t: titled ? 64 : 34 };
  const several = "legend2" in layout;
  for (const name of Object.keys(layout)) {
    if (/^legend\d*$/.test(name) && several) layout[name].y = below(24);
    if (/^yaxis\d*$/.test(name)) layout[name].automargin = true;
    if (/^xaxis\d*$/.test(name)) layout[name].nticks = 6;
  }
  const legend = { orientation: "h", x: 0, xanchor: "left", y: below(60), yanchor: "top" };
  if (!several) layout.legend = { ...layout.legend, ...legend };
  if (layout.coloraxis) {
    const bar = { orientation: "h", x: 0.5, y: below(36), yanchor: "top", len: 1, thickness: 12 };
    layout.coloraxis.colorbar = { ...layout.coloraxis.colorbar, ...bar };
    layout.margin.b = 110;
  }
  return layout;
}

// What scripts of a page's own controls use.
const $ = (id) => document.getElementById(id);
const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const lazily = (make) => { let value; return () => (value === undefined ? (value = make()) : value); };
const number = (value, digits = 3) => (value === null || !Number.isFinite(value) ? "–" : value.toFixed(digits));
// A text that plotly may not read as markup.
const asText = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const LAYOUT = { template: "plotly_white", font: { size: 13, family: "system-ui, sans-serif" }, hovermode: "closest",
  margin: { l: 60, r: 20, t: 20, b: 50 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff" };

// Values (rows, columns) of 16-bit integers with a scale for each row.
function unpack(packed, columns) {
  const whole = new Int16Array(fromBase64(packed.data));
  return (row, column) => whole[row * columns + column] * packed.scale[row];
}

function options(id, entries, chosen) {
  $(id).replaceChildren(...entries.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// At once where plotly is there, so that what is drawn is what was chosen last.
function draw(id, traces, layout) {
  const make = (plotly) => plotly.react(id, traces, { ...LAYOUT, ...layout }, CONFIG);
  return window.Plotly ? make(window.Plotly) : PLOTLY.then(make);
}

async function drawFigures() {
  const plotly = await PLOTLY;
  for (const text of document.querySelectorAll('script[class="figure"]')) {
    const figure = JSON.parse(text.textContent);
    if (NARROW.matches) figure.layout = narrow(figure.layout);
    await plotly.react(text.previousElementSibling, figure.data, figure.layout, CONFIG);
  }
}

// A table that goes on to the right says so, since not every system shows a scroll bar.
function markWide() {
  for (const box of document.querySelectorAll(".scroll, .tall")) {
    box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 2);
  }
}

// A field over a long table: only rows with the text stay.
function filterTables() {
  for (const field of document.querySelectorAll("input[data-filters]")) {
    const rows = [...document.querySelectorAll(`#${field.dataset.filters} tbody tr`)];
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }
}

ready.then(() => {
  drawFigures();
  markWide();
  filterTables();
  window.addEventListener("resize", markWide);
  NARROW.addEventListener("change", drawFigures);
});
