"""What TensorBoard shows of a run on cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from perturbgen.data import CountStore
from perturbgen.train import board as gauges
from perturbgen.train.board import Board, latent_figure, predictive_figure
from perturbgen.train.feeds import feed, placed

if TYPE_CHECKING:
    from perturbgen.models import LatentModel
    from perturbgen.train.feeds import CellFeed
    from perturbgen.train.loop import Training
    from perturbgen.train.settings import RunSettings

_PICTURE_CELLS = 1000  # dense counts of so many cells are compared


class CellBoard(Board):
    """Latent space, posterior-predictive figures and gauges of a model of counts."""

    weight = "schedule/KL weight"
    settings: RunSettings

    def pictures(self, training: Training, epoch: int) -> None:
        """Latent space, posterior-predictive figures and the gauges."""
        model, store, _ = _opened(training)
        positions = self.chosen(len(store))
        latents = _own_latents(model, store, positions)
        labels = self.labels(store.obs.iloc[positions])
        self.writer.add_figure("latent/principal components", latent_figure(latents, labels), epoch)
        self.writer.add_scalar(
            "gauges/active latent dimensions", gauges.active_dimensions(latents), epoch
        )
        few = positions[:_PICTURE_CELLS]
        real, generated = real_and_generated(model, store, few, seed=self.settings.seed)
        self.writer.add_figure(
            "predictive/real and generated", predictive_figure(real, generated), epoch
        )
        for name, value in gauges.predictive_table(real, generated).items():
            self.writer.add_scalar(f"predictive/{name.replace('_', ' ')}", value, epoch)
        if self.settings.conditions:
            groups = (
                store.obs.iloc[few][list(self.settings.conditions)]
                .astype(str)
                .agg(" ".join, axis=1)
            )
            ratio = gauges.between_ratio(real, generated, groups.to_numpy())
            self.writer.add_scalar("gauges/between-condition variance ratio", ratio, epoch)

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame]:
        """Latent points of some training and validation cells."""
        model, store, held_out = _opened(training)
        positions = self.chosen(len(store))
        latents = _own_latents(model, store, positions)
        labels = self.labels(store.obs.iloc[positions]).assign(split="train")
        if len(held_out):
            held = self.chosen(len(held_out))
            latents = np.vstack([latents, _encode(model, held_out.subset(held))])
            more = self.labels(held_out.obs.iloc[held]).assign(split="validation")
            labels = pd.concat([labels, more])
        return latents, labels

    def labels(self, obs: pd.DataFrame) -> pd.DataFrame:
        """The columns worth showing."""
        wanted = [
            *self.settings.conditions,
            *self.settings.board.labels,
            "cell_type",
            "compound",
            "plate",
            "donor",
        ]
        return obs[[name for name in dict.fromkeys(wanted) if name in obs]]


def _opened(training: Training) -> tuple[LatentModel, CountStore, CountStore]:
    """The model, in evaluation mode, and the cells behind the loop's feeds."""
    feeds = cast("CellFeed", training.train), cast("CellFeed", training.validation)
    return cast("LatentModel", training.model.eval()), feeds[0].store, feeds[1].store


def _own_latents(model: LatentModel, store: CountStore, positions: np.ndarray) -> np.ndarray:
    """Latent points (cells, latent) of training cells."""
    return np.vstack([model.own(batch).cpu().numpy() for batch in placed(store, positions)])


def _encode(model: LatentModel, store: CountStore) -> np.ndarray:
    """Latent points (cells, latent) of any cells."""
    parts = [model.encode(batch).cpu().numpy() for batch in feed(store, 512)]
    return np.vstack(parts)


def real_and_generated(
    model: LatentModel, store: CountStore, positions: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (cells, genes) of some cells, and as many drawn for their conditions and sizes."""
    import torch

    from perturbgen.models.base import dense, sizes

    real: list[np.ndarray] = []
    generated: list[np.ndarray] = []
    for batch in placed(store, positions, 256):
        generator = torch.Generator(batch.codes.device).manual_seed(seed + len(real))
        size = sizes(batch.counts, model.decoder.scaling)
        real.append(dense(batch.counts).cpu().numpy())
        generated.append(model.sample(batch.codes, size, generator).cpu().numpy())
    return np.vstack(real), np.vstack(generated)
