"""A page of a DE table: conditions and genes to search, volcano and MA plots, voom's trend.

Its controls are ``de.html`` (a paragraph a section), their script ``de.js``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from perturbgen.core.page import PALETTE, Page
from perturbgen.de.sample_map import sample_figure
from perturbgen.de.table import SLANT, DETable

if TYPE_CHECKING:
    from anndata import AnnData
    from plotly.graph_objects import Figure

    from perturbgen.de.voom import MeanVariance

_POINTS: Final = 4000  # of a trend's genes; an even sample of more
_STRONGEST: Final = 40  # genes of each condition that are drawn and listed
_BUDGET: Final = 1_200_000  # bytes of the conditions' clouds
_VALUE: Final = 4 * 2 * 4 / 3  # bytes of a gene in a cloud: its code and three numbers, in base64
_PER_GENE: Final = 12  # conditions that are listed of a gene
_UNTESTED: Final = 65535


def de_page(
    table: DETable,
    *,
    level: float = 0.05,
    min_cells: int = 10,
    budget: int = _BUDGET,
    samples: AnnData | None = None,
) -> Page:
    """What was tested and found; any condition and any gene can be looked up.

    Conditions of fewer than ``min_cells`` cells are left out of lists until the reader lowers the
    limit. ``budget`` limits the bytes of what is drawn of conditions. Of the counts of ``samples``
    a map is drawn.
    """
    info = table.info
    asked = ", ".join(f"{name} = {text}" for name, text in info.get("formulas", {}).items())
    asked = f"{asked[:300]}{'...' if len(asked) > 300 else ''}; " if asked else ""
    words = [f"design {info.get('design', '?')}"]
    words += [] if asked else [f"control {info.get('control', '?')}"]
    words.append(f"{asked}{info.get('contrasts', '?')} contrasts")
    if info.get("lfc") is not None:
        words.append(f"tested beyond a log2 fold change of {info['lfc']:g}")
    words += [word for word in ("robust", "trend", "joint") if info.get(word)]
    summary = f"{len(table.conditions)} conditions, {len(table.genes)} genes; {', '.join(words)}"
    answer = _answer(table, level=level, min_cells=min_cells)
    page = Page("Differential expression", summary, answer=answer)
    here = files("perturbgen.de")
    controls = (here / "de.html").read_text("utf-8").rstrip().split("\n\n")
    conditions, condition, gene = controls
    page.section("Conditions", "A name chooses the condition that is drawn below.")
    page.block(conditions)
    page.section(
        "One condition",
        "Effect against evidence; effect against expression, where a healthy cloud is centred on "
        "zero.",
    )
    page.block(condition)
    page.section("One gene", "Where it responds most.")
    page.block(gene)
    if table.mean_variance:  # which files do not keep
        caption = "Each point is a gene; the line is the trend from which voom takes its weights."
        page.section("Mean and variance", caption)
        caption = "Higher counts vary less; a trend that falls towards the left means sparse genes."
        page.figure(_trend_plots(table.mean_variance), caption)
    if samples is not None and samples.n_obs > 2 and samples.n_vars > 2:
        figure, caption = sample_figure(samples, info)
        page.section("Samples", "Replicates should lie together; one that stands out is looked at.")
        page.figure(figure, caption)
    palette = ",".join(f'"{colour}"' for colour in PALETTE)
    data = Page.json(_payload(table, level=level, min_cells=min_cells, budget=budget))
    page.block(
        f'<script type="application/json" id="data">{data}</script>'
        f"<script>const PALETTE = [{palette}];</script>"
        f"<script>{(here / 'de.js').read_text('utf-8')}</script>",
        draws=True,
    )
    return page


def _answer(table: DETable, *, level: float, min_cells: int) -> str:
    """How many conditions respond, and which most."""
    enough, hits = table.enough(min_cells), table.hits(level)
    found = hits[enough.reindex(hits.index)]
    where = f"of {len(found)} conditions"
    if "n_cells" in table.conditions:
        where += f" of {min_cells} cells or more"
    if not len(found) or not found.iloc[0]:
        return f"No gene has an adjusted p below {level:g} in any {where}."
    [first] = table.strongest(1, level=level, min_cells=min_cells)
    size = ", ".join(f"{first[what]:,} {what}" for what in ("cells", "wells") if what in first)
    slanting = int((table.slant()[enough].abs() > SLANT).sum())
    text = f"{int((found > 0).sum())} {where} have a gene with an adjusted p below {level:g}; most "
    text += f"has {first['condition']}: {first['genes']:,}" + (f", from {size}" if size else "")
    if slanting:
        text += f". In {slanting} of them the MA cloud slants, which makes significance suspect"
    return text + "."


def _payload(table: DETable, *, level: float, min_cells: int, budget: int) -> dict[str, Any]:
    """Everything that the page's script shows, ready for JSON."""
    about, hits = table.conditions, (table.adj_p < level).sum(axis=1).to_numpy()
    up = ((table.adj_p < level) & (table.logfc > 0)).sum(axis=1).to_numpy()
    evidence = -table.log10_p.to_numpy()
    significant = table.adj_p.to_numpy() < level
    cut = [
        float(e[s].min()) if s.any() else None for e, s in zip(evidence, significant, strict=True)
    ]
    largest = table.logfc.abs().max(axis=1).fillna(0)
    slant = table.slant()
    enough = table.enough(min_cells).to_numpy()
    return {
        "conditions": [table.show_label(label) for label in about.index],
        "cells": about["n_cells"].tolist() if "n_cells" in about else None,
        "wells": about["n_wells"].tolist() if "n_wells" in about else None,
        "samples": about["n_samples"].tolist(),
        "controls": about["n_control"].tolist(),
        "hits": hits.tolist(),
        "up": up.tolist(),
        "largest": [round(float(value), 2) for value in largest],
        "slant": [None if np.isnan(value) else round(float(value), 3) for value in slant],
        "slants_from": SLANT,
        "cut": cut,
        "level": level,
        "min_cells": min_cells,
        "first": int(np.argmax(np.where(enough, hits, -1))),
        "genes": [str(gene) for gene in table.genes],
        "strongest": _STRONGEST,
        **_clouds(table, evidence, budget),
        **_of_genes(table, evidence),
    }


