"""What a trained network says of fields, how right it is, and what TensorBoard shows of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.images.fields import read_field
from perturbgen.images.network.feed import ImageBatch, ImageFeed
from perturbgen.images.network.fields import Vocabulary
from perturbgen.images.network.model import ImageClassifier
from perturbgen.images.network.settings import ImageSettings, Statistics
from perturbgen.images.pictures import MAPS, ChannelColours, sheet
from perturbgen.images.rxrx1 import MODES, accuracy, decode_wells
from perturbgen.nn.vision import own_statistics
from perturbgen.train.board import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from perturbgen.train.feeds import Feed
    from perturbgen.train.loop import Training

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of fields: labels, ``embedding`` (fields, features) and ``log_p`` (fields, classes)."""

    table: pd.DataFrame
    embedding: np.ndarray
    log_p: np.ndarray
    vocabulary: Vocabulary

    @classmethod
    def of(
        cls,
        model: ImageClassifier,
        feed: ImageFeed,
        statistics: Statistics,
        *,
        turns: bool | None = None,
    ) -> Predictions:
        """Embeddings and log-probabilities of every field of a feed.

        Batch normalisation uses the statistics of training (``running``), of each batch, which
        holds fields of one experiment (``batch``), or of each whole experiment (``own``, AdaBN),
        which reads every image twice. With ``turns`` (by default as the model's settings say)
        embeddings and probabilities are means over all flips and turns.
        """
        alone = feed.alone([rows for part in feed.by_experiment() for rows in part])
        if alone and statistics != "running":
            raise SchemaError(
                f"{shorten(alone)} have a single image in a batch, "
                "which has no statistics of its own",
                expected="two or more of each experiment",
                fix="--norm running, those of training",
            )
        embedding = np.empty((len(feed), model.settings.embedding), np.float32)
        log_p = np.empty((len(feed), len(model.weights)), np.float32)

        def collect(batches: Iterable[ImageBatch]) -> None:
            for batch in batches:
                seen = model.views(batch.images, turns=turns)
                views = [model.embed(images, batch.cell) for images in seen]
                rows = batch.index.cpu().numpy()
                embedding[rows] = torch.stack(views).mean(dim=0).float().cpu().numpy()
                each = torch.stack([model.log_p(z) for z in views])
                # probabilities are averaged, not their logarithms
                log_p[rows] = (each.logsumexp(dim=0) - math.log(len(views))).float().cpu().numpy()

        def look(plan: list[np.ndarray]) -> None:
            for batch in feed.stream(plan):
                model.embed(batch.images, batch.cell)

        was_training = model.training
        model.eval()
        with torch.no_grad():
            if statistics == "own":
                for plan in feed.by_experiment():
                    # Read twice instead of kept: an experiment's images may not fit in memory.
                    with own_statistics(model, partial(look, plan)):
                        collect(feed.stream(plan))
            else:
                with own_statistics(model) if statistics == "batch" else nullcontext():
                    collect(feed.once())
        # training asks, too, between its epochs
        model.train(was_training)
        return cls(feed.fields.table, embedding, log_p, feed.vocabulary)

    def wells(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Labels of each well, and its log-probabilities: the normalised mean over its sites."""
        scores = pd.DataFrame(self.log_p, columns=list(self.vocabulary.classes))
        scores = scores.groupby(self.table["well_id"].to_numpy()).mean()
        scores = scores.sub(np.logaddexp.reduce(scores.to_numpy(), axis=1), axis=0)
        return self.table.drop_duplicates("well_id").set_index("well_id").loc[scores.index], scores

    def truth(self, table: pd.DataFrame) -> np.ndarray:
        """The place among the classes of each row of a table of labels, -1 for none."""
        return self.vocabulary.codes_of(table, "label")

    def numbers(self) -> dict[str, float]:
        """Mean -log p of fields whose label is a class, and the accuracies of fields and wells."""
        label = self.truth(self.table)
        known = label >= 0
        wells, scores = self.wells()
        wanted = self.truth(wells)
        told = scores.to_numpy()[wanted >= 0].argmax(axis=1)
        return {
            "objective": float(-self.log_p[known, label[known]].mean()),
            "accuracy": float((self.log_p[known].argmax(axis=1) == label[known]).mean()),
            "well accuracy": float((told == wanted[wanted >= 0]).mean()),
        }

    def accuracy_rows(self, groups: pd.Series | None) -> list[dict[str, Any]]:
        """Accuracy of each decoding by cell type, over treated wells whose label is a class.

        Only treatments are asked about, among the treatments. The first row counts fields.
        Without groups the decoding is ``independent`` only; without such wells there are no rows.
        """
        names = self.vocabulary
        table = self.table.set_index("site_id")
        scores = pd.DataFrame(self.log_p, columns=list(names.classes), index=table.index)
        controls = self.truth(self.table[self.table["well_type"] != "treatment"])
        treatments = [name for place, name in enumerate(names.classes) if place not in controls]
        rows = []
        for level, labels, log_p in (("image", table, scores), ("well", *self.wells())):
            treated = (labels["well_type"] == "treatment") & labels[names.label].notna()
            asked = treated & (self.truth(labels) >= 0)
            if not asked.any():
                return []
            if level == "well" and (treated & ~asked).any():
                log.warning(
                    "%d wells are not asked about: no well of theirs by %s was trained on",
                    int((treated & ~asked).sum()),
                    names.label,
                )
            part, here = labels[asked], log_p.loc[asked, treatments]
            for mode in MODES if level == "well" and groups is not None else MODES[:1]:
                named = decode_wells(here, part, mode=mode, groups=groups)
                right = accuracy(named, part[names.label], part["cell_type"])
                shares = {str(k): float(v) for k, v in right.items()}
                rows.append({"of": level, "decoding": mode, "n": len(part), **shares})
        return rows


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
    channels, tiles, captions = list(feed.fields.channels), [], []
    stacks = [read_field(feed.fields.files[int(i)], channels) for i in rows]
    for i, small in zip(rows, _exposed(stacks), strict=True):
        # pixels repeated, so that the words above fit into the width
        times = -(-_SMALLEST // small.shape[1])
        tiles.append(small.repeat(times, axis=0).repeat(times, axis=1))
        truth = found.table[found.vocabulary.label].iloc[i]
        taken = found.vocabulary.classes[int(found.log_p[i].argmax())]
        captions.append(["?" if pd.isna(truth) else f"{truth}", f"> {taken}"])
    return sheet(tiles, captions)


def _exposed(stacks: list[np.ndarray]) -> list[np.ndarray]:
    """All channels added up, uint8 (height, width, 3).

    All are darkened alike if a pixel in a hundred is too bright: what is darker stays darker.
    """
    sums = [np.sum(ChannelColours(len(stack)).layers(stack), axis=0) for stack in stacks]
    bright = max(255.0, float(np.percentile(np.stack(sums), 99)))
    return [np.clip(total * (255 / bright), 0, 255).astype(np.uint8) for total in sums]
