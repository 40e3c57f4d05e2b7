"""Figures for TensorBoard, drawn without a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.page import PALETTE
from perturbgen.train.gauges import mean_variance, zero_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, GENERATED = PALETTE[0], PALETTE[1]


def predictive_figure(real: np.ndarray, generated: np.ndarray) -> Figure:
    """Real against generated counts (cells, genes): variances, zeros, library sizes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for counts, name, colour in ((real, "real", REAL), (generated, "generated", GENERATED)):
        mean, variance = mean_variance(counts)
        seen = mean > 0
        left.loglog(mean[seen], variance[seen], ".", ms=2, alpha=0.4, color=colour, label=name, rasterized=True)
    left.plot(left.get_xlim(), left.get_xlim(), "k--", lw=1, label="Poisson")
    left.set(xlabel="mean count of a gene", ylabel="variance", title="Mean and variance")
    left.legend(loc="upper left", markerscale=6, frameon=False)
    middle.plot(zero_fraction(real), zero_fraction(generated), ".", ms=2, alpha=0.4, color=REAL, rasterized=True)
    middle.plot([0, 1], [0, 1], "k--", lw=1)
    middle.set(xlabel="share of zeros of a gene, real", ylabel="generated", title="Zeros")
    libraries = [counts.sum(axis=1) for counts in (real, generated)]
    bins = np.geomspace(max(1, min(x.min() for x in libraries)), max(x.max() for x in libraries) + 1, 40)
    right.hist(libraries, bins=bins, label=["real", "generated"], color=[REAL, GENERATED])
    right.set(xscale="log", xlabel="counts of a cell", ylabel="cells", title="Library size")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.legend(loc="upper right", frameon=False)
    return figure


def latent_figure(latents: np.ndarray, labels: pd.DataFrame) -> Figure:
    """The first two principal components of latent points (cells, latent), coloured by each column of labels."""
    from matplotlib.figure import Figure

    points = plane(latents)
    names = list(labels.columns)[:4] or [""]
    across = min(2, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(5.6 * across, 4.4 * down), layout="constrained")
    panels = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        scatter(axes, points, labels[name].astype(str) if name else pd.Series("cells", range(len(points))))
        axes.set(title=name, xlabel="first component", ylabel="second component")
    return figure


def plane(latents: np.ndarray) -> np.ndarray:
    """Points (cells, 2): the directions of most variance."""
    centred = latents - latents.mean(axis=0)
    if latents.shape[1] < 2:
        return np.hstack([centred, np.zeros_like(centred)])
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def scatter(axes: Axes, points: np.ndarray, labels: pd.Series, limit: int = 9) -> None:
    """One colour a label; the rarer ones beyond ``limit`` share grey."""
    common = labels.value_counts().index[:limit]
    rest = ~labels.isin(common).to_numpy()
    size = float(np.clip(100 / np.sqrt(max(len(points), 1)), 3, 8))
    if rest.any():
        axes.plot(*points[rest].T, ".", ms=size - 1, color="#bbbbbb", label="other", rasterized=True)
    for name, colour in zip(sorted(common), PALETTE, strict=False):
        mine = (labels == name).to_numpy()
        axes.plot(*points[mine].T, ".", ms=size, alpha=0.6, color=colour, label=name, rasterized=True)
    axes.legend(markerscale=12 / size, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
