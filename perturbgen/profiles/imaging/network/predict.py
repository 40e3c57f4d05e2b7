"""What a trained network says of fields: embeddings and log-probabilities, and how right it is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from perturbgen.nn.domains import batch_statistics, own_statistics
from perturbgen.profiles.imaging.decode import MODES, accuracy, decode
from perturbgen.profiles.imaging.network.feed import ImageBatch, ImageFeed
from perturbgen.profiles.imaging.network.model import ImageClassifier
from perturbgen.profiles.imaging.network.settings import Statistics


@dataclass(frozen=True, eq=False)
class Predictions:
    """``table`` (fields) of labels, and of the same rows ``embedding`` (.., features) and ``log_p`` (.., classes)."""

    table: pd.DataFrame
    embedding: np.ndarray
    log_p: np.ndarray
    classes: tuple[int, ...]

    def wells(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Labels of each well, and its log-probabilities (wells, classes): the mean over its sites, normalised."""
        scores = pd.DataFrame(self.log_p, columns=list(self.classes)).groupby(self.table["well_id"].to_numpy()).mean()
        scores = scores.sub(np.logaddexp.reduce(scores.to_numpy(), axis=1), axis=0)
        return self.table.drop_duplicates("well_id").set_index("well_id").loc[scores.index], scores


def predict(model: ImageClassifier, feed: ImageFeed, statistics: Statistics) -> Predictions:
    """Embeddings and log-probabilities of every field of a feed.

    Batch normalisation uses the statistics of training (``running``), of each batch, which holds fields of one
    experiment (``batch``), or of each whole experiment (``own``, AdaBN), which reads every image twice.
    """
    embedding = np.empty((len(feed), model.settings.embedding), np.float32)
    log_p = np.empty((len(feed), len(model.weights)), np.float32)

    def collect(batches: Iterable[ImageBatch]) -> None:
        for batch in batches:
            z = model.embed(batch.images, batch.cell)
            rows = batch.index.cpu().numpy()
            embedding[rows] = z.float().cpu().numpy()
            log_p[rows] = model.log_p(z).float().cpu().numpy()

    def look(batches: Iterable[ImageBatch]) -> None:
        for batch in batches:
            model.embed(batch.images, batch.cell)

    was_training = model.training
    model.eval()
    with torch.no_grad():
        if statistics == "own":
            for plan in feed.by_experiment():
                with own_statistics(model, lambda plan=plan: look(feed.stream(plan))):  # type: ignore[misc]
                    collect(feed.stream(plan))
        else:
            with batch_statistics(model) if statistics == "batch" else nullcontext():
                collect(feed.once())
    model.train(was_training)
    return Predictions(feed.fields.table, embedding, log_p, feed.vocabulary.classes)


def validation_numbers(found: Predictions) -> dict[str, float]:
    """Objective (mean -log p of fields whose siRNA is a class), and the accuracies of fields and wells."""
    label = class_of(found.table["sirna_id"], found.classes)
    known = label >= 0
    wells, scores = found.wells()
    wanted = class_of(wells["sirna_id"], found.classes)
    return {
        "objective": float(-found.log_p[known, label[known]].mean()),
        "accuracy": float((found.log_p[known].argmax(axis=1) == label[known]).mean()),
        "well accuracy": float((scores.to_numpy()[wanted >= 0].argmax(axis=1) == wanted[wanted >= 0]).mean()),
    }


def class_of(sirna: pd.Series, classes: tuple[int, ...]) -> np.ndarray:
    """The place of each siRNA among the classes, -1 for none."""
    return pd.Index(classes).get_indexer(pd.Index(sirna.fillna(-1).astype(int)))


def accuracy_rows(found: Predictions, groups: pd.Series | None) -> list[dict[str, Any]]:
    """Accuracy of each decoding by cell type, over treated wells of known siRNA; without groups only ``independent``.

    The first row counts fields, one by one. Only treatments are asked about, among the treatments.
    """
    table = found.table.set_index("site_id")
    scores = pd.DataFrame(found.log_p, columns=list(found.classes), index=table.index)
    wells, well_scores = found.wells()
    treatments = treatment_classes(found.table, found.classes)
    rows = []
    for level, labels, log_p in (("image", table, scores), ("well", wells, well_scores)):
        asked = (labels["well_type"] == "treatment") & labels["sirna_id"].notna()
        if not asked.any():
            return []
        part, here = labels[asked], log_p.loc[asked, treatments]
        for mode in MODES if level == "well" and groups is not None else MODES[:1]:
            named = decode(here, part, mode=mode, groups=groups)
            right = accuracy(named, part["sirna_id"].astype(int), part["cell_type"])
            rows.append({"of": level, "decoding": mode, "n": len(part), **{str(k): float(v) for k, v in right.items()}})
    return rows


def treatment_classes(table: pd.DataFrame, classes: tuple[int, ...]) -> list[int]:
    """The classes that are no controls."""
    controls = set(table.loc[table["well_type"] != "treatment", "sirna_id"].dropna().astype(int))
    return [name for name in classes if name not in controls]
