"""The judge of an embedding while it trains: how well profiles of withheld perturbagens find their own kind.

What TensorBoard shows of an embedding: its map now and then, and the projector at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from perturbgen.retrieval import Measure, Retrieval, retrieve
from perturbgen.train.board import Board, latent_figure

if TYPE_CHECKING:
    from perturbgen.l1000.embedder.batches import ProfileFeed
    from perturbgen.l1000.embedder.model import ProfileEmbedder
    from perturbgen.l1000.embedder.settings import EmbedSettings
    from perturbgen.models.base import Trainable
    from perturbgen.train.loop import Training

_Array = np.ndarray[Any, Any]


def _hyperbolic(queries: _Array, candidates: _Array) -> _Array:
    """Negative distance of points in the Poincaré ball, (queries, candidates)."""
    import torch

    from perturbgen.nn.margins import poincare_distance

    return -poincare_distance(torch.from_numpy(queries), torch.from_numpy(candidates)).numpy()


def measure_of(model: ProfileEmbedder) -> Measure:
    """How this model's places are compared."""
    return _hyperbolic if model.hyperbolic else "cosine"


def places(model: ProfileEmbedder, feed: ProfileFeed) -> _Array:
    """The embedding (profiles, size) of a feed's profiles, in their order."""
    model.eval()
    return np.vstack([model.embed(batch).cpu().numpy() for batch in feed.once()])


class RetrievalJudge:
    """Mean average precision and AUC over withheld profiles; the objective is 1 - mAP."""

    def __init__(self, feed: ProfileFeed, label: str) -> None:
        self.feed, self.label = feed, label

    def __call__(self, model: Trainable) -> dict[str, float]:
        """Rank them all."""
        embedder = cast("ProfileEmbedder", model)
        labels = self.feed.table.samples[[self.label]].astype(str)
        summary: Any = ranked(
            places(embedder, self.feed), labels, self.label, measure_of(embedder)
        ).summary()
        ap, auc = float(summary.loc["per query", "ap"]), float(summary.loc["per query", "auc"])
        return {
            "objective": 1 - ap,
            "map": ap,
            "auc": auc,
            "median_q": float(summary.loc["pooled", "median_q"]),
        }


def ranked(vectors: _Array, labels: pd.DataFrame, label: str, measure: Measure) -> Retrieval:
    """The retrieval of a label."""
    return retrieve(vectors, labels, same=label, similarity=measure)


def rankable(labels: pd.Series, limit: int, rng: np.random.Generator) -> _Array:
    """A mask of labels that occur twice or more, whole labels drawn until ``limit`` profiles are reached."""
    counts = labels.astype(str).value_counts()
    names = np.sort(counts.index[counts >= 2].to_numpy(object))
    order = rng.permutation(names)
    fits = counts[order].cumsum().to_numpy() <= limit
    chosen = order[fits] if fits.sum() > 1 else order[:2]
    return labels.astype(str).isin(chosen).to_numpy()


_WANTED = ("name", "moa", "cell_line", "dose", "time", "plate", "well")


class EmbedBoard(Board):
    """The withheld profiles' places (the training ones' where none are withheld)."""

    space = "embedding"
    settings: EmbedSettings

    def pictures(self, training: Training, epoch: int) -> None:
        """The first two principal components."""
        points, labels = self.projected(training)
        self.writer.add_figure(
            "embedding/principal components", latent_figure(points, labels), epoch
        )
        model = cast("ProfileEmbedder", training.model)
        self.writer.add_scalar("schedule/scale", float(model.head.log_scale.detach().exp()), epoch)
        self.writer.add_scalar(
            "schedule/margin", model.head.risen * float(model.head.margins.max()), epoch
        )

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame]:
        """Places and labels of some withheld profiles."""
        feed = cast(
            "ProfileFeed", training.validation if len(training.validation) else training.train
        )
        points = places(cast("ProfileEmbedder", training.model), feed)
        chosen = self.chosen(len(points))
        samples = feed.table.samples.iloc[chosen]
        names = dict.fromkeys([self.settings.data.label, *self.settings.board.labels, *_WANTED])
        return points[chosen], samples[[name for name in names if name in samples]].astype(str)
