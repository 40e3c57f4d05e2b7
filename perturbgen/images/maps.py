"""Profiles in two dimensions, for looking: PCA, then UMAP, and how much of the neighbourhoods survived.

Many channels as one picture: each channel has a colour, and the colours add.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import MissingDependencyError, SchemaError
from perturbgen.core.files import atomic_path
from perturbgen.profiles.correct import PrincipalComponents
from perturbgen.profiles.table import Profiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from perturbgen.core.page import Page

_COMPONENTS = 50
_NEIGHBOURS = 10
_SAMPLE = 2000  # rows whose neighbours are looked up


@dataclass(frozen=True)
class _Map:
    """``points`` (rows, 2), and the share of each row's ten nearest rows that are still among its ten nearest."""

    points: np.ndarray
    kept_by_components: float
    kept_by_map: float


def draw_map(profiles: Profiles, *, method: str = "umap", seed: int = 0) -> _Map:
    """The leading components of the profiles, then UMAP or t-SNE of these; ``pca`` shows the first two as they are."""
    rows, features = profiles.values.shape
    if rows < 4 or features < 2:
        raise SchemaError(
            f"{rows} rows of {features} features make no map",
            expected="4 or more rows, 2 or more features",
        )
    scores = PrincipalComponents(min(_COMPONENTS, rows, features)).fit_transform(
        profiles.values, profiles.meta
    )
    points = LAYOUTS[method](scores, seed)
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
        warnings.simplefilter(
            "ignore"
        )  # umap-learn says at every call that a fixed seed means one thread
        try:
            from umap import UMAP
        except ImportError:
            raise MissingDependencyError(
                "umap-learn is not installed", fix="pip install umap-learn, or --method pca"
            ) from None
        return np.asarray(
            UMAP(n_neighbors=min(15, len(scores) - 1), random_state=seed).fit_transform(scores)
        )


def _tsne_points(scores: np.ndarray, seed: int) -> np.ndarray:
    """openTSNE of (rows, components), (rows, 2): begun with the first two, perplexity 30 or a third of the rows."""
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
        return np.asarray(
            TSNE(perplexity=perplexity, initialization="pca", random_state=seed).fit(scores)
        )


def _pca_points(scores: np.ndarray, seed: int) -> np.ndarray:
    """The first two components."""
    return scores[:, :2]


LAYOUTS: Final = {"umap": _umap_points, "tsne": _tsne_points, "pca": _pca_points}


def _neighbours(values: np.ndarray, count: int = _NEIGHBOURS) -> np.ndarray:
    """The nearest rows of each row, (rows, count)."""
    from sklearn.neighbors import NearestNeighbors

    return (
        NearestNeighbors(n_neighbors=min(count, len(values) - 1))
        .fit(values)
        .kneighbors(return_distance=False)
    )


def _overlap(left: np.ndarray, right: np.ndarray) -> float:
    """Mean share of the neighbours in ``left`` that are neighbours in ``right``."""
    return float((left[:, :, None] == right[:, None, :]).any(axis=2).mean())


def _map_figure(points: np.ndarray, meta: pd.DataFrame, colour: str) -> Figure:
    """The map, coloured by a column: numbers on a scale, names each in a colour (the rarer ones grey)."""
    import plotly.graph_objects as go

    from perturbgen.data.pictures import GREY, named, tints

    hover = meta.iloc[:, :8].astype(str).agg(" · ".join, axis=1)
    figure = go.Figure()
    marker = {"size": 5 if len(meta) < 5000 else 3, "opacity": 0.75}
    if pd.api.types.is_float_dtype(meta[colour]):
        scale = marker | {
            "color": meta[colour],
            "colorscale": "Viridis",
            "colorbar": {"title": colour},
        }
        figure.add_scattergl(
            x=points[:, 0],
            y=points[:, 1],
            mode="markers",
            marker=scale,
            text=hover,
            hoverinfo="text",
        )
    else:
        names = named(meta[colour].astype(object).where(meta[colour].notna(), "(none)"))
        for name, tint in tints(names).items():
            rows = (names == name).to_numpy()
            shade = marker | {"color": tint, "opacity": 0.35 if tint == GREY else 0.75}
            figure.add_scattergl(
                x=points[rows, 0],
                y=points[rows, 1],
                mode="markers",
                marker=shade,
                name=name,
                text=hover[rows],
                hoverinfo="text",
            )
    figure.update_xaxes(showticklabels=False, zeroline=False).update_yaxes(
        showticklabels=False, zeroline=False
    )
    return figure.update_layout(
        height=620, title=f"coloured by {colour}", legend={"itemsizing": "constant"}
    )


