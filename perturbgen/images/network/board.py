"""What TensorBoard shows of a network on images: confusion, images, the embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from perturbgen.images.fields import GAP, MAPS, ChannelColours, caption, read_field
from perturbgen.images.network.predict import Predictions
from perturbgen.train.board import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from perturbgen.images.network.feed import ImageFeed
    from perturbgen.images.network.model import ImageClassifier
    from perturbgen.images.network.settings import ImageSettings
    from perturbgen.train.feeds import Feed
    from perturbgen.train.loop import Training

_TILES = 12  # images in the grid
_SMALLEST = 160  # pixels: a smaller image is enlarged, so that what is written on it can be read
_NAMED = 40  # classes whose names fit on the axes


class ImageBoard(Board):
    """Confusion matrix, images with what they were taken for, the embedding in the projector."""

    weight = "schedule/penalty weight"
    space = "embedding"
    settings: ImageSettings

    def pictures(self, training: Training, epoch: int) -> None:
        """Validation fields, or training ones where there are none."""
        shown = training.validation if len(training.validation) else training.train
        found, feed = self._predicted(training, shown)
        self.writer.add_figure("predictions/confusion", _confusion_figure(found), epoch)
        if len(feed.fields.channels) in MAPS:
            grid = _image_grid(found, feed, self.chosen(len(feed))[:_TILES])
            self.writer.add_image("predictions/images", grid, epoch, dataformats="HWC")

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame] | None:
        """Embeddings of some training and validation fields."""
        usual = ("cell_type", "experiment", "week", "plate", "well_type", "compound", "moa")
        points, labels = [], []
        for part, shown in (("train", training.train), ("validation", training.validation)):
            if not len(shown):
                continue
            found, _ = self._predicted(training, shown)
            rows = self.chosen(len(shown))
            names = dict.fromkeys([found.vocabulary.label, *usual])
            columns = [name for name in names if name in found.table]
            points.append(found.embedding[rows])
            labels.append(found.table.iloc[rows][columns].assign(part=part))
        return np.concatenate(points), pd.concat(labels)

    def _predicted(self, training: Training, feed: Feed) -> tuple[Predictions, ImageFeed]:
        model, images = cast("ImageClassifier", training.model), cast("ImageFeed", feed)
        return Predictions.of(model, images, self.settings.model.statistics), images


def _confusion_figure(found: Predictions) -> Figure:
    """Wells by their class (rows, each summing to one) and the class they were taken for."""
    from matplotlib.figure import Figure

    wells, scores = found.wells()
    truth, classes, label = found.truth(wells), found.vocabulary.classes, found.vocabulary.label
    size, known = len(classes), truth >= 0
    counts = np.zeros((size, size))
    # counts[...] += 1 would count a pair of classes once, however often it occurs
    np.add.at(counts, (truth[known], scores.to_numpy()[known].argmax(axis=1)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.6, 6.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of a row's wells", shrink=0.8)
    right = np.trace(counts) / max(counts.sum(), 1)
    title = f"{int(counts.sum())} wells, {right:.0%} right"
    axes.set(xlabel="taken for", ylabel=label, title=title)
    if size <= _NAMED:
        names, font = list(map(str, classes)), 10 if size <= 12 else 7
        axes.set_xticks(range(size), names, fontsize=font, rotation=90)
        axes.set_yticks(range(size), names, fontsize=font)
    return figure


def _image_grid(found: Predictions, feed: ImageFeed, rows: np.ndarray) -> np.ndarray:
    """Fields in the colours of their channels under their class and the one they were taken for.

    uint8 (height, width, 3).
    """
    channels, tiles = list(feed.fields.channels), []
    stacks = [read_field(feed.fields.files[int(i)], channels) for i in rows]
    for i, small in zip(rows, _exposed(stacks), strict=True):
        picture = _enlarged(small, _SMALLEST)
        truth = found.table[found.vocabulary.label].iloc[i]
        taken = found.vocabulary.classes[int(found.log_p[i].argmax())]
        lines = ["?" if pd.isna(truth) else f"{truth}", f"> {taken}"]
        words = [caption(line, picture.shape[1]) for line in lines]
        tiles.append(np.concatenate([*words, picture]))
    return _tiled(tiles, across=4)


def _exposed(stacks: list[np.ndarray]) -> list[np.ndarray]:
    """All channels added up, uint8 (height, width, 3).

    All are darkened alike if a pixel in a hundred is too bright: what is darker stays darker.
    """
    sums = [np.sum(ChannelColours(len(stack)).layers(stack), axis=0) for stack in stacks]
    bright = max(255.0, float(np.percentile(np.stack(sums), 99)))
    return [np.clip(total * (255 / bright), 0, 255).astype(np.uint8) for total in sums]


def _enlarged(picture: np.ndarray, least: int) -> np.ndarray:
    """Pixels repeated until the picture (height, width, 3) is ``least`` wide, or more."""
    times = -(-least // picture.shape[1])
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _tiled(tiles: list[np.ndarray], *, across: int) -> np.ndarray:
    """Pictures of one size side by side, ``across`` to a row, a few pixels apart."""
    framed = [np.pad(tile, ((0, GAP), (0, GAP), (0, 0))) for tile in tiles]
    framed += [np.zeros_like(framed[0])] * (-len(framed) % across)
    rows = [framed[i : i + across] for i in range(0, len(framed), across)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])
