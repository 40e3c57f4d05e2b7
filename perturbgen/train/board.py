"""What TensorBoard shows of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.data import CountStore
from perturbgen.train import gauges
from perturbgen.train.feed import feed, placed
from perturbgen.train.pictures import latent_figure, predictive_figure

if TYPE_CHECKING:
    from perturbgen.models import LatentModel
    from perturbgen.train.loop import State, Training
    from perturbgen.train.settings import RunSettings

PICTURE_CELLS = 1000  # dense counts of so many cells are compared


class Board:
    """Scalars of every epoch; now and then pictures and gauges; at the end the projector and the hyper-parameters."""

    def __init__(self, run: Path, settings: RunSettings, *, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.settings = settings
        self.writer = SummaryWriter(run, purge_step=step or None)

    def epoch(self, training: Training, record: dict[str, Any]) -> None:
        """Show an epoch."""
        names = {"weight": "schedule/KL weight", "rate": "schedule/learning rate", "norm": "speed/gradient norm",
                 "cells_per_second": "speed/cells per second"}  # fmt: skip
        for key, value in record.items():
            if key not in ("epoch", "step"):
                self.writer.add_scalar(names.get(key, key), value, record["epoch"])
        if record["epoch"] % self.settings.board.every == 0 or training.finished:
            self.pictures(training, record["epoch"])

    def pictures(self, training: Training, epoch: int) -> None:
        """Latent space, posterior-predictive figures and the gauges."""
        model = training.model.eval()
        positions = self.chosen(len(training.train))
        latents = own_latents(model, training.train, positions)
        labels = self.labels(training.train.obs.iloc[positions])
        self.writer.add_figure("latent/principal components", latent_figure(latents, labels), epoch)
        self.writer.add_scalar("gauges/active latent dimensions", gauges.active_dimensions(latents), epoch)
        few = positions[:PICTURE_CELLS]
        real, generated = real_and_generated(model, training.train, few, seed=self.settings.seed)
        self.writer.add_figure("predictive/real and generated", predictive_figure(real, generated), epoch)
        for name, value in gauges.predictive_table(real, generated).items():
            self.writer.add_scalar(f"predictive/{name.replace('_', ' ')}", value, epoch)
        if self.settings.conditions:
            groups = training.train.obs.iloc[few][list(self.settings.conditions)].astype(str).agg(" ".join, axis=1)
            ratio = gauges.between_ratio(real, generated, groups.to_numpy())
            self.writer.add_scalar("gauges/between-condition variance ratio", ratio, epoch)

    def close(self, training: Training, state: State) -> None:
        """The projector and the hyper-parameters with the result."""
        if training.best_model is not None:
            training.model.load_state_dict(training.best_model)
        positions = self.chosen(len(training.train))
        latents = own_latents(training.model.eval(), training.train, positions)
        labels = self.labels(training.train.obs.iloc[positions]).assign(split="train")
        if len(training.validation):
            held = self.chosen(len(training.validation))
            latents = np.vstack([latents, encode(training.model, training.validation.subset(held))])
            more = self.labels(training.validation.obs.iloc[held]).assign(split="validation")
            labels = pd.concat([labels, more])
        if latents.shape[1] > 1:  # the projector refuses a line
            rows = labels.astype(str).to_numpy().tolist()
            self.writer.add_embedding(latents, rows, metadata_header=list(labels), tag="latent")
        metrics = {"result/objective": state.best, "result/epoch": float(state.best_epoch)}
        self.writer.add_hparams(hyper_parameters(self.settings), metrics, run_name=".")
        self.writer.close()

    def labels(self, obs: pd.DataFrame) -> pd.DataFrame:
        """The columns worth showing."""
        wanted = [*self.settings.conditions, *self.settings.board.labels, "cell_type", "compound", "plate", "donor"]
        return obs[[name for name in dict.fromkeys(wanted) if name in obs]]

    def chosen(self, n: int) -> np.ndarray:
        """Positions of the cells that are shown, the same all through a run."""
        return np.random.default_rng(self.settings.seed).permutation(n)[: self.settings.board.cells]


def own_latents(model: LatentModel, store: CountStore, positions: np.ndarray) -> np.ndarray:
    """Latent points (cells, latent) of training cells."""
    return np.vstack([model.own(batch).cpu().numpy() for batch in placed(store, positions)])


def encode(model: LatentModel, store: CountStore) -> np.ndarray:
    """Latent points (cells, latent) of any cells."""
    parts = [model.encode(batch).cpu().numpy() for batch in feed(store, 512)]
    return np.vstack(parts)


def real_and_generated(
    model: LatentModel, store: CountStore, positions: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (cells, genes) of some cells, and as many drawn for their conditions and sizes."""
    import torch

    from perturbgen.models.batch import dense, sizes

    real: list[np.ndarray] = []
    generated: list[np.ndarray] = []
    for batch in placed(store, positions, 256):
        generator = torch.Generator(batch.codes.device).manual_seed(seed + len(real))
        size = sizes(batch.counts, model.decoder.scaling)
        real.append(dense(batch.counts).cpu().numpy())
        generated.append(model.sample(batch.codes, size, generator).cpu().numpy())
    return np.vstack(real), np.vstack(generated)


def hyper_parameters(settings: RunSettings) -> dict[str, str | float | int | bool]:
    """The settings, flat, as TensorBoard wants them."""
    flat: dict[str, str | float | int | bool] = {}
    for section in ("model", "annealing", "training"):
        for name, value in getattr(settings, section).model_dump(mode="json").items():
            if isinstance(value, dict):
                flat.update({f"{section}.{name}.{key}": str(part) for key, part in value.items()})
            elif value is not None:
                flat[f"{section}.{name}"] = value if isinstance(value, (int, float, str)) else str(value)
    return flat