def map_page(profiles: Profiles, drawn: _Map, colours: list[str], *, title: str) -> Page:
    """A page with the map in every colour and what it preserves."""
    from perturbgen.core.page import Page

    page = Page(title, f"{len(profiles):,} rows of {len(profiles.features):,} features")
    page.text(_preserved(drawn))
    for colour in colours:
        page.figure(
            _map_figure(drawn.points, profiles.meta, colour),
            f"Each point is a row of the profiles; {colour}.",
        )
    return page


def _preserved(drawn: _Map) -> str:
    """What the map keeps, in words."""
    return (
        f"Of the {_NEIGHBOURS} nearest neighbours in the full space, {drawn.kept_by_components:.0%} are kept by the "
        f"principal components and {drawn.kept_by_map:.0%} by this map. "
        "It is for looking: nothing is measured on it."
    )


_Colour = tuple[int, int, int]

# The colour map published with RxRx1: for each channel its colour, and the grey value that is shown in full.
_SIX: Final[tuple[tuple[str, _Colour, int], ...]] = (
    ("w1 nuclei", (19, 0, 249), 51),
    ("w2 ER", (42, 255, 31), 107),
    ("w3 actin", (255, 0, 25), 64),
    ("w4 nucleoli, RNA", (45, 255, 252), 191),
    ("w5 mitochondria", (250, 0, 253), 89),
    ("w6 Golgi, membrane", (254, 255, 40), 191),
)
# RxRx19a has no mitochondria; its fifth channel is the stain of RxRx1's sixth.
_FIVE: Final = (*_SIX[:4], ("w5 Golgi, membrane", _SIX[5][1], _SIX[5][2]))
# BBBC021 is 16-bit and has no display range of its own: percentiles of the image.
_THREE: Final[tuple[tuple[str, _Colour, None], ...]] = (
    ("DAPI", (0, 0, 255), None),
    ("tubulin", (0, 255, 0), None),
    ("actin", (255, 0, 0), None),
)
MAPS: Final = {6: _SIX, 5: _FIVE, 3: _THREE}
GAP = 4
_CAPTION = 18


def _shown(image: np.ndarray, full: int | None) -> np.ndarray:
    """Brightness between 0 and 1, (height, width): up to ``full``, or from the 0.1st to the 99.9th percentile."""
    low, high = (0.0, float(full)) if full else np.percentile(image, [0.1, 99.9])
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)


def layers(stack: np.ndarray) -> list[np.ndarray]:
    """Each channel of (channels, height, width) in its colour, float (height, width, 3) up to 255."""
    if len(stack) not in MAPS:
        raise SchemaError(
            f"{len(stack)} channels", expected=f"{', '.join(map(str, MAPS))} have a colour map"
        )
    return [
        _shown(image, full)[..., None] * np.array(colour)
        for image, (_, colour, full) in zip(stack, MAPS[len(stack)], strict=True)
    ]


def colours(channels: int) -> tuple[list[list[float]], list[float]]:
    """The colour of each channel and the brightness that is shown in full, both from 0 to 1 (8-bit images)."""
    if channels not in MAPS:
        raise SchemaError(
            f"{channels} channels", expected=f"{', '.join(map(str, MAPS))} have a colour map"
        )
    rows = MAPS[channels]
    return [[part / 255 for part in colour] for _, colour, _ in rows], [
        (full or 255) / 255 for _, _, full in rows
    ]


def _composite(stack: np.ndarray) -> np.ndarray:
    """All channels added up, uint8 (height, width, 3)."""
    return np.clip(np.sum(layers(stack), axis=0), 0, 255).astype(np.uint8)


def contact_sheet(stack: np.ndarray) -> np.ndarray:
    """The composite and each channel, four to a row, each with its name, uint8 (height, width, 3)."""
    names = ["all channels", *(name for name, _, _ in MAPS[len(stack)])]
    tiles = [
        _composite(stack),
        *(np.clip(layer, 0, 255).astype(np.uint8) for layer in layers(stack)),
    ]
    height, width = stack.shape[1] + _CAPTION + GAP, stack.shape[2] + GAP
    across = min(4, len(tiles))
    sheet = np.zeros((height * -(-len(tiles) // across), width * across, 3), np.uint8)
    for i, (name, tile) in enumerate(zip(names, tiles, strict=True)):
        top, left = height * (i // across), width * (i % across)
        sheet[top : top + _CAPTION, left : left + stack.shape[2]] = caption(name, stack.shape[2])
        sheet[top + _CAPTION : top + _CAPTION + stack.shape[1], left : left + stack.shape[2]] = tile
    return sheet


def caption(text: str, width: int) -> np.ndarray:
    """White letters on black, uint8 (CAPTION, width, 3)."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, _CAPTION))
    ImageDraw.Draw(strip).text((3, 3), text, fill=(255, 255, 255))
    return np.array(strip)


def write_picture(pixels: np.ndarray, path: str | Path) -> Path:
    """Save as PNG."""
    from PIL import Image

    with atomic_path(path) as part:
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(part)
    return Path(path)
