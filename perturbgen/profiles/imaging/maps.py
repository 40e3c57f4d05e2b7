"""Profiles in two dimensions, for looking: PCA, then UMAP, and how much of the neighbourhoods survived."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.errors import MissingDependencyError, SchemaError
from perturbgen.profiles.imaging.correct import PrincipalComponents
from perturbgen.profiles.imaging.profiles import Profiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from perturbgen.page import Page

COMPONENTS = 50
NEIGHBOURS = 10
SAMPLE = 2000  # rows whose neighbours are looked up


@dataclass(frozen=True)
class Map:
    """``points`` (rows, 2), and the share of each row's ten nearest rows that are still among its ten nearest."""

    points: np.ndarray
    kept_by_components: float
    kept_by_map: float


def draw_map(profiles: Profiles, *, method: str = "umap", seed: int = 0) -> Map:
    """The leading components of the profiles, then UMAP or t-SNE of these; ``pca`` shows the first two as they are."""
    rows, features = profiles.values.shape
    if rows < 4 or features < 2:
        raise SchemaError(f"{rows} rows of {features} features make no map",
                          expected="4 or more rows, 2 or more features")  # fmt: skip
    scores = PrincipalComponents(min(COMPONENTS, rows, features)).fit_transform(profiles.values, profiles.meta)
    points = LAYOUTS[method](scores, seed)
    shown = np.sort(np.random.default_rng(seed).permutation(rows)[:SAMPLE])
    there = neighbours(np.asarray(profiles.values[shown], np.float64))
    return Map(points, overlap(there, neighbours(scores[shown])), overlap(there, neighbours(points[shown])))


def umap_points(scores: np.ndarray, seed: int) -> np.ndarray:
    """UMAP of (rows, components), (rows, 2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn says at every call that a fixed seed means one thread
        try:
            from umap import UMAP
        except ImportError:
            raise MissingDependencyError(
                "umap-learn is not installed", fix="pip install umap-learn, or --method pca"
            ) from None
        return np.asarray(UMAP(n_neighbors=min(15, len(scores) - 1), random_state=seed).fit_transform(scores))


def tsne_points(scores: np.ndarray, seed: int) -> np.ndarray:
    """openTSNE of (rows, components), (rows, 2): begun with the first two, perplexity 30 or a third of the rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from openTSNE import TSNE
        except ImportError:
            raise MissingDependencyError(
                "openTSNE is not installed", fix="pip install 'perturbgen[maps]', or --method umap or pca"
            ) from None
        perplexity = min(30.0, (len(scores) - 1) / 3)
        return np.asarray(TSNE(perplexity=perplexity, initialization="pca", random_state=seed).fit(scores))


def pca_points(scores: np.ndarray, seed: int) -> np.ndarray:
    """The first two components."""
    return scores[:, :2]


LAYOUTS: Final = {"umap": umap_points, "tsne": tsne_points, "pca": pca_points}


def neighbours(values: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
    """The nearest rows of each row, (rows, count)."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=min(count, len(values) - 1)).fit(values).kneighbors(return_distance=False)


def overlap(left: np.ndarray, right: np.ndarray) -> float:
    """Mean share of the neighbours in ``left`` that are neighbours in ``right``."""
    return float((left[:, :, None] == right[:, None, :]).any(axis=2).mean())


def map_figure(points: np.ndarray, meta: pd.DataFrame, colour: str) -> Figure:
    """The map, coloured by a column: numbers on a scale, names each in a colour (the rarer ones grey)."""
    import plotly.graph_objects as go

    from perturbgen.data.pictures import GREY, named, tints

    hover = meta.iloc[:, :8].astype(str).agg(" · ".join, axis=1)
    figure = go.Figure()
    marker = {"size": 5 if len(meta) < 5000 else 3, "opacity": 0.75}
    if pd.api.types.is_float_dtype(meta[colour]):
        scale = marker | {"color": meta[colour], "colorscale": "Viridis", "colorbar": {"title": colour}}
        figure.add_scattergl(x=points[:, 0], y=points[:, 1], mode="markers", marker=scale, text=hover, hoverinfo="text")
    else:
        names = named(meta[colour].astype(object).where(meta[colour].notna(), "(none)"))
        for name, tint in tints(names).items():
            rows = (names == name).to_numpy()
            shade = marker | {"color": tint, "opacity": 0.35 if tint == GREY else 0.75}
            figure.add_scattergl(x=points[rows, 0], y=points[rows, 1], mode="markers", marker=shade, name=name,
                                 text=hover[rows], hoverinfo="text")  # fmt: skip
    figure.update_xaxes(showticklabels=False, zeroline=False).update_yaxes(showticklabels=False, zeroline=False)
    return figure.update_layout(height=620, title=f"coloured by {colour}", legend={"itemsizing": "constant"})


def map_page(profiles: Profiles, drawn: Map, colours: list[str], *, title: str) -> Page:
    """A page with the map in every colour and what it preserves."""
    from perturbgen.page import Page

    page = Page(title, f"{len(profiles):,} rows of {len(profiles.features):,} features")
    page.text(preserved(drawn))
    for colour in colours:
        page.figure(map_figure(drawn.points, profiles.meta, colour), f"Each point is a row of the profiles; {colour}.")
    return page


def preserved(drawn: Map) -> str:
    """What the map keeps, in words."""
    return (
        f"Of the {NEIGHBOURS} nearest neighbours in the full space, {drawn.kept_by_components:.0%} are kept by the "
        f"principal components and {drawn.kept_by_map:.0%} by this map. "
        "It is for looking: nothing is measured on it."
    )