def _clouds(table: DETable, evidence: np.ndarray, budget: int) -> dict[str, Any]:
    """Of each condition the strongest genes and an even sample of the others by expression."""
    room = int(budget / (_VALUE * max(len(evidence), 1)))
    width = min(len(table.genes), max(room, 2 * _STRONGEST))
    codes = np.full((len(evidence), width), _UNTESTED)
    expression = table.ave_expr.to_numpy()
    for row, values in enumerate(evidence):
        tested = np.flatnonzero(np.isfinite(values))
        order = tested[np.argsort(-values[tested], kind="stable")]
        first, rest = order[:_STRONGEST], order[_STRONGEST:]
        rest = rest[np.argsort(expression[row, rest], kind="stable")]
        places = np.linspace(0, len(rest) - 1, min(len(rest), width - len(first)))
        chosen = np.concatenate([first, rest[places.round().astype(int)]])
        codes[row, : len(chosen)] = chosen
    there = np.where(codes == _UNTESTED, 0, codes)

    def taken(values: np.ndarray) -> Any:
        return Page.packed(np.nan_to_num(np.take_along_axis(values, there, axis=1)))

    return {
        "shown": width,
        "codes": Page.packed(codes, "<u2"),
        "logfc": taken(table.logfc.to_numpy()),
        "ave_expr": taken(expression),
        "log10_p": taken(evidence),
    }


def _of_genes(table: DETable, evidence: np.ndarray) -> dict[str, Any]:
    """Of each gene the conditions with the least p."""
    most = min(_PER_GENE, len(evidence))
    values = np.where(np.isfinite(evidence), evidence, -1.0).T  # (genes, conditions)
    order = np.argsort(-values, axis=1, kind="stable")[:, :most]
    found = np.take_along_axis(values, order, axis=1)
    effects = np.take_along_axis(np.nan_to_num(table.logfc.to_numpy().T), order, axis=1)
    return {
        "per_gene": most,
        "gene_codes": Page.packed(np.where(found < 0, _UNTESTED, order), "<u2"),
        "gene_logfc": Page.packed(effects),
        "gene_log10_p": Page.packed(np.maximum(found, 0)),
    }


def _trend_plots(fits: Mapping[str, MeanVariance], across: int = 3) -> Figure:
    """voom's plot of each fit, in one figure: a browser draws only so many WebGL figures."""
    from plotly.subplots import make_subplots

    rows, columns = -(-len(fits) // across), min(across, len(fits))
    titles = [name or "all samples" for name in fits]
    figure = make_subplots(
        rows, columns, subplot_titles=titles, x_title="mean log2 count", y_title="√ residual SD"
    )
    for i, found in enumerate(fits.values()):
        at = {"row": i // across + 1, "col": i % across + 1, "showlegend": False}
        order = np.argsort(found.mean)[:: max(1, len(found.mean) // _POINTS)]
        genes = {"mode": "markers", "marker": {"size": 3, "opacity": 0.4, "color": PALETTE[0]}}
        figure.add_scattergl(x=found.mean[order], y=found.root_sd[order], **genes, **at)
        line = {"mode": "lines", "line": {"width": 3, "color": PALETTE[1]}}
        figure.add_scattergl(x=found.trend.x, y=found.trend.y, **line, **at)
    return figure.update_layout(height=110 + 250 * rows)
