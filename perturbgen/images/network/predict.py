"""What a trained network says of fields: embeddings and log-probabilities, and how right it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.images.network.feed import ImageBatch, ImageFeed
from perturbgen.images.network.fields import Vocabulary
from perturbgen.images.network.model import ImageClassifier
from perturbgen.images.network.settings import Statistics
from perturbgen.images.rxrx1 import MODES, accuracy, decode_wells
from perturbgen.nn.vision import own_statistics

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
                fix="--statistics running, those of training",
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
