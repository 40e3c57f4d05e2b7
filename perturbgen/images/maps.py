"""Profiles in two dimensions, for looking: PCA, then UMAP or t-SNE, and what that preserves."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import MissingDependencyError, SchemaError
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import PrincipalComponents

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from perturbgen.core.page import Page

_COMPONENTS = 50
_NEIGHBOURS = 10
_SAMPLE = 2000  # rows whose neighbours are looked up


@dataclass(frozen=True)
class _Map:
    """``points`` (rows, 2), and which share of each row's ten nearest rows still are."""

    points: np.ndarray
    kept_by_components: float
    kept_by_map: float

    def page(self, profiles: Profiles, colours: list[str], *, title: str) -> Page:
        """A page with the map in every colour and what it preserves."""
        from perturbgen.core.page import Page

        page = Page(title, f"{len(profiles):,} rows of {len(profiles.features):,} features")
        page.text(
            f"Of the {_NEIGHBOURS} nearest neighbours in the full space, "
            f"{self.kept_by_components:.0%} are kept by the principal components and "
            f"{self.kept_by_map:.0%} by this map. It is for looking: nothing is measured on it."
        )
        for colour in colours:
            page.figure(
                _map_figure(self.points, profiles.meta, colour),
                f"Each point is a row of the profiles; {colour}.",
            )
        return page


def draw_map(profiles: Profiles, *, method: str = "umap", seed: int = 0) -> _Map:
    """The leading components of the profiles, then UMAP or t-SNE of these, or the first two."""
    rows, features = profiles.values.shape
    if rows < 4 or features < 2:
        raise SchemaError(
            f"{rows} rows of {features} features make no map",
            expected="4 or more rows, 2 or more features",
        )
    # UMAP and t-SNE look for neighbours, which noise in hundreds of features would hide
    scores = PrincipalComponents(min(_COMPONENTS, rows, features)).fit_transform(
        profiles.values, profiles.meta
    )
    points = LAYOUTS[method](scores, seed)
    # neighbours in a thousand features cost the square of the rows: a sample says enough
    shown = np.sort(np.random.default_rng(seed).permutation(rows)[:_SAMPLE])
    there = _neighbours(np.asarray(profiles.values[shown], np.float64))
    return _Map(
        points,
        _overlap(there, _neighbours(scores[shown])),
        _overlap(there, _neighbours(points[shown])),
    )


def _umap_points(scores: np.ndarray, seed: int) -> np.ndarray:
    """UMAP of (rows, components), (rows, 2)."""
    with warnings.catch_warnings():
        # umap-learn says at every call that a fixed seed means one thread
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError:
            raise MissingDependencyError(
                "umap-learn is not installed", fix="pip install umap-learn, or --method pca"
            ) from None
        model = UMAP(n_neighbors=min(15, len(scores) - 1), random_state=seed)
        return np.asarray(model.fit_transform(scores))


def _tsne_points(scores: np.ndarray, seed: int) -> np.ndarray:
    """openTSNE of (rows, components), (rows, 2): perplexity 30, or a third of fewer rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from openTSNE import TSNE
        except ImportError:
            raise MissingDependencyError(
                "openTSNE is not installed",
                fix="pip install 'perturbgen[maps]', or --method umap or pca",
            ) from None
        perplexity = min(30.0, (len(scores) - 1) / 3)
        model = TSNE(perplexity=perplexity, initialization="pca", random_state=seed)
        return np.asarray(model.fit(scores))


LAYOUTS: Final = {
    "umap": _umap_points,
    "tsne": _tsne_points,
    "pca": lambda scores, seed: scores[:, :2],
}


def _neighbours(values: np.ndarray) -> np.ndarray:
    """The nearest rows of each row, (rows, ten or fewer)."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(values) - 1)).fit(values)
    return model.kneighbors(return_distance=False)


def _overlap(left: np.ndarray, right: np.ndarray) -> float:
    """Mean share of the neighbours in ``left`` that are neighbours in ``right``."""
    return float((left[:, :, None] == right[:, None, :]).any(axis=2).mean())


def _map_figure(points: np.ndarray, meta: pd.DataFrame, colour: str) -> Figure:
    """The map, coloured by a column: numbers on a scale, names in colours (rare ones grey)."""
    import plotly.graph_objects as go

    from perturbgen.data import GREY, named, tints

    # more labels would cover the map
    hover = meta.iloc[:, :8].astype(str).agg(" · ".join, axis=1)
    figure = go.Figure()
    marker = {"size": 5 if len(meta) < 5000 else 3, "opacity": 0.75}

    def add(rows: np.ndarray | slice, shade: dict[str, Any], **options: Any) -> None:
        # drawn by the GPU: an SVG of 100,000 points stops the browser
        figure.add_scattergl(
            x=points[rows, 0],
            y=points[rows, 1],
            mode="markers",
            marker=marker | shade,
            text=hover[rows],
            hoverinfo="text",
            **options,
        )

    if pd.api.types.is_float_dtype(meta[colour]):
        bar = {"title": colour}
        add(slice(None), {"color": meta[colour], "colorscale": "Viridis", "colorbar": bar})
    else:
        names = named(meta[colour].astype(object).where(meta[colour].notna(), "(none)"))
        for name, tint in tints(names).items():
            shade = {"color": tint, "opacity": 0.35 if tint == GREY else 0.75}
            add((names == name).to_numpy(), shade, name=name)
    figure.update_xaxes(showticklabels=False, zeroline=False).update_yaxes(
        showticklabels=False, zeroline=False
    )
    return figure.update_layout(
        height=620, title=f"coloured by {colour}", legend={"itemsizing": "constant"}
    )
