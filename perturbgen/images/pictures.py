"""What is looked at: images in colours, and profiles in two dimensions.

Nothing is measured on either. A map (PCA, then UMAP or t-SNE) says which share of the neighbours it
keeps.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import MissingDependencyError, SchemaError
from perturbgen.core.files import atomic_path
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import PrincipalComponents

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from perturbgen.core.page import Page

# The colour map published with RxRx1: each channel's colour, and the grey value shown in full.
_SIX: Final[tuple[tuple[str, tuple[int, int, int], int], ...]] = (
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
_THREE: Final = (
    ("DAPI", (0, 0, 255), None),
    ("tubulin", (0, 255, 0), None),
    ("actin", (255, 0, 0), None),
)
MAPS: Final = {6: _SIX, 5: _FIVE, 3: _THREE}
_GAP = 4
_CAPTION = 18


def _shown(image: np.ndarray, full: int | None) -> np.ndarray:
    """Brightness from 0 to 1: up to ``full``, or from the 0.1st to the 99.9th percentile."""
    # percentiles, since a single hot pixel would darken all others
    low, high = (0.0, float(full)) if full else np.percentile(image, [0.1, 99.9])
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)


class ChannelColours:
    """How so many channels are shown: each one's name, colour and grey value shown in full."""

    def __init__(self, channels: int) -> None:
        if channels not in MAPS:
            raise SchemaError(
                f"{channels} channels", expected=f"{', '.join(map(str, MAPS))} have a colour map"
            )
        self._map: Any = MAPS[channels]

    def layers(self, stack: np.ndarray) -> list[np.ndarray]:
        """Each channel of (channels, height, width) in colour, (height, width, 3) up to 255."""
        return [
            _shown(image, full)[..., None] * np.array(colour)
            for image, (_, colour, full) in zip(stack, self._map, strict=True)
        ]

    def tints(self) -> tuple[list[list[float]], list[float]]:
        """Each channel's colour and the brightness shown in full, from 0 to 1 (8-bit images)."""
        colours = [[part / 255 for part in colour] for _, colour, _ in self._map]
        return colours, [(full or 255) / 255 for _, _, full in self._map]

    def write_sheet(self, stack: np.ndarray, path: str | Path) -> Path:
        """Save a field as PNG: all its channels added up, and each alone, four to a row."""
        from PIL import Image

        with atomic_path(path) as part:
            Image.fromarray(self._sheet(stack)).save(part)
        return Path(path)

    def _sheet(self, stack: np.ndarray) -> np.ndarray:
        layers = self.layers(stack)
        tiles = [np.clip(tile, 0, 255).astype(np.uint8) for tile in (np.sum(layers, 0), *layers)]
        names = ["all channels", *(name for name, _, _ in self._map)]
        return sheet(tiles, [[name] for name in names])


def sheet(tiles: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
    """Pictures of one size under their lines of words, four to a row, uint8 (height, width, 3)."""
    framed = []
    for tile, lines in zip(tiles, captions, strict=True):
        words = [_caption(line, tile.shape[1]) for line in lines]
        framed.append(np.pad(np.concatenate([*words, tile]), ((0, _GAP), (0, _GAP), (0, 0))))
    framed += [np.zeros_like(framed[0])] * (-len(framed) % 4)
    rows = [framed[i : i + 4] for i in range(0, len(framed), 4)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def _caption(text: str, width: int) -> np.ndarray:
    """White letters on black, uint8 (CAPTION, width, 3)."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, _CAPTION))
    ImageDraw.Draw(strip).text((3, 3), text, fill=(255, 255, 255))
    return np.array(strip)


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
